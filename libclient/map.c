/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Mapping and unmapping as transactions: all pages of a call, or none.
 *
 * Mapping first finds memory for every page, cheapest first: where the page is still mapped, nothing needs to
 * be done; then what is imported; then what is mapped at other free pages; then the daemon. Only with all of
 * it in hand is anything mapped. When the driver fails, what was mapped by this call is unmapped again;
 * memory that came from the cache returns there, what the daemon gave goes back.
 *
 * Unmapping puts the pages into the cache, which names what exceeds its bounds. Only that is unmapped, with
 * the handles in hand, so that a failure can be undone by mapping it again.
 *
 * A page on which undoing fails is broken: it stays on the bill, is never used again, and is looked at once
 * more when its region is closed.
 *
 * Pages are marked busy while a call has them, since the lock is released while it waits for the daemon.
 */

#include "map.h"

#include <inttypes.h>
#include <string.h>

#include "blocks.h"
#include "clear.h"
#include "fence.h"
#include "orders.h"
#include "remote.h"
#include "reserve.h"

/* ---- Mapping ---- */

struct plan {
    struct kvc_region *region;
    size_t n_hits, n_fresh;
    size_t n_backed;         /* of the fresh ones, from the front */
    size_t n_cached;         /* of the backed ones, from the front: out of the cache */
    struct placement *fresh; /* from the front of `places`; hits are at its end */
    struct placement *hits;
    struct placement *stolen; /* room for as many as fresh */
    struct placement places[];
};

static int not_mappable(uint64_t number, enum page_state state)
{
    if (state == PAGE_BROKEN)
        return error_set(KVC_E_DRIVER, "Page %" PRIu64 " is unusable since the driver failed to unmap it",
                         number);
    return error_set(KVC_E_MAPPED, "Page %" PRIu64 " is mapped already, or named twice", number);
}

/* Marks one page for the plan. */
static int claim(struct plan *plan, uint64_t number)
{
    struct kvc_region *region = plan->region;
    struct page *page;

    if (number >= region->shape->pages)
        return error_set(KVC_E_INVALID, "There is no page %" PRIu64 " in a region of %" PRIu64, number,
                         region->shape->pages);
    page = &region->pages[number];
    if (page->state == PAGE_EMPTY)
        plan->fresh[plan->n_fresh++] = (struct placement){.page = number};
    else if (page->state == PAGE_CACHED)
        plan->hits[plan->n_hits++] = (struct placement){.page = number, .backing = page->backing};
    else
        return not_mappable(number, page->state);
    if (page->state == PAGE_CACHED)
        page_cache_remove(&region->cache, &page->backing->entry);
    else
        region->n_occupied++;
    page->state = PAGE_BUSY;
    return 0;
}

static struct plan *plan_new(struct kvc_region *region, size_t n)
{
    struct plan *plan;

    if (n > SIZE_MAX / 4 / sizeof(plan->places[0]))
        return NULL;
    plan = malloc(sizeof(*plan) + 3 * n * sizeof(plan->places[0]));
    if (!plan)
        return NULL;
    *plan = (struct plan){.region = region, .fresh = plan->places};
    plan->hits = plan->fresh + n;
    plan->stolen = plan->hits + n;
    return plan;
}

static void add_backing(struct plan *plan, struct backing *backing)
{
    backing->entry.page = PAGE_NONE;
    plan->fresh[plan->n_backed++].backing = backing;
}

/* What became of a free page that was to be unmapped. */
static void settle_stolen(struct plan *plan, const struct placement *place)
{
    struct kvc_region *region = plan->region;

    if (backing_is(place->backing, EXTENT_IMPORTED)) {
        region_page_empty(region, place->page);
        add_backing(plan, place->backing);
    } else if (backing_is(place->backing, EXTENT_MAPPED)) {
        page_cache_put(&region->cache, &place->backing->entry);
    } else {
        region_page_broken(region, place->page, place->backing);
    }
}

static int steal(struct plan *plan, size_t n)
{
    CUcontext previous;
    int r;

    space_sort(plan->stolen, n);
    r = gpu_enter(plan->region->client->gpu, &previous);
    if (r == 0) {
        r = space_vacate(plan->region, plan->stolen, n);
        gpu_leave(plan->region->client->gpu, previous);
    }
    for (size_t i = 0; i < n; i++)
        settle_stolen(plan, &plan->stolen[i]);
    return r;
}

