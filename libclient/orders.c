/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An order to map comes in packets, like a grant. Each is imported, acknowledged and closed as it comes,
 * whichever thread receives it: so a large order needs no more descriptors than one packet's, and who waits
 * for a grant gets it, which the daemon doesn't send before. Only carrying out waits for its turn, behind
 * what was ordered earlier: then all of it is mapped or nothing. An order that cannot be carried out takes
 * its packets all the same: what they bring goes back together, before the daemon is told, so that the
 * worker is charged for what it has and no more.
 *
 * What a scheduler may rely on is that an answer is the truth: "done" is said behind the mapping, and behind
 * the Return of what was unmapped. The daemon handles what one socket brings in order.
 *
 * A session is a scheduler's life. Pages of an older one belong to nobody any more, so the first order of a
 * newer one takes them away; and an order that an older one has left behind must not take anything from the
 * newer. Both are said to be done, since nobody is there who would ask for more.
 *
 * Nothing of an ordered region is cached: the scheduler, which sees all ranks, decides what stays mapped.
 */

#include "orders.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "map.h"

#define ORDER_PAGES_MAX 1024
#define UNMAP_BATCH 64

/* An order to map that has not come completely, or whose turn has not come. */
struct order {
    struct list link; /* of the client's orders */
    struct kvc_client *client;
    struct kvc_region *region; /* NULL: closed */
    uint32_t request;
    uint64_t session, number;
    struct backing *arrived; /* extents in the order of their arrival */
    uint64_t n_arrived;
    int error; /* of importing what arrived */
    char reason[ERROR_SENTENCE_MAX];
    uint32_t n_pages;
    uint64_t pages[];
};

int orders_refuse(const struct kvc_region *region)
{
    if (!region->orders)
        return 0;
    return error_set(KVC_E_INVALID, "The region was opened with KVC_REGION_ORDERED: its scheduler maps it");
}

/* ---- Answers ---- */

/* With the sentence of the error that was set last. What sort of error it was here means nothing to a
 * scheduler: it is not its own driver that failed. */
static void say_done(struct kvc_client *client, uint32_t request, int error)
{
    Kvcached__OrderDone body = KVCACHED__ORDER_DONE__INIT;

    body.error = error ? KVCACHED__ERROR__ERROR_WORKER : KVCACHED__ERROR__ERROR_NONE;
    body.reason = (char *)(error ? kvc_last_error() : "");
    conn_tell(client->conn, MESSAGE_ORDER_DONE, request, &body.base);
}

static int closed(void)
{
    return error_set(KVC_E_INVALID, "The worker has closed the region");
}

static void violated(struct kvc_client *client, const char *what)
{
    conn_die(client->conn, KVC_E_PROTOCOL, "kvcachedd sent an order that makes no sense: %s", what);
}

/* ---- Sessions ---- */

static bool is_old(const struct orders *orders, uint64_t session, uint64_t number)
{
    return session < orders->session || (session == orders->session && number <= orders->number);
}

static size_t gather(const struct kvc_region *region, uint64_t *next, uint64_t *pages)
{
    size_t n = 0;

    for (; *next < region->shape->pages && n < UNMAP_BATCH; ++*next)
        if (region->pages[*next].state == PAGE_MAPPED)
            pages[n++] = *next;
    return n;
}

/* From now on the region is that session's. Where a page cannot be taken away the older one's stays in force,
 * and the next order tries again. */
static int take_over(struct kvc_region *region, uint64_t session)
{
    uint64_t pages[UNMAP_BATCH], next = 0;
    size_t n;
    int r;

    if (session == region->orders->session)
        return 0;
    while ((n = gather(region, &next, pages)) > 0) {
        r = map_undo(region, pages, n);
        if (r < 0)
            return r;
    }
    region->orders->session = session;
    region->orders->number = 0;
    return 0;
}

/* ---- Mapping ---- */

static void order_free(struct order *order)
{
    list_unlink(&order->link);
    free(order->arrived);
    free(order);
}

