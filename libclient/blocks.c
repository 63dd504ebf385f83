/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the engine calls all the time: taking blocks of mapped pages, and giving them back. None of it makes a
 * system call or touches a client's lock.
 */

#include "blocks.h"

#include <inttypes.h>
#include <string.h>

#include "base/arith.h"
#include "group.h"
#include "region.h"

static bool is_forked(const struct kvc_blocks *blocks)
{
    return *blocks->ours == 0;
}

int blocks_check(const struct kvc_blocks *blocks)
{
    if (!blocks)
        return error_set(KVC_E_INVALID, "No kvc_blocks");
    if (is_forked(blocks))
        return error_set(KVC_E_FORKED,
                         "The handle belongs to the process that opened it, not to its forked child");
    return 0;
}

int blocks_check_usable(const struct kvc_blocks *blocks)
{
    int r = blocks_check(blocks);

    return r == 0 && blocks->group ? group_check(blocks->group) : r;
}

/* ---- With the lock ---- */

bool blocks_are_alone(const struct kvc_blocks *blocks)
{
    return blocks->n_regions == 1 && !blocks->group;
}

/* What a notice would bring back; for a moment too much, where something is on its way, but never too little,
 * since others are refused then. */
static void hint(struct kvc_blocks *blocks, const struct block_alloc_counts *counts)
{
    for (size_t i = 0; i < blocks->n_regions; i++)
        lease_hint(blocks->regions[i], counts->sheddable_pages + blocks->regions[i]->ahead_pages,
                   counts->pinned_pages);
}

static void give_up_claims(struct kvc_blocks *blocks)
{
    for (size_t i = 0; i < blocks->n_regions; i++)
        lease_give_up(blocks->regions[i], UINT32_MAX);
}

void blocks_publish(struct kvc_blocks *blocks)
{
    struct block_alloc_counts counts;
    uint64_t claimed;

    if (blocks_are_over(blocks))
        give_up_claims(blocks);
    claimed = blocks_least_lease(blocks).claimed;
    block_alloc_count(blocks->alloc, &counts);
    hint(blocks, &counts);
    blocks->low_pages = counts.free_pages;
    atomic_store(&blocks->claim_view, claimed << 32 | block_alloc_gain(blocks->alloc, claimed));
}

/* Taken off before they are taken: a report that is being made may count them still, and then promises too
 * much of what it has itself; the other way round it would promise too little. */
static void spend_promise(struct kvc_blocks *blocks, uint64_t n)
{
    uint64_t promised = atomic_load_explicit(&blocks->promised_blocks, memory_order_relaxed);

    while (promised > 0 &&
           !atomic_compare_exchange_weak(&blocks->promised_blocks, &promised, u64_sub_floor(promised, n)))
        ;
}

static void hint_again(struct kvc_blocks *blocks)
{
    struct block_alloc_counts counts;

    block_alloc_count(blocks->alloc, &counts);
    hint(blocks, &counts);
}

void blocks_set_ahead(struct kvc_blocks *blocks, struct kvc_region *region, uint64_t pages)
{
    region->ahead_pages = pages;
    hint_again(blocks);
}

/* Pages that come and go at the edge are not used up: only a new low counts. True: it is one. */
static bool note_taken(struct kvc_blocks *blocks)
{
    uint64_t pages = block_alloc_free_pages(blocks->alloc);

    hint_again(blocks);
    if (pages >= blocks->low_pages)
        return false;
    blocks->resting = false;
    prealloc_used(&blocks->prealloc, blocks->low_pages - pages, lease_now_ns());
    blocks->low_pages = pages;
    return blocks->prealloc_on || !blocks_are_alone(blocks);
}

#define EDGE_PAGES 2

static void note_given(struct kvc_blocks *blocks)
{
    uint64_t pages = block_alloc_free_pages(blocks->alloc);

    blocks->low_pages = u64_max(blocks->low_pages, u64_sub_floor(pages, EDGE_PAGES));
    hint_again(blocks);
}

int blocks_take(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids, bool *ret_poke)
{
    uint64_t pages = block_alloc_free_pages(blocks->alloc);
    int r;

    *ret_poke = false;
    if (n > block_alloc_free_blocks(blocks->alloc))
        return BLOCK_ALLOC_E_SHORT;
    spend_promise(blocks, n);
    r = block_alloc_take(blocks->alloc, n, ret_ids);
    if (block_alloc_free_pages(blocks->alloc) != pages)
        *ret_poke = note_taken(blocks);
    return r;
}

/* ---- Allocating and freeing ---- */