static int take_from_cache(struct plan *plan)
{
    size_t n_stolen = 0;
    int r;

    while (plan->n_backed + n_stolen < plan->n_fresh) {
        struct page_cache_entry *entry = page_cache_take(&plan->region->cache);
        struct backing *backing;

        if (!entry)
            break;
        backing = container_of(entry, struct backing, entry);
        if (entry->page == PAGE_NONE)
            add_backing(plan, backing);
        else
            plan->stolen[n_stolen++] = (struct placement){.page = entry->page, .backing = backing};
    }
    r = n_stolen ? steal(plan, n_stolen) : 0;
    plan->n_cached = plan->n_backed;
    return r;
}

static int take_from_daemon(struct plan *plan)
{
    struct list got = LIST_INIT(got);
    int r;

    r = borrow_pages(plan->region, plan->n_fresh - plan->n_backed, &got);
    while (!list_is_empty(&got)) {
        struct backing *backing = list_first(&got, struct backing, entry.link);

        list_unlink(&backing->entry.link);
        add_backing(plan, backing);
    }
    return r;
}

static bool is_shortage(int r)
{
    return r == KVC_E_LIMIT || r == KVC_E_BUDGET || r == KVC_E_DEVICE_MEMORY;
}

/* A region has memory for its pages, and no more: where a refill under way would not fit beside what we ask
 * for, it is what we get. */
static int take_what_there_is(struct plan *plan)
{
    int r;

    do {
        r = take_from_cache(plan);
        if (r == 0 && plan->n_backed < plan->n_fresh)
            r = reserve_await_excess(plan->region);
    } while (r == RESERVE_AWAITED);
    return r;
}

/* Reserves must not be what an engine is refused for: they are given up, and the daemon is asked again. */
static int find_memory(struct plan *plan)
{
    struct kvc_client *client = plan->region->client;
    int r;

    client->n_takers++;
    do {
        r = take_what_there_is(plan);
        if (r == 0 && plan->n_backed < plan->n_fresh)
            r = take_from_daemon(plan);
    } while (is_shortage(r) && (reserve_yield(plan->region, true) || fence_wait_next(client)));
    client->n_takers--;
    blocks_resume(client);
    return r;
}

static int attach(struct plan *plan)
{
    struct gpu *gpu = plan->region->client->gpu;
    CUcontext previous;
    int r;

    if (plan->n_fresh == 0 && !(plan->region->flags & KVC_REGION_ZERO_ON_MAP))
        return 0;
    r = gpu_enter(gpu, &previous);
    if (r < 0)
        return r;
    r = space_attach(plan->region, plan->fresh, plan->n_fresh);
    if (r == 0)
        r = clear_pages(plan->region, plan->fresh, plan->n_fresh);
    if (r == 0)
        r = clear_pages(plan->region, plan->hits, plan->n_hits);
    if (r < 0) {
        error_hold();
        space_vacate(plan->region, plan->fresh, plan->n_fresh);
        error_release();
    }
    gpu_leave(gpu, previous);
    return r;
}

static void undo_fresh(struct plan *plan, size_t i, struct list *leaving)
{
    struct kvc_region *region = plan->region;
    struct placement *place = &plan->fresh[i];

    if (place->backing && !backing_is(place->backing, EXTENT_IMPORTED)) {
        region_page_broken(region, place->page, place->backing);
        return;
    }
    region_page_empty(region, place->page);
    if (i < plan->n_cached)
        page_cache_put(&region->cache, &place->backing->entry);
    else if (place->backing)
        list_append(leaving, &place->backing->entry.link);
}

static void undo(struct plan *plan, bool wait)
{
    struct kvc_region *region = plan->region;
    struct list leaving = LIST_INIT(leaving);

    for (size_t i = 0; i < plan->n_fresh; i++)
        undo_fresh(plan, i, &leaving);
    for (size_t i = 0; i < plan->n_hits; i++) {
        region->pages[plan->hits[i].page].state = PAGE_CACHED;
        page_cache_put(&region->cache, &plan->hits[i].backing->entry);
    }
    error_hold();
    borrow_return(region->client, &leaving, wait);
    error_release();
}

static void commit(struct plan *plan)
{
    for (size_t i = 0; i < plan->n_fresh; i++)
        region_page_mapped(plan->region, plan->fresh[i].page, plan->fresh[i].backing);
    for (size_t i = 0; i < plan->n_hits; i++)
        region_page_mapped(plan->region, plan->hits[i].page, plan->hits[i].backing);
    reserve_want(plan->region);
}

/* Marks all pages for the plan that can be mapped, up to the first that can't. */
static int claim_all(struct plan *plan, const uint64_t *pages, size_t n)
{
    int r = 0;

    for (size_t i = 0; i < n && r == 0; i++)
        r = claim(plan, pages[i]);
    space_sort(plan->fresh, plan->n_fresh);
    return r;
}

