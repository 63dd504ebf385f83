/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Whichever thread happens to receive puts news here; they are acted upon where the library may take its
 * time and may call its engine: in kvc_dispatch(), or on the library's own thread. The daemon waits for an
 * answer to each before it sends too many, so a long queue is a daemon that breaks its word.
 *
 * Of an order to map only the last packet is put here, as its place in line: see orders.h.
 */

#include "news.h"

#include <stdlib.h>

#include "client.h"
#include "notice.h"
#include "orders.h"

#define NEWS_MAX 256
#define REGION_NONE UINT32_MAX /* no daemon numbers so many */

struct item {
    struct list link;
    struct message message;
};

void news_init(struct news *news)
{
    list_init(&news->items);
    news->n = 0;
}

static void item_free(struct item *item)
{
    message_deinit(&item->message);
    free(item);
}

void news_deinit(struct news *news)
{
    list_for_each_safe (it, &news->items) {
        list_unlink(it);
        item_free(container_of(it, struct item, link));
    }
    news->n = 0;
}

int news_keep(struct news *news, struct message *message)
{
    struct item *item;

    if (news->n >= NEWS_MAX)
        return KVC_E_PROTOCOL;
    item = calloc(1, sizeof(*item));
    if (!item)
        return error_nomem();
    item->message = *message;
    *message = (struct message){0};
    list_append(&news->items, &item->link);
    news->n++;
    return 0;
}

bool news_has_any(const struct news *news)
{
    return !list_is_empty(&news->items);
}

static bool is_notice(const struct item *item)
{
    return item->message.type == MESSAGE_NOTICE;
}

bool news_has_notice(const struct news *news)
{
    list_for_each (it, &news->items)
        if (is_notice(container_of(it, struct item, link)))
            return true;
    return false;
}

void news_outdate_orders(struct news *news, uint32_t region)
{
    list_for_each (it, &news->items) {
        const struct message *message = &container_of(it, struct item, link)->message;
        Kvcached__UnmapOrder *order = (Kvcached__UnmapOrder *)message->body;

        if (message->type == MESSAGE_UNMAP_ORDER && order->region == region)
            order->region = REGION_NONE;
    }
}

/* Each kind has its own module. */
static void handle(struct kvc_client *client, struct item *item)
{
    int r = KVC_E_PROTOCOL;

    switch (item->message.type) {
    case MESSAGE_NOTICE:
        r = notice_arrived(client, (const Kvcached__Notice *)item->message.body);
        break;
    case MESSAGE_MAP_ORDER:
        r = 0;
        orders_map(client, &item->message);
        break;
    case MESSAGE_UNMAP_ORDER:
        r = 0;
        orders_unmap(client, &item->message);
        break;
    default:
        break;
    }
    if (r < 0)
        conn_die(client->conn, KVC_E_PROTOCOL, "kvcachedd sent a %s that has no place here",
                 codec_type_name(item->message.type));
}

static void take_out(struct kvc_client *client, struct item *item)
{
    list_unlink(&item->link);
    client->news.n--;
    handle(client, item);
    item_free(item);
}

void news_handle(struct kvc_client *client)
{
    while (news_has_any(&client->news))
        take_out(client, list_first(&client->news.items, struct item, link));
}

void news_take_notices(struct kvc_client *client)
{
    list_for_each_safe (it, &client->news.items)
        if (is_notice(container_of(it, struct item, link)))
            take_out(client, container_of(it, struct item, link));
}