/* From mapped pages. BLOCK_ALLOC_E_SHORT: there are not so many. */
static int alloc_mapped(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids)
{
    bool poke;
    int r = blocks_check_usable(blocks);

    if (r < 0)
        return r;
    if (n > 0 && !ret_ids)
        return error_set(KVC_E_INVALID, "Nowhere to put the blocks");
    pthread_mutex_lock(&blocks->lock);
    r = blocks_take(blocks, n, ret_ids, &poke);
    pthread_mutex_unlock(&blocks->lock);
    if (poke)
        blocks_poke(blocks);
    return r;
}

KVC_API int kvc_blocks_alloc(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids)
{
    int r = alloc_mapped(blocks, n, ret_ids);

    return r <= 0 ? r : blocks_grow(blocks, n, ret_ids);
}

KVC_API int kvc_blocks_try_alloc(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids)
{
    int r = alloc_mapped(blocks, n, ret_ids);

    return r <= 0 ? r : error_set(KVC_E_NO_BLOCKS, "There are not %zu free blocks in mapped pages", n);
}

/* *ret_untidy: pages have come free, perhaps more than are to be kept. */
static int free_mapped(struct kvc_blocks *blocks, const uint32_t *ids, size_t n, uint64_t epoch,
                       int *ret_untidy)
{
    uint64_t pages, freed;
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    if (n > 0 && !ids)
        return error_set(KVC_E_INVALID, "No list of blocks");
    pthread_mutex_lock(&blocks->lock);
    pages = block_alloc_free_pages(blocks->alloc);
    r = block_alloc_give(blocks->alloc, ids, n, epoch);
    freed = block_alloc_free_pages(blocks->alloc) - pages;
    if (freed > 0)
        note_given(blocks);
    /* A page beyond a resize is no free one; whether there are such is worth a look only then. */
    freed |= blocks->resized;
    pthread_mutex_unlock(&blocks->lock);
    if (r != 0)
        return error_set(KVC_E_NOT_ALLOCATED, "A block is not allocated, or named twice");
    *ret_untidy = freed > 0;
    return 0;
}

KVC_API int kvc_blocks_free(struct kvc_blocks *blocks, const uint32_t *ids, size_t n, uint64_t epoch)
{
    int untidy, r = free_mapped(blocks, ids, n, epoch, &untidy);

    if (r == 0 && untidy)
        blocks_tidy(blocks);
    return r;
}

KVC_API int kvc_blocks_try_free(struct kvc_blocks *blocks, const uint32_t *ids, size_t n, uint64_t epoch,
                                int *ret_untidy)
{
    if (!ret_untidy)
        return error_set(KVC_E_INVALID, "Nowhere to say that pages are to be given back");
    return free_mapped(blocks, ids, n, epoch, ret_untidy);
}

KVC_API int kvc_blocks_tidy(struct kvc_blocks *blocks)
{
    int r = blocks_check(blocks);

    if (r == 0)
        blocks_tidy(blocks);
    return r;
}

KVC_API int kvc_blocks_complete(struct kvc_blocks *blocks, uint64_t epoch)
{
    struct block_alloc_counts before, after;
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    pthread_mutex_lock(&blocks->lock);
    block_alloc_count(blocks->alloc, &before);
    block_alloc_complete(blocks->alloc, epoch);
    block_alloc_count(blocks->alloc, &after);
    if (after.waiting_pages != before.waiting_pages)
        hint(blocks, &after);
    pthread_mutex_unlock(&blocks->lock);
    if (after.waiting_pages != before.waiting_pages)
        blocks_tidy(blocks);
    return 0;
}

/* ---- The rest ---- */

KVC_API int kvc_blocks_reserve(struct kvc_blocks *blocks, size_t n)
{
    int r = blocks_check_usable(blocks);

    if (r < 0)
        return r;
    for (;;) {
        struct block_alloc_counts counts;
        uint64_t wanted;

        pthread_mutex_lock(&blocks->lock);
        r = block_alloc_reserve(blocks->alloc, n);
        block_alloc_count(blocks->alloc, &counts);
        pthread_mutex_unlock(&blocks->lock);
        if (r == 0)
            return 0;
        if (!u64_add(counts.reserved_blocks, n, &wanted))
            return error_set(KVC_E_NO_BLOCKS, "There are not %zu free blocks in all pages", n);
        r = blocks_grow(blocks, wanted, NULL);
        if (r < 0)
            return r;
    }
}

KVC_API int kvc_blocks_release(struct kvc_blocks *blocks)
{
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    pthread_mutex_lock(&blocks->lock);
    block_alloc_release(blocks->alloc);
    pthread_mutex_unlock(&blocks->lock);
    blocks_tidy(blocks);
    return 0;
}