/* A page that waits for the GPU can be mapped again when that is over. */
static bool is_any_leaving(const struct kvc_region *region, const uint64_t *pages, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (pages[i] < region->shape->pages && region->pages[pages[i]].state == PAGE_LEAVING)
            return true;
    return false;
}

int map_pages(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    struct plan *plan;
    int r;

    if (client_must_shrink(region->client))
        reserve_trim(region->client, NULL);
    if (is_any_leaving(region, pages, n))
        fence_wait(region->client, region);
    plan = plan_new(region, n);
    if (!plan)
        return error_nomem();
    r = claim_all(plan, pages, n);
    if (r == 0)
        r = find_memory(plan);
    if (r == 0)
        r = attach(plan);
    if (r == 0)
        commit(plan);
    else
        undo(plan, true);
    free(plan);
    return r;
}

static void use(struct plan *plan, struct list *memory)
{
    while (plan->n_backed < plan->n_fresh) {
        struct backing *backing = list_first(memory, struct backing, entry.link);

        list_unlink(&backing->entry.link);
        add_backing(plan, backing);
    }
}

int map_with(struct kvc_region *region, const uint64_t *pages, size_t n, struct list *memory)
{
    struct plan *plan = plan_new(region, n);
    int r;

    r = plan ? claim_all(plan, pages, n) : error_nomem();
    if (r == 0) {
        use(plan, memory);
        r = attach(plan);
    }
    if (r == 0)
        commit(plan);
    else if (plan)
        undo(plan, false);
    error_hold();
    borrow_return(region->client, memory, false);
    error_release();
    free(plan);
    return r;
}

/* Who hands out blocks, or orders from elsewhere, decides alone. */
int map_check_host(const struct kvc_region *region)
{
    if (region->blocks)
        return error_set(KVC_E_INVALID, "The region's pages are mapped and unmapped by its kvc_blocks");
    return orders_refuse(region);
}

KVC_API int kvc_region_map(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    int r;

    if (!region || (n > 0 && !pages))
        return error_set(KVC_E_INVALID, "No region, or no list of pages");
    if (region->remote)
        return remote_map(region, pages, n);
    r = client_enter(region->client);
    if (r < 0)
        return r;
    fence_poll(region->client);
    r = map_check_host(region);
    if (r == 0)
        r = conn_check(region->client->conn);
    if (r == 0 && n > 0)
        r = map_pages(region, pages, n);
    client_leave(region->client);
    return r;
}

/* ---- Unmapping ---- */

/* What has to go: pages that are mapped, and memory that isn't. */
struct leaving {
    struct list imported;
    size_t n;
    struct placement places[];
};

static int release_claims(struct kvc_region *region, const uint64_t *pages, size_t n, int r)
{
    for (size_t i = 0; i < n; i++)
        region->pages[pages[i]].state = PAGE_MAPPED;
    return r;
}

/* Marks all pages of the call, or none. */
static int claim_mapped(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (pages[i] >= region->shape->pages)
            return release_claims(region, pages, i,
                                  error_set(KVC_E_INVALID,
                                            "There is no page %" PRIu64 " in a region of %" PRIu64, pages[i],
                                            region->shape->pages));
        if (region->pages[pages[i]].state != PAGE_MAPPED)
            return release_claims(
                region, pages, i,
                error_set(KVC_E_NOT_MAPPED, "Page %" PRIu64 " is not mapped, or named twice", pages[i]));
        if (region->pages[pages[i]].pins > 0)
            return release_claims(region, pages, i,
                                  error_set(KVC_E_PINNED, "Page %" PRIu64 " is pinned", pages[i]));
        region->pages[pages[i]].state = PAGE_BUSY;
    }
    return 0;
}

int map_set_leaving(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    int r = claim_mapped(region, pages, n);

    for (size_t i = 0; i < n && r == 0; i++)
        region->pages[pages[i]].state = PAGE_LEAVING;
    return r;
}

void map_set_staying(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    for (size_t i = 0; i < n; i++)
        region->pages[pages[i]].state = PAGE_MAPPED;
}

/* Everything passes through the cache, which says what has to go. */
static void choose(struct kvc_region *region, const uint64_t *pages, size_t n, bool keep,
                   struct leaving *leaving)
{
    struct page_cache_entry *entry;

    for (size_t i = 0; i < n; i++) {
        struct page *page = &region->pages[pages[i]];

        page->state = PAGE_CACHED;
        page->backing->entry.page = pages[i];
        page_cache_put(&region->cache, &page->backing->entry);
    }
    while ((entry = keep ? page_cache_evict(&region->cache) : page_cache_empty(&region->cache))) {
        if (entry->page == PAGE_NONE) {
            list_append(&leaving->imported, &entry->link);
            continue;
        }
        region->pages[entry->page].state = PAGE_BUSY;
        leaving->places[leaving->n++] =
            (struct placement){.page = entry->page, .backing = container_of(entry, struct backing, entry)};
    }
    space_sort(leaving->places, leaving->n);
}

