/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Making true what the allocator of blocks decides: it plans pages and sheds them under the lock of the
 * kvc_blocks; here they are mapped and unmapped without it, and what became of them is told.
 *
 * A page exists when it is mapped in every region. Where one fails the others are undone, so that a failure
 * leaves nothing behind; what cannot be undone is broken, and never used again.
 */

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/arith.h"
#include "blocks.h"
#include "blocks_group.h"
#include "map.h"
#include "region.h"
#include "space.h"

#define BATCH 64

/* ---- What became of pages ---- */

enum fate {
    FATE_MAPPED, /* in all regions */
    FATE_EMPTY,  /* in none */
    FATE_DOUBT,  /* some worker has not answered, or cannot undo */
    FATE_BROKEN, /* neither, or nobody knows */
};

static enum fate fate_in(const struct kvc_region *region, uint64_t page)
{
    switch (region->pages[page].state) {
    case PAGE_MAPPED:
        return FATE_MAPPED;
    case PAGE_EMPTY:
    case PAGE_CACHED:
        return FATE_EMPTY;
    default:
        return FATE_BROKEN;
    }
}

static enum fate fate_in_group(struct group *group, uint64_t page)
{
    switch (group_page(group, page)) {
    case GROUP_PAGE_MAPPED:
        return FATE_MAPPED;
    case GROUP_PAGE_EMPTY:
        return FATE_EMPTY;
    default:
        return FATE_DOUBT;
    }
}

static void merge_fates(const struct kvc_region *region, const uint64_t *pages, size_t n, bool first,
                        enum fate *fates)
{
    for (size_t i = 0; i < n; i++) {
        enum fate fate = fate_in(region, pages[i]);

        fates[i] = first || fates[i] == fate ? fate : FATE_BROKEN;
    }
}

static void tell_fate(struct kvc_blocks *blocks, uint64_t page, enum fate fate)
{
    enum block_alloc_state state = block_alloc_page_state(blocks->alloc, page);

    switch (fate) {
    case FATE_MAPPED:
        if (state == BLOCK_ALLOC_UNMAPPING)
            block_alloc_keep(blocks->alloc, &page, 1);
        else
            block_alloc_mapped(blocks->alloc, &page, 1);
        blocks->counters.mapped_total += state == BLOCK_ALLOC_MAPPING;
        break;
    case FATE_EMPTY:
        block_alloc_unmapped(blocks->alloc, &page, 1);
        blocks->counters.unmapped_total += state == BLOCK_ALLOC_UNMAPPING;
        break;
    case FATE_DOUBT:
        block_alloc_doubt(blocks->alloc, &page, 1);
        break;
    case FATE_BROKEN:
        block_alloc_broken(blocks->alloc, &page, 1);
        break;
    }
}

/* Returns how many are mapped nowhere. */
static size_t tell_fates(struct kvc_blocks *blocks, const uint64_t *pages, size_t n, const enum fate *fates)
{
    size_t n_empty = 0;

    pthread_mutex_lock(&blocks->lock);
    for (size_t i = 0; i < n; i++) {
        tell_fate(blocks, pages[i], fates[i]);
        n_empty += fates[i] == FATE_EMPTY;
    }
    blocks_publish(blocks);
    pthread_cond_broadcast(&blocks->changed);
    pthread_mutex_unlock(&blocks->lock);
    return n_empty;
}

/* ---- All regions ---- */

static int in_region(struct kvc_region *region, int (*call)(struct kvc_region *, const uint64_t *, size_t),
                     const uint64_t *pages, size_t n)
{
    struct kvc_client *client = region->client;
    int r = client_enter(client);

    if (r < 0)
        return r;
    r = call(region, pages, n);
    client_leave(client);
    return r;
}

static int map_if_alive(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    int r = conn_check(region->client->conn);

    return r < 0 ? r : map_pages(region, pages, n);
}

