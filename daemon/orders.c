/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A scheduler decides, its workers map. Both are peers of one instance, so an order costs nobody else
 * anything: its extents are granted to the worker, as if that had asked, and the worker's word that it has
 * carried an order out is good enough for its own scheduler.
 *
 * Orders of a region are carried out one after the other, so each begins when the one before it has been sent
 * whole; for a Map that means asking the broker only then. A worker that doesn't read keeps its orders
 * waiting here, in a queue of bounded length. Each ends once: with the worker's report, or with the worker.
 *
 * A scheduler that comes later takes over: what an earlier one still has waiting is refused. A scheduler that
 * goes takes along what has not left; the rest is the worker's to finish, and nobody is told.
 */

#include "orders.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "attach.h"
#include "grant.h"
#include "instance_status.h"
#include "lessor.h"
#include "region.h"
#include "request.h"
#include "server.h"

#define PAGES_MAX 1024
#define REGION_ORDERS_MAX 64

static const char worker_is_gone[] = "the worker of this region is gone";

static int refuse(struct peer *peer, const struct message *message, Kvcached__Error error, const char *reason)
{
    peer_refuse(peer, message->request, error, "%s", reason);
    return 0;
}

/* ---- Orders of a region ---- */

void orders_unref(struct orders *orders)
{
    if (!orders || --orders->n_users > 0)
        return;
    assert(list_is_empty(&orders->link) && list_is_empty(&orders->waiting));
    free(orders);
}

struct orders *orders_find(const struct peer *peer, uint32_t group, uint32_t rank)
{
    list_for_each (it, &peer_instance(peer)->orders) {
        struct orders *orders = container_of(it, struct orders, link);

        if (orders->group == group && orders->rank == rank)
            return orders;
    }
    return NULL;
}

static void forget_scheduler(struct order *order)
{
    if (!order->scheduler)
        return;
    order->scheduler->n_orders--;
    peer_region(order->scheduler, order->region)->n_orders--;
    list_unlink(&order->scheduler_link);
    order->scheduler = NULL;
}

static void order_free(struct order *order)
{
    struct orders *orders = order->orders;

    if (order->grant)
        order->grant->order = NULL;
    if (order->leased && order->scheduler)
        lessor_forgo(order->scheduler, peer_region(order->scheduler, order->region),
                     (uint32_t)order->n_pages);
    forget_scheduler(order);
    order->worker->n_orders--;
    orders->n_open--;
    list_unlink(&order->link);
    free(order);
    orders_unref(orders);
}

static void order_refuse(struct order *order, Kvcached__Error error, const char *reason)
{
    if (order->scheduler)
        peer_refuse(order->scheduler, order->request, error, "%s", reason);
    order_free(order);
}

/* There is nobody any more who could carry out what this scheduler orders here. */
static void refuse_for_ever(struct peer *scheduler, uint32_t request, const char *reason)
{
    Kvcached__Refused body = KVCACHED__REFUSED__INIT;

    body.error = KVCACHED__ERROR__ERROR_WORKER;
    body.reason = (char *)reason;
    body.over = true;
    peer_send(scheduler, MESSAGE_REFUSED, request, &body.base, NULL);
}

static void order_end(struct order *order, const char *reason)
{
    if (order->scheduler)
        refuse_for_ever(order->scheduler, order->request, reason);
    order_free(order);
}

/* ---- Sending ---- */

static void note_sent(struct order *order)
{
    order->is_sent = true;
    list_unlink(&order->link);
    list_append(&order->worker->sent, &order->link);
}

static void send_unmap(struct order *order)
{
    Kvcached__UnmapOrder body = KVCACHED__UNMAP_ORDER__INIT;

    body.region = order->orders->region;
    body.session = order->session;
    body.number = order->number;
    body.n_pages = order->n_pages;
    body.pages = order->pages;
    peer_send(order->worker, MESSAGE_UNMAP_ORDER, order->id, &body.base, NULL);
    note_sent(order);
}

void orders_send_part(const struct order *order, unsigned n, struct fdset *fds)
{
    const struct grant *grant = order->grant;
    Kvcached__MapOrder body = KVCACHED__MAP_ORDER__INIT;

    body.region = order->orders->region;
    body.session = order->session;
    body.number = order->number;
    if (grant->n_sent == 0) {
        body.n_pages = order->n_pages;
        body.pages = (uint64_t *)order->pages;
    }
    body.n_extents = n;
    body.extents = grant->extents + grant->n_sent;
    body.remaining = grant->n_extents - grant->n_sent - n;
    peer_send(order->worker, MESSAGE_MAP_ORDER, order->id, &body.base, fds);
}