/* The call's own pages are the caller's again; the rest returns to the cache. */
static void put_back(struct kvc_region *region, const uint64_t *pages, size_t n, struct leaving *leaving)
{
    for (size_t i = 0; i < n; i++) {
        struct page *page = &region->pages[pages[i]];

        if (page->state == PAGE_CACHED)
            page_cache_remove(&region->cache, &page->backing->entry);
        page->state = PAGE_MAPPED;
        if (!backing_is(page->backing, EXTENT_MAPPED))
            region_page_broken(region, pages[i], page->backing);
    }
    for (size_t i = 0; i < leaving->n; i++) {
        struct placement *place = &leaving->places[i];

        if (region->pages[place->page].state == PAGE_BUSY)
            reserve_put_back(region, place);
    }
    while (!list_is_empty(&leaving->imported)) {
        struct backing *backing = list_first(&leaving->imported, struct backing, entry.link);

        list_unlink(&backing->entry.link);
        page_cache_put(&region->cache, &backing->entry);
    }
}

static int detach(struct kvc_region *region, struct leaving *leaving)
{
    struct gpu *gpu = region->client->gpu;
    CUcontext previous;
    int r;

    if (leaving->n == 0)
        return 0;
    r = gpu_enter(gpu, &previous);
    if (r < 0)
        return r;
    r = space_detach(region, leaving->places, leaving->n);
    if (r < 0)
        space_reattach(region, leaving->places, leaving->n);
    gpu_leave(gpu, previous);
    return r;
}

static int give_back(struct kvc_region *region, struct leaving *leaving, bool wait)
{
    for (size_t i = 0; i < leaving->n; i++) {
        region_page_empty(region, leaving->places[i].page);
        list_append(&leaving->imported, &leaving->places[i].backing->entry.link);
    }
    return borrow_return(region->client, &leaving->imported, wait);
}

/* What the driver will not release, or the host has no memory to talk about, goes back later: the pages are
 * unmapped, so the caller must not be told otherwise. */
static bool is_only_late(struct kvc_client *client, int r)
{
    if (r != KVC_E_DRIVER && r != KVC_E_NOMEM)
        return false;
    client_log(client, KVC_LOG_WARNING, "Memory cannot be given back yet: %s", kvc_last_error());
    return true;
}

static int take_away(struct kvc_region *region, const uint64_t *pages, size_t n, bool keep, bool wait)
{
    _cleanup_free_ struct leaving *leaving = NULL;
    size_t n_max = n + region->cache.n_pages;
    int r;

    if (n_max < n || n_max > SIZE_MAX / 2 / sizeof(leaving->places[0]))
        return error_nomem();
    leaving = malloc(sizeof(*leaving) + n_max * sizeof(leaving->places[0]));
    if (!leaving)
        return error_nomem();
    list_init(&leaving->imported);
    leaving->n = 0;
    r = claim_mapped(region, pages, n);
    if (r < 0)
        return r;
    choose(region, pages, n, keep, leaving);
    r = detach(region, leaving);
    if (r < 0) {
        put_back(region, pages, n, leaving);
        return r;
    }
    region_count_unmapped(region, n);
    r = give_back(region, leaving, wait);
    return is_only_late(region->client, r) ? 0 : r;
}

static bool may_keep(const struct kvc_client *client)
{
    return client->conn->alive && !client_must_shrink(client);
}

int unmap_pages_soon(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    return take_away(region, pages, n, may_keep(region->client), false);
}

int unmap_pages(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    struct kvc_client *client = region->client;
    bool keep = may_keep(client);
    int r;

    r = take_away(region, pages, n, keep, true);
    if (r < 0 || keep)
        return r;
    r = reserve_trim(client, region);
    return is_only_late(client, r) ? 0 : r;
}

int map_undo(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    return take_away(region, pages, n, false, false);
}

KVC_API int kvc_region_unmap(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    int r;

    if (!region || (n > 0 && !pages))
        return error_set(KVC_E_INVALID, "No region, or no list of pages");
    if (region->remote)
        return remote_unmap(region, pages, n);
    r = client_enter(region->client);
    if (r < 0)
        return r;
    fence_poll(region->client);
    r = map_check_host(region);
    if (r == 0)
        r = n > 0 ? unmap_pages(region, pages, n) : conn_check(region->client->conn);
    client_leave(region->client);
    return r;
}