/* The daemon has not confirmed, but the pages are unmapped. */
static bool is_done_all_the_same(int r)
{
    return error_is_unanswered(r) || r == KVC_E_DISCONNECTED;
}

size_t blocks_judge(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    enum fate fates[BATCH];

    for (size_t i = 0; i < n && blocks->group; i++)
        fates[i] = fate_in_group(blocks->group, pages[i]);
    for (size_t i = 0; i < blocks->n_regions && !blocks->group; i++) {
        struct kvc_client *client = blocks->regions[i]->client;

        client_enter(client);
        merge_fates(blocks->regions[i], pages, n, i == 0, fates);
        client_leave(client);
    }
    return tell_fates(blocks, pages, n, fates);
}

/* At most BATCH pages, in all regions or none. The allocator isn't told. */
static int map_batch(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    size_t done = 0;
    int r = 0;

    if (blocks->group)
        return blocks_group_map(blocks, pages, n);

    while (done < blocks->n_regions && r == 0) {
        r = in_region(blocks->regions[blocks->order[done]], map_if_alive, pages, n);
        done += r == 0;
    }
    if (r < 0) {
        error_hold();
        while (done-- > 0)
            in_region(blocks->regions[blocks->order[done]], unmap_pages, pages, n);
        error_release();
    }
    return r;
}

/* Where one fails first, others would only be torn apart. */
static int unmap_here(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    int r = 0;

    for (size_t i = 0; i < blocks->n_regions; i++) {
        int one = in_region(blocks->regions[i], unmap_pages, pages, n);

        r = r ? r : one;
        if (one < 0 && !is_done_all_the_same(one) && i == 0)
            break;
    }
    return r;
}

/* *ret_gone: the pages that are mapped nowhere any more. */
static int unmap_batch(struct kvc_blocks *blocks, const uint64_t *pages, size_t n, size_t *ret_gone)
{
    int r = blocks->group ? blocks_group_unmap(blocks, pages, n) : unmap_here(blocks, pages, n);

    *ret_gone = blocks_judge(blocks, pages, n);
    return r;
}

static void unmap_all(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    if (blocks->group)
        blocks_group_unmap(blocks, pages, n);
    for (size_t i = 0; i < blocks->n_regions && !blocks->group; i++)
        in_region(blocks->regions[i], unmap_pages, pages, n);
}

/* Until all of them are mapped they count as being mapped: nobody else sees free pages in what a call that
 * may still fail has got so far, neither other threads nor who asks for memory back. */
int blocks_map(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    size_t done = 0;
    int r = 0;

    while (done < n && r == 0) {
        r = map_batch(blocks, pages + done, u64_min(n - done, BATCH));
        done += r == 0 ? u64_min(n - done, BATCH) : 0;
    }
    error_hold();
    for (size_t i = 0; i < n; i += BATCH) {
        if (r < 0 && i < done)
            unmap_all(blocks, pages + i, u64_min(n - i, BATCH));
        blocks_judge(blocks, pages + i, u64_min(n - i, BATCH));
    }
    error_release();
    return r;
}

/* ---- Growing ---- */

struct need {
    size_t n;
    uint32_t *ids; /* NULL: they are only to be free */
    bool poke;
};

/* With the lock. */
static bool is_met(struct kvc_blocks *blocks, struct need *need)
{
    if (!need->ids)
        return block_alloc_free_blocks(blocks->alloc) >= need->n;
    return blocks_take(blocks, need->n, need->ids, &need->poke) == 0;
}

static int no_blocks(const struct block_alloc_counts *counts, const struct need *need)
{
    if (counts->doubt_pages > 0)
        return error_set(KVC_E_IN_DOUBT,
                         "There are not %zu free blocks, and workers have not answered about %" PRIu64
                         " pages",
                         need->n, counts->doubt_pages);
    return error_set(KVC_E_NO_BLOCKS, "There are not %zu free blocks in all pages that may be used", need->n);
}

