/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A reserve is a courtesy to the engine's next call, never its rival: it is asked for only where status page
 * and bounds have room, not while a call waits for memory, and it is given up when a call would be refused
 * for it. A refill that was refused is tried again when the status page shows something else, or after the
 * next map; one whose memory could not be imported only after the next map, since giving that memory back
 * makes the status page show something else. Nothing here ever waits for a clock.
 */

#include "reserve.h"

#include <string.h>

#include "base/arith.h"
#include "blocks.h"

#define TRIM_BATCH 64

/* ---- Filling ---- */

void reserve_want(struct kvc_region *region)
{
    region->refill_wanted = region->client->min_reserved_pages > 0 && !region->orders;
    region->refill_refused = false;
}

/* How many pages to ask for now. */
static uint64_t missing(const struct kvc_region *region)
{
    const struct kvc_client *client = region->client;
    uint64_t mappable = region->shape->pages - region->n_mapped;
    uint64_t wanted = u64_min(client->min_reserved_pages, mappable), room_bytes;
    struct status_values status;

    if (region->blocks || !region->refill_wanted || region->refill || client->n_takers > 0 ||
        !client->conn->alive)
        return 0;
    wanted = page_cache_shortfall(&region->cache, wanted);
    if (wanted == 0)
        return 0;
    status_page_read(client->status, &status);
    if (client_must_shrink(client) ||
        (region->refill_refused && memcmp(&status, &region->refused_at, sizeof(status)) == 0))
        return 0;
    room_bytes = u64_sub_floor(status.limit_bytes, status.used_bytes);
    return u64_min(u64_min(wanted, region->take_max), room_bytes / region->shape->slot_bytes);
}

bool reserve_wants_refill(const struct kvc_region *region)
{
    return missing(region) > 0;
}

void reserve_refill(struct kvc_region *region)
{
    uint64_t n = missing(region);

    if (n > 0 && borrow_later(region, (uint32_t)n, false, &region->refill) < 0)
        region->refill_wanted = false;
}

/* Imported pages go into the cache as far as they fit now. */
static void keep(struct kvc_region *region, struct list *pages)
{
    uint64_t room = region->blocks ? UINT64_MAX : page_cache_shortfall(&region->cache, UINT64_MAX);

    if (client_must_shrink(region->client))
        room = 0;

    for (; room > 0 && !list_is_empty(pages); room--) {
        struct backing *backing = list_first(pages, struct backing, entry.link);

        list_unlink(&backing->entry.link);
        page_cache_put(&region->cache, &backing->entry);
    }
}

void reserve_arrived(struct kvc_region *region, int result, struct list *pages)
{
    region->refill = NULL;
    if (result == KVC_E_DRIVER || result == KVC_E_NOFILE) {
        region->refill_wanted = false;
    } else if (result < 0) {
        region->refill_refused = true;
        status_page_read(region->client->status, &region->refused_at);
    }
    if (result < 0)
        blocks_refused(region, result);
    keep(region, pages);
    borrow_return(region->client, pages, false);
    blocks_note_ahead(region);
    region->work_wanted = true;
}

/* ---- Emptying ---- */

void reserve_put_back(struct kvc_region *region, const struct placement *place)
{
    struct backing *backing = place->backing;

    if (backing_is(backing, EXTENT_MAPPED)) {
        region->pages[place->page].state = PAGE_CACHED;
        page_cache_put(&region->cache, &backing->entry);
    } else if (backing_is(backing, EXTENT_IMPORTED)) {
        region_page_empty(region, place->page);
        backing->entry.page = PAGE_NONE;
        page_cache_put(&region->cache, &backing->entry);
    } else {
        region_page_broken(region, place->page, backing);
    }
}

/* Takes up to TRIM_BATCH mapped pages out of the cache, and every imported one on the way. */
static size_t pick(struct kvc_region *region, struct placement *places, struct list *leaving)
{
    struct page_cache_entry *entry;
    size_t n = 0;

    while (n < TRIM_BATCH && (entry = page_cache_empty(&region->cache))) {
        struct backing *backing = container_of(entry, struct backing, entry);

        if (entry->page == PAGE_NONE)
            list_append(leaving, &entry->link);
        else
            places[n++] = (struct placement){.page = entry->page, .backing = backing};
    }
    space_sort(places, n);
    return n;
}

static int detach(struct kvc_region *region, const struct placement *places, size_t n, struct list *leaving)
{
    struct gpu *gpu = region->client->gpu;
    CUcontext previous;
    int r;

    r = gpu_enter(gpu, &previous);
    if (r == 0) {
        r = space_vacate(region, places, n);
        gpu_leave(gpu, previous);
    }
    for (size_t i = 0; i < n; i++) {
        if (!backing_is(places[i].backing, EXTENT_IMPORTED)) {
            reserve_put_back(region, &places[i]);
            continue;
        }
        region_page_empty(region, places[i].page);
        list_append(leaving, &places[i].backing->entry.link);
    }
    return r;
}

