/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Whichever thread happens to receive puts news here; they are acted upon where the library may take its
 * time and may call its engine: in kvc_dispatch(), or on the library's own thread. The daemon waits for an
 * answer to each before it sends too many, so a long queue is a daemon that breaks its word.
 */

#include "news.h"

#include <stdlib.h>

#include "client.h"
#include "orders.h"

#define NEWS_MAX 256

struct item {
    struct list link;
    struct message message;
    struct fdset fds;
    bool truncated; /* the descriptors did not fit this process' table */
};

void news_init(struct news *news)
{
    list_init(&news->items);
    news->n = 0;
}

static void item_free(struct item *item, bool close)
{
    if (close)
        fdset_deinit(&item->fds);
    message_deinit(&item->message);
    free(item);
}

static void empty(struct news *news, bool close)
{
    list_for_each_safe (it, &news->items) {
        list_unlink(it);
        item_free(container_of(it, struct item, link), close);
    }
    news->n = 0;
}

void news_deinit(struct news *news)
{
    empty(news, true);
}

void news_forget(struct news *news)
{
    empty(news, false);
}

int news_keep(struct news *news, struct message *message, struct fdset *fds, bool truncated)
{
    struct item *item;

    if (news->n >= NEWS_MAX)
        return KVC_E_PROTOCOL;
    item = calloc(1, sizeof(*item));
    if (!item)
        return error_nomem();
    item->message = *message;
    fdset_move(&item->fds, fds);
    item->truncated = truncated;
    *message = (struct message){0};
    list_append(&news->items, &item->link);
    news->n++;
    return 0;
}

bool news_has_any(const struct news *news)
{
    return !list_is_empty(&news->items);
}

/* Each kind has its own module. */
static void handle(struct kvc_client *client, struct item *item)
{
    switch (item->message.type) {
    case MESSAGE_MAP_ORDER:
        orders_map(client, &item->message, &item->fds, item->truncated);
        break;
    case MESSAGE_UNMAP_ORDER:
        orders_unmap(client, &item->message);
        break;
    default:
        conn_die(client->conn, KVC_E_PROTOCOL, "kvcachedd sent a %s that has no place here",
                 codec_type_name(item->message.type));
        break;
    }
}

void news_handle(struct kvc_client *client)
{
    while (news_has_any(&client->news)) {
        struct item *item = list_first(&client->news.items, struct item, link);

        list_unlink(&item->link);
        client->news.n--;
        handle(client, item);
        item_free(item, true);
    }
}