/* With the lock, which is released until another thread has done something, or for a moment. */
static int wait_for_others(struct kvc_blocks *blocks)
{
    const struct interrupt *interrupt = &blocks->regions[0]->client->conn->interrupt;
    uint64_t ask_ns = interrupt_due_ns(interrupt);
    struct timespec until = {
        .tv_sec = (time_t)(ask_ns / NSEC_PER_SEC),
        .tv_nsec = (long)(ask_ns % NSEC_PER_SEC),
    };
    int r;

    if (ask_ns == UINT64_MAX) {
        pthread_cond_wait(&blocks->changed, &blocks->lock);
        return 0;
    }
    if (pthread_cond_timedwait(&blocks->changed, &blocks->lock, &until) != ETIMEDOUT)
        return 0;
    pthread_mutex_unlock(&blocks->lock);
    r = interrupt_ask(interrupt);
    pthread_mutex_lock(&blocks->lock);
    return r;
}

/* With the lock, which is released while other threads are at work on what is missing. *ret_n 0: met. */
static int plan(struct kvc_blocks *blocks, struct need *need, uint64_t **ret_pages, size_t *ret_n)
{
    struct block_alloc_counts counts;
    _cleanup_free_ uint64_t *pages = NULL;

    for (;;) {
        uint64_t missing;
        int r;

        *ret_n = 0;
        if (blocks_are_over(blocks))
            return group_check(blocks->group);
        if (is_met(blocks, need))
            return 0;
        missing = block_alloc_missing(blocks->alloc, need->n);
        block_alloc_count(blocks->alloc, &counts);
        if (missing <= counts.empty_pages) {
            free(pages);
            pages = calloc(missing, sizeof(*pages));
            r = pages ? block_alloc_plan(blocks->alloc, missing, pages) : -ENOMEM;
            if (r != 0)
                return error_nomem();
            *ret_n = missing;
            *ret_pages = steal_pointer(pages);
            blocks_publish(blocks);
            return 0;
        }
        if (counts.mapping_pages + counts.unmapping_pages == 0)
            return no_blocks(&counts, need);
        r = wait_for_others(blocks);
        if (r < 0)
            return r;
    }
}

/* Others may have freed, or mapped, what we were refused, or are about to; or a part of it, and then less is
 * wanted. */
static int settle(struct kvc_blocks *blocks, struct need *need, size_t n_refused, int r, bool *ret_done)
{
    struct block_alloc_counts counts;
    bool is_less = false;
    int waited = 0;

    *ret_done = false;
    pthread_mutex_lock(&blocks->lock);
    while (!blocks_are_over(blocks)) {
        *ret_done = is_met(blocks, need);
        is_less = block_alloc_missing(blocks->alloc, need->n) < n_refused;
        block_alloc_count(blocks->alloc, &counts);
        if (*ret_done || is_less || counts.mapping_pages == 0 || waited < 0)
            break;
        waited = wait_for_others(blocks);
    }
    if (*ret_done || (is_less && r != KVC_E_INTERRUPTED))
        r = 0;
    else if (waited < 0)
        r = waited;
    *ret_done |= r < 0;
    blocks->counters.refused_total += r < 0;
    pthread_mutex_unlock(&blocks->lock);
    return r;
}

static int grow_once(struct kvc_blocks *blocks, struct need *need, bool *ret_done)
{
    _cleanup_free_ uint64_t *pages = NULL;
    size_t n = 0;
    int r;

    pthread_mutex_lock(&blocks->lock);
    r = plan(blocks, need, &pages, &n);
    blocks->counters.waited_total += n > 0;
    pthread_mutex_unlock(&blocks->lock);
    *ret_done = n == 0;
    if (n == 0)
        return r;
    r = blocks_map(blocks, pages, n);
    if (r == 0) {
        pthread_mutex_lock(&blocks->lock);
        *ret_done = is_met(blocks, need);
        blocks->resting = false;
        blocks->wanted_pages = u64_sub_floor(blocks->wanted_pages, n);
        atomic_store(&blocks->in_vain, false);
        prealloc_used(&blocks->prealloc, n, lease_now_ns());
        pthread_mutex_unlock(&blocks->lock);
        need->poke = blocks->prealloc_on;
    }
    return r < 0 ? settle(blocks, need, n, r, ret_done) : 0;
}