static void refuse_memory(struct order *order, int broker_error, uint64_t bytes)
{
    if (order->scheduler)
        request_refuse_memory(order->scheduler, order->request, broker_error, bytes);
    order_free(order);
}

static struct broker_lease *lease_of(const struct order *order)
{
    return order->leased ? peer_region(order->scheduler, order->region)->lease : NULL;
}

static void begin_map(struct order *order)
{
    struct peer *worker = order->worker;
    const struct region *region = peer_region(worker, order->orders->region);
    uint64_t n_extents = region_page_extents(region) * order->n_pages;
    int r;

    if (n_extents > region->capacity_extents - region->n_extents) {
        order_refuse(order, KVCACHED__ERROR__ERROR_INVALID, "the region has not so many pages left");
        return;
    }
    r = grant_ask(worker, order->orders->region, (uint32_t)order->n_pages, order->id, lease_of(order), order);
    if (r == 0)
        order->leased = false;
    else if (r < 0)
        order_refuse(order, KVCACHED__ERROR__ERROR_RESOURCES, "the daemon is short of memory");
    else
        refuse_memory(order, r, region_page_bytes(region, &worker->server->settings.broker) * order->n_pages);
}

static void begin(struct order *order)
{
    if (order->session != order->orders->session)
        order_end(order, "another scheduler has taken over");
    else if (order->maps)
        begin_map(order);
    else
        send_unmap(order);
}

static bool has_room(const struct peer *worker)
{
    return worker && !worker->doomed && link_queued(worker->conn) == 0;
}

/* Begins as many as can be. */
static void run(struct orders *orders)
{
    struct order *order;

    while (has_room(orders->worker) && (order = list_first(&orders->waiting, struct order, link)) &&
           !order->grant)
        begin(order);
}

void orders_resume(struct peer *peer)
{
    for (unsigned i = 0; i < PEER_REGIONS_MAX && peer->n_orders > 0; i++) {
        const struct region *region = peer->regions[i];

        if (region && region->orders && region->orders->worker == peer)
            run(region->orders);
    }
}

void orders_sent(struct order *order)
{
    note_sent(order);
    run(order->orders);
}

void orders_refused(struct order *order, int broker_error, uint64_t bytes)
{
    struct orders *orders = order->orders;

    orders->n_users++;
    refuse_memory(order, broker_error, bytes);
    run(orders);
    orders_unref(orders);
}

/* ---- Regions of workers ---- */

int orders_open(struct peer *peer, uint32_t number, uint32_t group, uint32_t rank)
{
    struct region *region = peer_region(peer, number);
    struct orders *orders = malloc(sizeof(*orders));

    if (!orders)
        return -ENOMEM;
    *orders = (struct orders){.n_users = 1, .worker = peer, .region = number, .group = group, .rank = rank};
    list_init(&orders->waiting);
    list_append(&peer_instance(peer)->orders, &orders->link);
    region->orders = orders;
    attach_waiting(orders);
    return 0;
}

/* True: nothing of it has left, or will. */
static bool withdraw(const struct order *order)
{
    return !order->is_sent && (!order->grant || grant_withdraw(order->grant));
}

void orders_close(struct peer *peer, struct region *region)
{
    struct orders *orders = region->orders;

    if (!orders || orders->worker != peer)
        return;
    list_unlink(&orders->link);
    orders->worker = NULL;
    list_for_each_safe (it, &orders->waiting) {
        struct order *order = container_of(it, struct order, link);

        if (withdraw(order))
            order_end(order, worker_is_gone);
    }
}

uint64_t orders_pages(const struct region *region)
{
    const struct orders *orders = region->orders;
    uint64_t n = 0;

    if (!orders || !orders->worker)
        return 0;
    list_for_each (it, &orders->waiting) {
        const struct order *order = container_of(it, struct order, link);

        n += order->grant ? order->n_pages : 0;
    }
    list_for_each (it, &orders->worker->sent) {
        const struct order *order = container_of(it, struct order, link);

        n += order->orders == orders && order->maps ? order->n_pages : 0;
    }
    return n;
}

/* ---- Ordering ---- */

static int compare_pages(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return (left > right) - (left < right);
}

static bool are_ascending(const uint64_t *pages, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        if (pages[i - 1] >= pages[i])
            return false;
    }
    return true;
}