/* All that came goes back. */
static int order_undo(struct order *order, int r)
{
    struct list list = LIST_INIT(list);

    list_append(&list, &order->arrived->entry.link);
    order->arrived = NULL;
    error_hold();
    borrow_return(order->client, &list, false);
    error_release();
    return r;
}

/* The memory of each page, in a list. */
static int deal_out(struct order *order, struct list *memory)
{
    const struct shape *shape = order->region->shape;
    _cleanup_free_ struct backing **pages = calloc(order->n_pages, sizeof(struct backing *));
    bool complete = pages != NULL;

    for (uint32_t i = 0; i < order->n_pages && complete; i++) {
        pages[i] = backing_new(shape->n_slots);
        complete = pages[i] != NULL;
        if (complete)
            list_append(memory, &pages[i]->entry.link);
    }
    if (!complete) {
        backing_free_all(memory);
        return error_nomem();
    }
    backing_deal(order->arrived, shape, order->n_pages, pages);
    return 0;
}

static int carry_out(struct order *order)
{
    struct kvc_region *region = order->region;
    struct list memory = LIST_INIT(memory);
    int r;

    if (!order->client->conn->alive)
        return order_undo(order, 0);
    if (!region)
        return order_undo(order, closed());
    if (is_old(region->orders, order->session, order->number))
        return order_undo(order, 0);
    if (order->error)
        return order_undo(order, error_set(order->error, "%s", order->reason));
    r = take_over(region, order->session);
    if (r == 0)
        r = deal_out(order, &memory);
    if (r < 0)
        return order_undo(order, r);
    r = map_with(region, order->pages, order->n_pages, &memory);
    if (r == 0)
        region->orders->number = order->number;
    return r;
}

static bool is_complete(const struct order *order)
{
    return order->n_arrived == order->arrived->n_extents;
}

/* One that is being closed is listed until the daemon has answered, and meanwhile orders may come. */
static struct kvc_region *find_region(struct kvc_client *client, uint32_t id)
{
    list_for_each (it, &client->regions) {
        struct kvc_region *region = container_of(it, struct kvc_region, link);

        if (region->id == id && !(region->orders && region->orders->closed))
            return region;
    }
    return NULL;
}

static struct order *find_order(struct kvc_client *client, uint32_t request)
{
    list_for_each (it, &client->orders) {
        struct order *order = container_of(it, struct order, link);

        if (order->request == request)
            return order;
    }
    return NULL;
}

/* Whether the first packet of an order announces what its pages take. */
static bool adds_up(const Kvcached__MapOrder *body, const struct kvc_region *region)
{
    uint64_t total = body->remaining + body->n_extents;

    if (body->n_pages < 1 || body->n_pages > ORDER_PAGES_MAX || total < body->remaining)
        return false;
    if (!region)
        return total <= (uint64_t)ORDER_PAGES_MAX * SHAPE_SLOTS_MAX;
    return region->orders && total == (uint64_t)body->n_pages * region->shape->n_slots;
}

static struct order *order_new(struct kvc_client *client, uint32_t request, const Kvcached__MapOrder *body,
                               struct kvc_region *region)
{
    struct order *order = calloc(1, sizeof(*order) + body->n_pages * sizeof(order->pages[0]));

    if (!order)
        return NULL;
    list_init(&order->link);
    order->client = client;
    order->region = region;
    order->request = request;
    order->session = body->session;
    order->number = body->number;
    order->n_pages = (uint32_t)body->n_pages;
    for (size_t i = 0; i < body->n_pages; i++)
        order->pages[i] = body->pages[i];
    order->arrived = backing_new(body->remaining + body->n_extents);
    if (!order->arrived) {
        order_free(order);
        return NULL;
    }
    list_append(&client->orders, &order->link);
    return order;
}

/* The order that a packet belongs to; NULL: the connection has ended. */
static struct order *order_of(struct kvc_client *client, uint32_t request, const Kvcached__MapOrder *body)
{
    struct order *order = find_order(client, request);
    struct kvc_region *region = find_region(client, body->region);

