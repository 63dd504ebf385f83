/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An extent is ours from the packet that names it on, whether its descriptor arrived, could be imported, or
 * is wanted at all: so the books of both ends agree, whatever fails here. Descriptors are imported and closed
 * packet by packet, so a large answer needs no more than one packet's.
 *
 * On the way back the order is fixed: unmapped (by the caller), handle released, and only then named in a
 * Return, because the daemon may hand it to somebody else at once. What the driver refuses to release stays
 * in the client's list and on the instance's bill.
 */

#include "borrow.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "region.h"
#include "reserve.h"

/* A packet may name 4096, but this many fit any thread's stack. */
#define RETURN_EXTENTS_MAX 512

/* ---- Memory in hand ---- */

struct backing *backing_new(uint64_t n_extents)
{
    struct backing *backing = malloc(sizeof(*backing) + n_extents * sizeof(backing->extents[0]));

    if (!backing)
        return NULL;
    *backing = (struct backing){.entry.page = PAGE_NONE, .n_extents = n_extents};
    list_init(&backing->entry.link);
    for (uint64_t i = 0; i < n_extents; i++)
        backing->extents[i] = (struct extent){.state = EXTENT_NONE};
    return backing;
}

bool backing_is(const struct backing *backing, enum extent_state state)
{
    for (uint64_t i = 0; i < backing->n_extents; i++)
        if (backing->extents[i].state != state)
            return false;
    return true;
}

bool backing_has(const struct backing *backing, enum extent_state state)
{
    for (uint64_t i = 0; i < backing->n_extents; i++)
        if (backing->extents[i].state == state)
            return true;
    return false;
}

static struct backing *first_of(struct list *backings)
{
    return list_first(backings, struct backing, entry.link);
}

static void backing_free(struct backing *backing)
{
    list_unlink(&backing->entry.link);
    free(backing);
}

void backing_free_all(struct list *backings)
{
    while (!list_is_empty(backings))
        backing_free(first_of(backings));
}