/* So many are in ascending order, mostly, and no more. */
static bool are_distinct(const uint64_t *pages, size_t n)
{
    uint64_t sorted[PAGES_MAX];

    if (are_ascending(pages, n))
        return true;
    memcpy(sorted, pages, n * sizeof(*pages));
    qsort(sorted, n, sizeof(*sorted), compare_pages);
    return are_ascending(sorted, n);
}

/* What Map and Unmap have in common. */
struct wish {
    uint32_t region;
    uint64_t number;
    const uint64_t *pages;
    size_t n_pages;
    bool maps, leased;
};

/* NULL when there can be such an order. An empty Unmap has the worker take away what an older session
 * left. */
static const char *judge_pages(const struct region *region, const uint64_t *pages, size_t n, bool maps)
{
    if ((n < 1 && maps) || n > PAGES_MAX)
        return "1 to 1024 pages can be ordered at once";
    for (size_t i = 0; i < n; i++) {
        if (pages[i] >= region->capacity_pages)
            return "the region has fewer pages";
    }
    return are_distinct(pages, n) ? NULL : "a page is named twice";
}

/* ERROR_NONE, or why the order cannot be taken now; ERROR_WORKER: and never will be. */
static Kvcached__Error judge_order(const struct peer *peer, const struct region *region,
                                   const char **ret_reason)
{
    const struct orders *orders = region->orders;

    if (!orders->worker || orders->worker->doomed) {
        *ret_reason = worker_is_gone;
        return KVCACHED__ERROR__ERROR_WORKER;
    }
    if (region->session != orders->session) {
        *ret_reason = "another scheduler has taken over";
        return KVCACHED__ERROR__ERROR_WORKER;
    }
    if (orders->n_open >= REGION_ORDERS_MAX || peer->n_orders >= PEER_ORDERS_MAX ||
        orders->worker->n_orders >= PEER_ORDERS_MAX) {
        *ret_reason = "too many orders have not been carried out";
        return KVCACHED__ERROR__ERROR_RESOURCES;
    }
    return KVCACHED__ERROR__ERROR_NONE;
}

static uint32_t next_id(struct peer *worker)
{
    if (++worker->n_ids == 0)
        worker->n_ids = 1;
    return worker->n_ids;
}

static int order_new(struct peer *peer, const struct wish *wish, uint32_t request, struct order **ret)
{
    struct region *region = peer_region(peer, wish->region);
    struct orders *orders = region->orders;
    struct order *order = calloc(1, sizeof(*order) + wish->n_pages * sizeof(*wish->pages));

    if (!order)
        return -ENOMEM;
    for (size_t i = 0; i < wish->n_pages; i++)
        order->pages[i] = wish->pages[i];
    order->n_pages = wish->n_pages;
    order->maps = wish->maps;
    order->orders = orders;
    order->worker = orders->worker;
    order->scheduler = peer;
    order->request = request;
    order->region = wish->region;
    order->id = next_id(orders->worker);
    order->session = region->session;
    order->number = wish->number;
    orders->n_users++;
    orders->n_open++;
    orders->worker->n_orders++;
    peer->n_orders++;
    region->n_orders++;
    list_append(&orders->waiting, &order->link);
    list_append(&peer->ordered, &order->scheduler_link);
    *ret = order;
    return 0;
}

/* ERROR_NONE when it becomes an order. */
static Kvcached__Error judge_wish(const struct peer *peer, struct region *region, const struct wish *wish,
                                  const char **ret_reason)
{
    *ret_reason = "the orders of a region are counted upwards";
    if (wish->number <= region->number)
        return KVCACHED__ERROR__ERROR_INVALID;
    region->number = wish->number;
    *ret_reason = judge_pages(region, wish->pages, wish->n_pages, wish->maps);
    return *ret_reason ? KVCACHED__ERROR__ERROR_INVALID : judge_order(peer, region, ret_reason);
}

static int take_order(struct peer *peer, const struct message *message, const struct wish *wish)
{
    struct region *region = peer_region(peer, wish->region);
    bool leased = wish->leased && region && region->lease;
    const char *reason;
    Kvcached__Error error;
    struct order *order;
    int r;

    if (!region)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, "there is no such region");
    error = judge_wish(peer, region, wish, &reason);
    if (error != KVCACHED__ERROR__ERROR_NONE) {
        if (leased)
            lessor_forgo(peer, region, (uint32_t)wish->n_pages);
        if (error != KVCACHED__ERROR__ERROR_WORKER)
            return refuse(peer, message, error, reason);
        refuse_for_ever(peer, message->request, reason);
        return 0;
    }
    r = order_new(peer, wish, message->request, &order);
    if (r < 0)
        return r;
    order->leased = leased;
    run(order->orders);
    return 0;
}