int blocks_grow(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids)
{
    struct need need = {.n = n, .ids = ret_ids};
    bool done = false;
    int r = 0;

    if (blocks->group)
        blocks_group_settle(blocks);
    while (!done && r == 0)
        r = grow_once(blocks, &need, &done);
    if (need.poke)
        blocks_poke(blocks);
    return r;
}

/* ---- Shrinking ---- */

static uint64_t pages_of(const struct block_alloc_counts *counts, uint64_t n_blocks)
{
    /* Where blocks lie across, a page may have one less. */
    uint64_t least = u64_max(counts->page_blocks, 2) - 1;

    return n_blocks / least + (n_blocks % least != 0);
}

bool blocks_is_promised(const struct kvc_blocks *blocks)
{
    return atomic_load(&blocks->report_until_ns) > conn_now_ns() && !blocks_are_over(blocks);
}

/* Free pages that a report counts on, if it holds. */
static uint64_t promised_pages(struct kvc_blocks *blocks)
{
    struct block_alloc_counts counts;
    uint64_t others;

    if (!blocks_is_promised(blocks))
        return 0;
    block_alloc_count(blocks->alloc, &counts);
    others = u64_sub_floor(counts.free_blocks, counts.free_pages * counts.page_blocks);
    return pages_of(&counts, u64_sub_floor(atomic_load(&blocks->promised_blocks), others));
}

/* A report that was made meanwhile counted on them: see blocks_report.c. */
static bool is_too_many(struct kvc_blocks *blocks)
{
    return blocks_is_promised(blocks) &&
           block_alloc_free_blocks(blocks->alloc) + (uint32_t)atomic_load(&blocks->claim_view) <
               atomic_load(&blocks->promised_blocks);
}

/* With the lock. */
static size_t pick(struct kvc_blocks *blocks, uint64_t keep, size_t max, uint64_t *pages)
{
    size_t n;

    atomic_store(&blocks->shedding, true);
    n = block_alloc_shed(blocks->alloc, u64_max(keep, promised_pages(blocks)), max, pages);
    if (n > 0 && is_too_many(blocks)) {
        block_alloc_keep(blocks->alloc, pages, n);
        n = 0;
    }
    if (n > 0)
        blocks_publish(blocks);
    atomic_store(&blocks->shedding, false);
    return n;
}

/* Whether there is more to come after this: a worker that does not answer is waited for once. */
static bool is_worth_going_on(const struct kvc_blocks *blocks, int r)
{
    return r == 0 || blocks_are_over(blocks) || (is_done_all_the_same(r) && !blocks->group);
}

/* *n: the pages to go at most, and then those that went. */
static int shrink(struct kvc_blocks *blocks, uint64_t keep, uint64_t *n_pages)
{
    uint64_t pages[BATCH], max = *n_pages;
    size_t n, n_max, n_gone;
    int r = 0;

    *n_pages = 0;
    do {
        n_max = u64_min(max - *n_pages, BATCH);
        n_gone = 0;
        pthread_mutex_lock(&blocks->lock);
        n = pick(blocks, keep, n_max, pages);
        pthread_mutex_unlock(&blocks->lock);
        if (n > 0)
            r = unmap_batch(blocks, pages, n, &n_gone);
        *n_pages += n_gone;
    } while (n_gone > 0 && n == n_max && is_worth_going_on(blocks, r));
    return r;
}