KVC_API int kvc_blocks_trim(struct kvc_blocks *blocks)
{
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    /* The engine's own wish ends what it was told before. */
    atomic_store(&blocks->report_until_ns, 0);
    pthread_mutex_lock(&blocks->lock);
    blocks->wanted_pages = 0;
    blocks->resting = true;
    give_up_claims(blocks);
    blocks_publish(blocks);
    pthread_mutex_unlock(&blocks->lock);
    return blocks_shrink(blocks, 0);
}

KVC_API int kvc_blocks_resize(struct kvc_blocks *blocks, uint64_t pages)
{
    struct block_alloc_counts counts;
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    pthread_mutex_lock(&blocks->lock);
    block_alloc_resize(blocks->alloc, pages);
    block_alloc_count(blocks->alloc, &counts);
    blocks->resized = counts.removed_pages > 0;
    blocks_publish(blocks);
    pthread_mutex_unlock(&blocks->lock);
    blocks_tidy(blocks);
    return 0;
}

KVC_API int kvc_blocks_clear(struct kvc_blocks *blocks)
{
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    pthread_mutex_lock(&blocks->lock);
    block_alloc_clear(blocks->alloc, 0);
    blocks_publish(blocks);
    pthread_mutex_unlock(&blocks->lock);
    blocks_tidy(blocks);
    return 0;
}

KVC_API int kvc_blocks_occupancy(struct kvc_blocks *blocks, const uint64_t *pages, size_t n,
                                 uint32_t *ret_used)
{
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    if (n > 0 && (!pages || !ret_used))
        return error_set(KVC_E_INVALID, "No list of pages, or nowhere to put their use");
    pthread_mutex_lock(&blocks->lock);
    r = block_alloc_occupancy(blocks->alloc, pages, n, ret_used);
    pthread_mutex_unlock(&blocks->lock);
    return r == 0 ? 0 : error_set(KVC_E_INVALID, "A page is none of the region's");
}

KVC_API int kvc_blocks_census(struct kvc_blocks *blocks, struct kvc_page_census *ret, size_t max,
                              size_t *ret_n)
{
    _cleanup_free_ struct block_alloc_census *census = NULL;
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    if (!ret_n || (max > 0 && !ret))
        return error_set(KVC_E_INVALID, "Nowhere to put the census");
    max = u64_min(max, kvc_region_pages(blocks->regions[0]));
    census = calloc(max + 1, sizeof(*census));
    if (!census)
        return error_nomem();
    pthread_mutex_lock(&blocks->lock);
    *ret_n = block_alloc_census(blocks->alloc, max, census);
    pthread_mutex_unlock(&blocks->lock);
    for (size_t i = 0; i < *ret_n; i++)
        ret[i] = (struct kvc_page_census){.page = census[i].page, .used = census[i].used};
    return 0;
}

KVC_API uint64_t kvc_blocks_page_of(const struct kvc_blocks *blocks, uint32_t id)
{
    return !blocks || is_forked(blocks) ? UINT64_MAX : block_alloc_page_of(blocks->alloc, id);
}

KVC_API int kvc_blocks_status(struct kvc_blocks *blocks, struct kvc_blocks_status *ret)
{
    struct block_alloc_counts counts;
    struct kvc_blocks_status status;
    struct lease lease;
    size_t size;
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    if (!ret)
        return error_set(KVC_E_INVALID, "Nowhere to put the status");
    memcpy(&size, ret, sizeof(size));
    if (size < sizeof(status))
        return error_set(KVC_E_INVALID, "The structure has a size that this library does not know");
    pthread_mutex_lock(&blocks->lock);
    block_alloc_count(blocks->alloc, &counts);
    lease = blocks_least_lease(blocks);
    status = blocks->counters;
    pthread_mutex_unlock(&blocks->lock);
    status.size = size;
    status.total_blocks = counts.total_blocks;
    status.used_blocks = counts.used_blocks;
    status.free_blocks = counts.free_blocks;
    status.reserved_blocks = counts.reserved_blocks;
    status.claimed_pages = lease.claimed;
    status.offered_pages = lease.offered;
    status.mapped_pages = counts.mapped_pages;
    status.free_pages = counts.free_pages;
    status.partly_pages = counts.partly_pages;
    status.full_pages = counts.full_pages;
    status.waiting_pages = counts.waiting_pages;
    status.pinned_pages = counts.pinned_pages;
    status.empty_pages = counts.empty_pages;
    status.doubt_pages = counts.doubt_pages;
    status.broken_pages = counts.broken_pages;
    status.page_blocks = counts.page_blocks;
    memcpy(ret, &status, sizeof(status));
    return 0;
}