int orders_map(struct peer *peer, struct message *message)
{
    const Kvcached__Map *body = (const Kvcached__Map *)message->body;

    return take_order(peer, message,
                      &(struct wish){.region = body->region,
                                     .number = body->number,
                                     .pages = body->pages,
                                     .n_pages = body->n_pages,
                                     .maps = true,
                                     .leased = body->leased});
}

int orders_unmap(struct peer *peer, struct message *message)
{
    const Kvcached__Unmap *body = (const Kvcached__Unmap *)message->body;

    return take_order(
        peer, message,
        &(struct wish){
            .region = body->region, .number = body->number, .pages = body->pages, .n_pages = body->n_pages});
}

/* ---- Done ---- */

static struct order *find_sent(const struct peer *worker, uint32_t id)
{
    list_for_each (it, &worker->sent) {
        struct order *order = container_of(it, struct order, link);

        if (order->id == id)
            return order;
    }
    return NULL;
}

/* A worker's error is the scheduler's where it means the same to both. */
static Kvcached__Error error_for_scheduler(Kvcached__Error error)
{
    switch (error) {
    case KVCACHED__ERROR__ERROR_DRIVER:
    case KVCACHED__ERROR__ERROR_RESOURCES:
    case KVCACHED__ERROR__ERROR_INVALID:
        return error;
    default:
        return KVCACHED__ERROR__ERROR_WORKER;
    }
}

/* The worker's words, as far as they can be shown. */
static void clean(const char *from, char to[static SNAPSHOT_REASON_MAX])
{
    size_t i = 0;

    for (; i < SNAPSHOT_REASON_MAX - 1 && from[i]; i++)
        to[i] = from[i] >= ' ' && from[i] <= '~' ? from[i] : '?';
    to[i] = '\0';
}

static void tell_scheduler(const struct order *order, const Kvcached__OrderDone *report)
{
    Kvcached__Mapped mapped = KVCACHED__MAPPED__INIT;
    Kvcached__Unmapped unmapped = KVCACHED__UNMAPPED__INIT;
    char reason[SNAPSHOT_REASON_MAX];

    if (!order->scheduler)
        return;
    clean(*report->reason ? report->reason : "the worker could not do it", reason);
    if (report->error != KVCACHED__ERROR__ERROR_NONE && !order->orders->worker) {
        refuse_for_ever(order->scheduler, order->request, reason);
    } else if (report->error != KVCACHED__ERROR__ERROR_NONE) {
        peer_refuse(order->scheduler, order->request, error_for_scheduler(report->error), "%s", reason);
    } else if (order->maps) {
        peer_send(order->scheduler, MESSAGE_MAPPED, order->request, &mapped.base, NULL);
    } else {
        peer_send(order->scheduler, MESSAGE_UNMAPPED, order->request, &unmapped.base, NULL);
    }
}

int orders_done(struct peer *peer, struct message *message)
{
    struct order *order = find_sent(peer, message->request);

    if (!order || order->grant) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_PROTOCOL, "an OrderDone reports on nothing that was ordered");
        return REQUEST_E_FAILED;
    }
    tell_scheduler(order, (const Kvcached__OrderDone *)message->body);
    order_free(order);
    return 0;
}

/* ---- The end ---- */

/* What has not left is dropped; of the rest nobody will be told. */
static void abandon(struct order *order)
{
    struct orders *orders = order->orders;

    orders->n_users++;
    forget_scheduler(order);
    if (withdraw(order))
        order_free(order);
    run(orders);
    orders_unref(orders);
}

static void end_scheduler(struct peer *peer)
{
    attach_give_up(peer);
    while (!list_is_empty(&peer->ordered))
        abandon(container_of(peer->ordered.next, struct order, scheduler_link));
}

static void end_worker(struct peer *peer)
{
    while (!list_is_empty(&peer->sent))
        order_end(container_of(peer->sent.next, struct order, link), worker_is_gone);
    list_for_each (it, &peer->granted) {
        struct order *order = container_of(it, struct grant, link)->order;

        if (order)
            order_end(order, worker_is_gone);
    }
    for (unsigned i = 0; i < PEER_REGIONS_MAX; i++) {
        if (peer->regions[i])
            orders_close(peer, peer->regions[i]);
    }
}

void orders_end_all(struct peer *peer)
{
    end_scheduler(peer);
    end_worker(peer);
}