    if (order && body->n_pages == 0)
        return order;
    if (order || !adds_up(body, region)) {
        violated(client, "its pages and extents do not fit each other, or the region");
        return NULL;
    }
    order = order_new(client, request, body, region);
    /* Whose memory the packet brings could not even be said, so it cannot be given back either. */
    if (!order)
        conn_die(client->conn, KVC_E_NOMEM, "there is no host memory for an order");
    return order;
}

static void take_in(struct order *order, const Kvcached__MapOrder *body, const struct fdset *fds,
                    bool truncated)
{
    if (truncated) {
        order->error = KVC_E_NOFILE;
        snprintf(order->reason, sizeof(order->reason),
                 "The descriptor table of the worker has no room for what kvcachedd sent");
    }
    for (unsigned i = 0; i < body->n_extents; i++) {
        struct extent *extent = &order->arrived->extents[order->n_arrived++];

        extent->id = body->extents[i];
        extent->state = EXTENT_GRANTED;
        if (order->region && !order->error)
            order->error = extent_import(order->client->gpu, extent, fdset_borrow(fds, i), order->reason);
    }
}

static bool fits(const struct order *order, const Kvcached__MapOrder *body, const struct fdset *fds,
                 bool truncated)
{
    uint64_t wanted = order->arrived->n_extents - order->n_arrived;

    return body->n_extents >= 1 && body->n_extents <= wanted && body->remaining == wanted - body->n_extents &&
           (truncated || fds->n == body->n_extents);
}

bool orders_receive(struct kvc_client *client, const struct message *message, const struct fdset *fds,
                    bool truncated)
{
    const Kvcached__MapOrder *body = (const Kvcached__MapOrder *)message->body;
    struct order *order = order_of(client, message->request, body);

    if (!order)
        return false;
    if (!fits(order, body, fds, truncated)) {
        violated(client, "a packet brings other extents than were announced");
        return false;
    }
    take_in(order, body, fds, truncated);
    conn_acknowledge(client->conn, message->request, false);
    return is_complete(order);
}

void orders_map(struct kvc_client *client, const struct message *message)
{
    struct order *order = find_order(client, message->request);

    say_done(client, order->request, carry_out(order));
    order_free(order);
}

/* ---- Unmapping ---- */

static int unmap(struct kvc_region *region, const Kvcached__UnmapOrder *body)
{
    int r;

    if (is_old(region->orders, body->session, body->number))
        return 0;
    r = take_over(region, body->session);
    if (r == 0 && body->n_pages > 0)
        r = map_undo(region, body->pages, body->n_pages);
    if (r == 0)
        region->orders->number = body->number;
    return r;
}

void orders_unmap(struct kvc_client *client, const struct message *message)
{
    const Kvcached__UnmapOrder *body = (const Kvcached__UnmapOrder *)message->body;
    struct kvc_region *region = find_region(client, body->region);

    if (!client->conn->alive)
        return;
    if (region && !region->orders)
        violated(client, "its region takes none");
    else
        say_done(client, message->request, region ? unmap(region, body) : closed());
}

/* ---- Endings ---- */

void orders_abandon(struct kvc_region *region)
{
    if (region->orders)
        region->orders->closed = true;
    list_for_each (it, &region->client->orders) {
        struct order *order = container_of(it, struct order, link);

        if (order->region == region)
            order->region = NULL;
    }
}

static bool is_any_incomplete(const struct kvc_client *client)
{
    list_for_each (it, &client->orders)
        if (!is_complete(container_of(it, struct order, link)))
            return true;
    return false;
}

void orders_drop(struct kvc_client *client)
{
    struct order *order;

    /* The daemon takes back what it has sent only when it has sent all. */
    if (is_any_incomplete(client))
        conn_die(client->conn, KVC_E_DISCONNECTED, "The client was closed");
    while ((order = list_first(&client->orders, struct order, link))) {
        order_undo(order, 0);
        order_free(order);
    }
}

void orders_forget(struct kvc_client *client)
{
    list_for_each_safe (it, &client->orders)
        order_free(container_of(it, struct order, link));
}