int extent_import(struct gpu *gpu, struct extent *extent, int fd, char reason[static ERROR_SENTENCE_MAX])
{
    CUresult result;

    result = gpu->driver->cuMemImportFromShareableHandle(&extent->handle, (void *)(intptr_t)fd,
                                                         CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    if (result == CUDA_SUCCESS) {
        extent->state = EXTENT_IMPORTED;
        return 0;
    }
    snprintf(reason, ERROR_SENTENCE_MAX, "cuMemImportFromShareableHandle failed: %s",
             cuda_error_name(gpu->driver, result));
    return KVC_E_DRIVER;
}

void backing_deal(const struct backing *arrived, const struct shape *shape, uint32_t n_pages,
                  struct backing *const *pages)
{
    for (uint64_t i = 0; i < arrived->n_extents; i++) {
        uint32_t page, slot;

        shape_place(shape, n_pages, i, &page, &slot);
        pages[page]->extents[slot] = arrived->extents[i];
    }
}

/* ---- Taking ---- */

/* One that comes alone comes where it belongs. */
static bool is_single(const struct take *take)
{
    return take->arrived->n_extents == 1;
}

static void take_free(struct take *take)
{
    list_unlink(&take->link);
    for (uint32_t i = 0; i < take->n_pages; i++)
        free(take->pages[i]);
    free(take->arrived);
    free(take);
}

/* Whatever of it came goes back. */
static void take_undo(struct take *take, bool wait)
{
    struct list list = LIST_INIT(list);

    list_append(&list, &take->arrived->entry.link);
    take->arrived = NULL;
    error_hold();
    borrow_return(take->client, &list, wait);
    error_release();
}

static int check_grant(struct take *take, const struct message *message, const struct fdset *fds,
                       bool truncated)
{
    const Kvcached__Grant *grant = (const Kvcached__Grant *)message->body;
    uint64_t wanted = take->arrived->n_extents - take->n_arrived;

    if (message->type != MESSAGE_GRANT)
        return request_violated(&take->request, "kvcachedd answered Take with %s",
                                codec_type_name(message->type));
    if (grant->n_extents < 1 || grant->n_extents > wanted)
        return request_violated(&take->request, "kvcachedd granted %zu extents where %" PRIu64 " were wanted",
                                grant->n_extents, wanted);
    if (grant->remaining != wanted - grant->n_extents)
        return request_violated(&take->request, "kvcachedd lost count of the extents of a grant");
    if (!truncated && fds->n != grant->n_extents)
        return request_violated(&take->request, "kvcachedd granted %zu extents with %u descriptors",
                                grant->n_extents, fds->n);
    return 0;
}

static void take_in(struct take *take, const Kvcached__Grant *grant, const struct fdset *fds, bool truncated)
{
    if (truncated) {
        take->error = KVC_E_NOFILE;
        snprintf(take->reason, sizeof(take->reason),
                 "The descriptor table of this process has no room for what kvcachedd sent");
    }
    for (unsigned i = 0; i < grant->n_extents; i++) {
        struct extent *extent = &take->arrived->extents[take->n_arrived++];

        extent->id = grant->extents[i];
        extent->state = EXTENT_GRANTED;
        if (take->region && !take->error)
            take->error = extent_import(take->client->gpu, extent, fdset_borrow(fds, i), take->reason);
    }
}

/* No other descriptors are on their way to this process, or will be before it says something. */
static bool is_all_that_may_come(const struct take *take)
{
    return conn_asks_only(take->request.conn, &take->request) && take->client->role != KVC_ROLE_WORKER;
}

static int take_receive(struct request *request, const struct message *message, struct fdset *fds,
                        bool truncated)
{
    struct take *take = container_of(request, struct take, request);
    const Kvcached__Grant *grant = (const Kvcached__Grant *)message->body;
    bool lazily;
    int r;

    r = check_grant(take, message, fds, truncated);
    if (r < 0)
        return r;
    take_in(take, grant, fds, truncated);
    r = grant->remaining ? REQUEST_MORE : 0;
    lazily = r == 0 && is_single(take) && is_all_that_may_come(take);
    /* Last, for a connection that ends here finishes its requests. */
    conn_acknowledge(request->conn, request->id, lazily);
    return r;
}

/* Deals the extents that arrived out to the pages they are for. */
static void deal_out(struct take *take, const struct shape *shape, struct list *backings)
{
    if (is_single(take)) {
        list_append(backings, &steal_pointer(take->arrived)->entry.link);
        return;
    }
    backing_deal(take->arrived, shape, take->n_pages, take->pages);
    for (uint32_t i = 0; i < take->n_pages; i++) {
        list_append(backings, &take->pages[i]->entry.link);
        take->pages[i] = NULL;
    }
}

/* How many extents a daemon hands out in one answer is its own affair, and it says so by calling the question
 * invalid: then a smaller one is right. */
static void learn(const struct take *take, int result)
{
    if (result == KVC_E_INVALID && take->region && take->n_pages > 1)
        take->region->take_max = take->n_pages / 2;
}

/* What was spent for a refusal is the daemon's again. One that doesn't know of a single page has no lease. */
static void settle_lease(const struct take *take, int result)
{
    if (take->leased && take->region && result == KVC_E_INVALID && take->n_pages == 1)
        lease_over(take->region);
}

/* A take that is done and the caller's: its pages, or why not. Frees it. */
static int take_end(struct take *take, int result, bool wait, struct list *backings)
{
    learn(take, result);
    settle_lease(take, result);
    if (result == 0 && take->error)
        result = error_set(take->error, "%s", take->reason);
    if (result == 0 && take->region)
        deal_out(take, take->region->shape, backings);
    else
        take_undo(take, wait);
    take_free(take);
    return result;
}

static void take_finish(struct request *request)
{
    struct take *take = container_of(request, struct take, request);
    struct kvc_region *region = take->region;
    struct list backings = LIST_INIT(backings);
    int r;

    r = take_end(take, request->result, false, &backings);
    if (region)
        reserve_arrived(region, r, &backings);
}

static struct take *take_new(struct kvc_region *region, uint32_t n_pages)
{
    struct take *take = malloc(sizeof(*take) + n_pages * sizeof(take->pages[0]));
    bool complete;

    if (!take)
        return NULL;
    request_init(&take->request, take_receive, take_finish);
    list_init(&take->link);
    take->client = region->client;
    take->region = region;
    take->region_id = region->id;
    take->n_arrived = 0;
    take->error = 0;
    take->n_pages = n_pages;
    take->leased = false;
    for (uint32_t i = 0; i < n_pages; i++)
        take->pages[i] = NULL;
    take->arrived = backing_new((uint64_t)n_pages * region->shape->n_slots);
    complete = take->arrived != NULL;
    for (uint32_t i = 0; i < n_pages && complete && !is_single(take); i++)
        complete = (take->pages[i] = backing_new(region->shape->n_slots)) != NULL;
    if (complete)
        return take;
    take_free(take);
    return NULL;
}

int borrow_later(struct kvc_region *region, uint32_t n_pages, bool leased, struct take **ret)
{
    struct kvc_client *client = region->client;
    Kvcached__Take body = KVCACHED__TAKE__INIT;
    struct take *take = take_new(region, n_pages);
    int r;

    r = take ? 0 : error_nomem();
    if (r == 0) {
        take->leased = leased;
        body.region = region->id;
        body.pages = n_pages;
        body.leased = leased;
        r = conn_ask(client->conn, &take->request, MESSAGE_TAKE, &body.base);
    }
    if (r < 0) {
        if (leased)
            lease_unspend(region->lease.line, n_pages);
        if (take)
            take_free(take);
        return r;
    }
    list_append(&client->takes, &take->link);
    *ret = take;
    return 0;
}

static int borrow_some(struct kvc_region *region, uint32_t n_pages, bool leased, struct list *backings)
{
    struct take *take;
    int r;

    if (leased && !lease_spend(region->lease.line, n_pages))
        return error_set(KVC_E_INVALID, "There are no such claims");
    r = borrow_later(region, n_pages, leased, &take);
    if (r < 0)
        return r;
    r = notice_wait(region->client, &take->request, region->client->conn->timeout_ns);
    if (!take->request.done) {
        borrow_abandon(take);
        return r;
    }
    return take_end(take, r, true, backings);
}

/* Whether a refusal was about how much was asked for at once, or about a lease, so that there is another way.
 * */
static bool is_worth_another(const struct kvc_region *region, int r, uint32_t n, bool leased)
{
    return r == KVC_E_INVALID && (region->take_max < n || leased);
}

static int borrow_many(struct kvc_region *region, uint64_t n_pages, bool leased, struct list *got)
{
    int r = 0;

    while (n_pages > 0 && r == 0) {
        uint32_t n = (uint32_t)u64_min(n_pages, region->take_max);

        if (leased)
            n = (uint32_t)u64_min(n, lease_of(region).claimed);
        if (n == 0) {
            /* Somebody else has spent them. */
            leased = false;
            continue;
        }
        r = borrow_some(region, n, leased, got);
        if (r == 0)
            n_pages -= n;
        else if (is_worth_another(region, r, n, leased))
            r = 0;
    }
    return r;
}

/* What is not leased is asked for first: the daemon may refuse that, and then no claim has been spent. */
int borrow_pages(struct kvc_region *region, uint64_t n_pages, struct list *backings)
{
    struct list got = LIST_INIT(got);
    uint64_t n_leased = u64_min(lease_claim_up_to(region, n_pages), n_pages);
    int r;

    r = borrow_many(region, n_pages - n_leased, false, &got);
    if (r == 0)
        r = borrow_many(region, n_leased, true, &got);
    if (r == 0) {
        list_splice(backings, &got);
        return 0;
    }
    error_hold();
    borrow_return(region->client, &got, !error_is_unanswered(r));
    error_release();
    return r;
}

void borrow_abandon(struct take *take)
{
    take->region = NULL;
}

static struct take *find_take(struct kvc_client *client, uint32_t region_id)
{
    list_for_each (it, &client->takes) {
        struct take *take = container_of(it, struct take, link);

        if (take->region_id == region_id)
            return take;
    }
    return NULL;
}

int borrow_settle(struct kvc_region *region)
{
    struct kvc_client *client = region->client;
    struct list none = LIST_INIT(none);
    struct take *take;

    while ((take = find_take(client, region->id))) {
        int r;

        borrow_abandon(take);
        r = conn_wait(client->conn, &take->request);
        if (!take->request.done)
            return r;
        take_end(take, take->request.result, true, &none);
    }
    return 0;
}

void borrow_forget(struct kvc_client *client)
{
    list_for_each_safe (it, &client->takes) {
        struct take *take = container_of(it, struct take, link);

        list_unlink(&take->request.link);
        take_free(take);
    }
    backing_free_all(&client->leaving);
}

/* ---- Giving back ---- */

static int return_receive(struct request *request, const struct message *message, struct fdset *fds,
                          bool truncated)
{
    if (message->type == MESSAGE_RETURNED)
        return 0;
    return request_violated(request, "kvcachedd answered Return with %s", codec_type_name(message->type));
}

/* Nothing that we do makes a refusal right; and whose memory it is cannot be told any more. */
static int return_end(struct request *request)
{
    struct conn *conn = request->conn;
    int r = request->result;

    if (r < 0 && conn->alive) {
        conn_die(conn, KVC_E_PROTOCOL, "kvcachedd does not take memory back: %s", request->reason);
        r = conn_check(conn);
    }
    free(request);
    return r;
}

static void return_finish(struct request *request)
{
    return_end(request);
}

/* *ret_sent: whether the daemon has, or will get, the message. */
static int send_return(struct kvc_client *client, uint64_t *ids, size_t n, bool wait, bool *ret_sent)
{
    Kvcached__Return body = KVCACHED__RETURN__INIT;
    struct request *request = malloc(sizeof(*request));
    int r;

    if (!request)
        return error_nomem();
    request_init(request, return_receive, return_finish);
    body.extents = ids;
    body.n_extents = n;
    r = conn_ask(client->conn, request, MESSAGE_RETURN, &body.base);
    if (r < 0) {
        free(request);
        return r;
    }
    *ret_sent = true;
    if (!wait)
        return 0;
    r = conn_wait(client->conn, request);
    return request->done ? return_end(request) : r;
}

/* Releases the handles of a backing as far as the driver lets us. */
static int release_handles(struct kvc_client *client, struct backing *backing)
{
    int r = 0;

    for (uint64_t i = 0; i < backing->n_extents; i++) {
        struct extent *extent = &backing->extents[i];
        int one;

        if (extent->state != EXTENT_IMPORTED)
            continue;
        one = gpu_result(client->gpu, client->gpu->driver->cuMemRelease(extent->handle), "cuMemRelease");
        if (one == 0)
            extent->state = EXTENT_GRANTED;
        else
            r = one;
    }
    return r;
}

struct parcel {
    struct extent *extents[RETURN_EXTENTS_MAX];
    uint64_t ids[RETURN_EXTENTS_MAX];
    size_t n;
};

static int send_parcel(struct kvc_client *client, struct parcel *parcel, bool wait)
{
    bool sent = false;
    int r;

    if (parcel->n == 0)
        return 0;
    for (size_t i = 0; i < parcel->n; i++)
        parcel->extents[i]->state = EXTENT_NONE;
    r = send_return(client, parcel->ids, parcel->n, wait, &sent);
    if (!sent && client->conn->alive)
        for (size_t i = 0; i < parcel->n; i++)
            parcel->extents[i]->state = EXTENT_GRANTED;
    parcel->n = 0;
    return r;
}

/* A daemon that doesn't answer is waited for once, not once for each parcel. */
static int return_released(struct kvc_client *client, struct list *backings, bool wait)
{
    struct parcel parcel; /* 8 KiB, of which mostly a few bytes are used: not cleared */
    int r = 0, one;

    parcel.n = 0;
    list_for_each (it, backings) {
        struct backing *backing = container_of(it, struct backing, entry.link);

        for (uint64_t i = 0; i < backing->n_extents; i++) {
            if (backing->extents[i].state != EXTENT_GRANTED)
                continue;
            parcel.extents[parcel.n] = &backing->extents[i];
            parcel.ids[parcel.n++] = backing->extents[i].id;
            if (parcel.n < RETURN_EXTENTS_MAX)
                continue;
            one = send_parcel(client, &parcel, wait && !error_is_unanswered(r));
            r = r ? r : one;
        }
    }
    one = send_parcel(client, &parcel, wait && !error_is_unanswered(r));
    return r ? r : one;
}

int borrow_return(struct kvc_client *client, struct list *backings, bool wait)
{
    struct list mine = LIST_INIT(mine);
    int r = 0, one;

    list_splice(&mine, &client->leaving);
    list_splice(&mine, backings);
    list_for_each (it, &mine) {
        one = release_handles(client, container_of(it, struct backing, entry.link));
        r = r ? r : one;
    }
    one = return_released(client, &mine, wait);
    list_for_each_safe (it, &mine) {
        struct backing *backing = container_of(it, struct backing, entry.link);

        list_unlink(&backing->entry.link);
        if (backing_is(backing, EXTENT_NONE))
            free(backing);
        else
            list_append(&client->leaving, &backing->entry.link);
    }
    return r ? r : one;
}