int reserve_empty_region(struct kvc_region *region, struct list *leaving)
{
    struct placement places[TRIM_BATCH];
    size_t n;
    int r = 0;

    /* What comes out of a lease the daemon may count on: it goes its way. */
    if (region->refill && !region->refill->leased) {
        borrow_abandon(region->refill);
        region->refill = NULL;
    }
    region->refill_wanted = false;
    while (r == 0 && (n = pick(region, places, leaving)) > 0)
        r = detach(region, places, n, leaving);
    blocks_note_ahead(region);
    return r;
}

static int trim_regions(struct kvc_client *client, const struct kvc_region *except, struct list *leaving)
{
    int r = 0, one;

    list_for_each (it, &client->regions) {
        struct kvc_region *region = container_of(it, struct kvc_region, link);

        one = region == except ? 0 : reserve_empty_region(region, leaving);
        r = r ? r : one;
    }
    return r;
}

int reserve_empty(struct kvc_client *client, struct list *leaving)
{
    return trim_regions(client, NULL, leaving);
}

int reserve_trim(struct kvc_client *client, const struct kvc_region *except)
{
    struct list leaving = LIST_INIT(leaving);
    int r, one;

    r = trim_regions(client, except, &leaving);
    one = borrow_return(client, &leaving, true);
    return r ? r : one;
}

/* ---- Giving way ---- */

static bool is_awaited(const struct kvc_region *region)
{
    return (region->refill && !region->refill->request.expired) || lease_is_asked(region);
}

/* Memory that nobody wants any more goes back behind its arrival, but until then it is the instance's. */
static bool is_abandoned(const struct take *take)
{
    return !take->region && !take->request.waited && !take->request.done && !take->request.expired;
}

static bool is_any_abandoned(const struct kvc_client *client)
{
    list_for_each (it, &client->takes)
        if (is_abandoned(container_of(it, struct take, link)))
            return true;
    return false;
}

static bool is_any_awaited(const void *data)
{
    const struct kvc_client *client = data;

    for (const struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        if (is_awaited(region))
            return true;
    return is_any_abandoned(client);
}

static void start_time(struct kvc_client *client)
{
    list_for_each (it, &client->takes) {
        struct take *take = container_of(it, struct take, link);

        if (is_abandoned(take))
            conn_start_time(client->conn, &take->request);
    }
    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));) {
        if (region->refill)
            conn_start_time(client->conn, &region->refill->request);
        lease_start_time(region);
    }
}

static bool is_refilled(const struct kvc_region *region, const struct take *take)
{
    return take->region_id == region->id && (take == region->refill || is_abandoned(take)) &&
           !take->request.expired;
}

/* Pages that are on their way to a region, and for none of its pages. */
static uint64_t pages_to_come(const struct kvc_region *region)
{
    uint64_t pages = 0;

    list_for_each (it, &region->client->takes) {
        const struct take *take = container_of(it, struct take, link);

        pages += is_refilled(region, take) ? take->n_pages : 0;
    }
    return pages;
}

static bool is_more_to_come(const void *data)
{
    return pages_to_come(data) > 0;
}

int reserve_await_excess(struct kvc_region *region)
{
    uint64_t to_come = pages_to_come(region);
    int r;

    if (to_come == 0 || region->n_occupied + to_come <= region->shape->pages)
        return 0;
    start_time(region->client);
    r = notice_wait_while(region->client, is_more_to_come, region, UINT64_MAX);
    return r < 0 ? r : RESERVE_AWAITED;
}

static bool is_region_awaited(const void *data)
{
    return is_awaited(data);
}

int reserve_await(struct kvc_region *region, uint64_t deadline_ns)
{
    int r;

    if (!is_awaited(region))
        return 0;
    start_time(region->client);
    r = notice_wait_while(region->client, is_region_awaited, region, deadline_ns);
    return r < 0 ? r : RESERVE_AWAITED;
}

static uint64_t leased(const struct kvc_region *region)
{
    struct lease lease = lease_of(region);

    return (uint64_t)lease.offered + lease.claimed;
}

/* What the block allocators of the other regions have promised nobody. */
static bool take_from_blocks(struct kvc_client *client, const struct kvc_region *except, struct list *leaving)
{
    bool anything = false;

    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        if (region != except && region->blocks)
            anything |= blocks_yield(region->blocks, region, leaving);
    return anything;
}

bool reserve_yield(struct kvc_region *region, bool own_is_used)
{
    struct kvc_client *client = region->client;
    struct list leaving = LIST_INIT(leaving);
    uint64_t before = leased(region);
    bool anything = is_any_abandoned(client);

    error_hold();
    start_time(client);
    notice_wait_while(client, is_any_awaited, client, UINT64_MAX);
    trim_regions(client, own_is_used ? region : NULL, &leaving);
    anything |= take_from_blocks(client, region, &leaving);
    anything |= !list_is_empty(&leaving) || region->cache.n_pages > 0 || leased(region) > before;
    borrow_return(client, &leaving, true);
    anything |= blocks_give(client, region->blocks, UINT64_MAX) > 0;
    error_release();
    return anything && client->conn->alive;
}