int blocks_shrink(struct kvc_blocks *blocks, uint64_t keep)
{
    uint64_t n = UINT64_MAX;

    if (blocks->group)
        blocks_group_settle(blocks);
    return shrink(blocks, keep, &n);
}

uint64_t blocks_shrink_by(struct kvc_blocks *blocks, uint64_t max)
{
    error_hold();
    shrink(blocks, 0, &max);
    error_release();
    return max;
}

static bool must_shrink(const struct kvc_blocks *blocks)
{
    if (blocks_are_over(blocks))
        return true;
    for (size_t i = 0; i < blocks->n_regions; i++)
        if (client_must_shrink(blocks->regions[i]->client))
            return true;
    return false;
}

void blocks_tidy(struct kvc_blocks *blocks)
{
    error_hold();
    blocks_shrink(blocks, must_shrink(blocks) ? 0 : blocks->max_free_pages);
    error_release();
}

/* ---- For whoever holds the client's lock ---- */

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static size_t place(struct kvc_region *region, uint64_t *pages, size_t n, struct placement *places)
{
    qsort(pages, n, sizeof(*pages), compare);
    for (size_t i = 0; i < n; i++)
        places[i] = (struct placement){.page = pages[i], .backing = region->pages[pages[i]].backing};
    return n;
}

static void take_out(struct kvc_region *region, const struct placement *place, struct list *leaving)
{
    if (backing_is(place->backing, EXTENT_IMPORTED)) {
        region_count_unmapped(region, 1);
        region_page_empty(region, place->page);
        list_append(leaving, &place->backing->entry.link);
    } else if (!backing_is(place->backing, EXTENT_MAPPED)) {
        region_page_broken(region, place->page, place->backing);
    }
}

static void detach(struct kvc_region *region, uint64_t *pages, size_t n, struct list *leaving)
{
    struct placement places[BATCH];
    CUcontext previous;

    place(region, pages, n, places);
    if (gpu_enter(region->client->gpu, &previous) < 0)
        return;
    space_vacate(region, places, n);
    gpu_leave(region->client->gpu, previous);
    for (size_t i = 0; i < n; i++)
        take_out(region, &places[i], leaving);
}

int blocks_pin(struct kvc_blocks *blocks, uint64_t first, uint64_t n, bool down)
{
    int r;

    pthread_mutex_lock(&blocks->lock);
    r = (down ? block_alloc_unpin : block_alloc_pin)(blocks->alloc, first, n);
    blocks_publish(blocks);
    pthread_mutex_unlock(&blocks->lock);
    return r;
}

uint64_t blocks_shed(struct kvc_blocks *blocks, uint64_t max, struct list *leaving)
{
    uint64_t pages[BATCH], total = 0;
    enum fate fates[BATCH];
    size_t n, n_gone;

    if (!blocks_are_alone(blocks))
        return 0;
    do {
        pthread_mutex_lock(&blocks->lock);
        n = pick(blocks, 0, u64_min(max - total, BATCH), pages);
        pthread_mutex_unlock(&blocks->lock);
        n_gone = 0;
        if (n > 0) {
            detach(blocks->regions[0], pages, n, leaving);
            merge_fates(blocks->regions[0], pages, n, true, fates);
            n_gone = tell_fates(blocks, pages, n, fates);
        }
        total += n_gone;
    } while (n_gone > 0 && total < max);
    return total;
}

bool blocks_yield(struct kvc_blocks *blocks, struct kvc_region *region, struct list *leaving)
{
    uint64_t n = 0;

    pthread_mutex_lock(&blocks->lock);
    atomic_store(&blocks->shedding, true);
    if (!blocks_is_promised(blocks))
        n = lease_give_up(region, UINT32_MAX);
    blocks_publish(blocks);
    atomic_store(&blocks->shedding, false);
    pthread_mutex_unlock(&blocks->lock);
    return blocks_shed(blocks, UINT64_MAX, leaving) + n > 0;
}
