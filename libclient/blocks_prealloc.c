/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Pages that are ready before they are needed. Everything here happens in kvc_dispatch() or on the library's
 * own thread, asks for courtesies only, and waits for nothing: a lease is asked for, its answer brings us
 * back here, memory is taken out of it, and when that has come it is mapped.
 *
 * Nothing is prepared while the instance is asked for memory, while some thread waits for memory, or after a
 * refusal until something has changed. What a notice took away is missed again when the engine uses another
 * page, not before.
 */

#include <string.h>

#include "base/arith.h"
#include "blocks.h"
#include "map.h"
#include "region.h"
#include "reserve.h"

#define BATCH 64
#define POKE_NS (10 * NSEC_PER_MSEC) /* at most so often, when filling up doesn't succeed */

bool blocks_has_work(const struct kvc_region *region)
{
    return atomic_load(&region->work_wanted) || (region->cache.n_pages > 0 && region->client->n_takers == 0);
}

static void call(struct kvc_region *region)
{
    if (!atomic_exchange(&region->work_wanted, true))
        client_call(region->client);
}

void blocks_resume(struct kvc_client *client)
{
    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        if (region->blocks && client->n_takers == 0 &&
            (region->cache.n_pages > 0 || region->blocks->wanted_pages > 0))
            call(region);
}

void blocks_call(struct kvc_blocks *blocks)
{
    for (size_t i = 0; i < blocks->n_regions; i++)
        call(blocks->regions[i]);
}

void blocks_poke(struct kvc_blocks *blocks)
{
    uint64_t now_ns = lease_now_ns();

    if (atomic_load_explicit(&blocks->in_vain, memory_order_relaxed) &&
        now_ns - atomic_load_explicit(&blocks->poked_ns, memory_order_relaxed) < POKE_NS)
        return;
    atomic_store_explicit(&blocks->poked_ns, now_ns, memory_order_relaxed);
    blocks_call(blocks);
}

/* ---- What has come ---- */

static size_t plan_some(struct kvc_blocks *blocks, uint64_t max, uint64_t *pages)
{
    struct block_alloc_counts counts;
    size_t n;

    pthread_mutex_lock(&blocks->lock);
    block_alloc_count(blocks->alloc, &counts);
    n = u64_min(u64_min(max, counts.empty_pages), BATCH);
    if (block_alloc_plan(blocks->alloc, n, pages) != 0)
        n = 0;
    blocks_publish(blocks);
    pthread_mutex_unlock(&blocks->lock);
    return n;
}

static void tell(struct kvc_blocks *blocks, const uint64_t *pages, size_t n, int r)
{
    pthread_mutex_lock(&blocks->lock);
    for (size_t i = 0; i < n; i++) {
        if (r == 0)
            block_alloc_mapped(blocks->alloc, &pages[i], 1);
        else if (blocks->regions[0]->pages[pages[i]].state == PAGE_EMPTY)
            block_alloc_unmapped(blocks->alloc, &pages[i], 1);
        else
            block_alloc_broken(blocks->alloc, &pages[i], 1);
    }
    if (r == 0) {
        blocks->wanted_pages = u64_sub_floor(blocks->wanted_pages, n);
        blocks->counters.mapped_total += n;
        blocks->counters.ready_total += n;
    }
    blocks_publish(blocks);
    pthread_cond_broadcast(&blocks->changed);
    pthread_mutex_unlock(&blocks->lock);
}

static void drop_cached(struct kvc_region *region)
{
    struct list leaving = LIST_INIT(leaving);
    struct page_cache_entry *entry;

    while ((entry = page_cache_empty(&region->cache)))
        list_append(&leaving, &entry->link);
    borrow_return(region->client, &leaving, false);
}

static void take_cached(struct kvc_region *region, size_t n, struct list *memory)
{
    for (size_t i = 0; i < n; i++)
        list_append(memory, &page_cache_take(&region->cache)->link);
}

/* With what is there, and nothing else: whatever the status page says by now, this asks for no memory. Who
 * waits for memory finds it in the cache first. */
void blocks_map_arrived(struct kvc_region *region)
{
    struct kvc_blocks *blocks = region->blocks;
    struct list memory = LIST_INIT(memory);
    uint64_t pages[BATCH];
    int r = 0;

    if (region->cache.n_pages == 0 || region->client->n_takers > 0)
        return;
    while (blocks_are_alone(blocks) && region->cache.n_pages > 0 && r == 0) {
        size_t n = client_must_shrink(region->client) ? 0 : plan_some(blocks, region->cache.n_pages, pages);

        if (n == 0)
            break;
        take_cached(region, n, &memory);
        r = map_with(region, pages, n, &memory);
        tell(blocks, pages, n, r);
    }
    drop_cached(region);
    blocks_note_ahead(region);
}

void blocks_note_ahead(struct kvc_region *region)
{
    struct kvc_blocks *blocks = region->blocks;
    uint64_t pages = region->cache.n_pages;

    if (!blocks)
        return;
    pages += region->refill && region->refill->leased ? region->refill->n_pages : 0;
    pthread_mutex_lock(&blocks->lock);
    blocks_set_ahead(blocks, region, pages);
    pthread_mutex_unlock(&blocks->lock);
}

/* Nobody is asked again and again. A question that was too large is made smaller. */
void blocks_refused(struct kvc_region *region, int r)
{
    struct kvc_blocks *blocks = region->blocks;

    if (!blocks || (r == KVC_E_INVALID && region->take_max > 1))
        return;
    pthread_mutex_lock(&blocks->lock);
    blocks->wanted_pages = 0;
    pthread_mutex_unlock(&blocks->lock);
}

/* ---- What is missing ---- */

struct shortage {
    uint64_t mapped; /* pages */
    uint64_t leased; /* beyond those */
};

static struct shortage find_shortage(struct kvc_blocks *blocks)
{
    struct block_alloc_counts counts;
    struct shortage shortage = {0};
    uint64_t now_ns = lease_now_ns(), ready;

    pthread_mutex_lock(&blocks->lock);
    block_alloc_count(blocks->alloc, &counts);
    if (!blocks->resting && blocks->prealloc_on) {
        ready = prealloc_ready(&blocks->prealloc, now_ns);
        if (blocks_are_alone(blocks))
            shortage.mapped = u64_sub_floor(ready, counts.free_pages + counts.mapping_pages);
        shortage.leased = prealloc_ahead(&blocks->prealloc, now_ns);
    }
    shortage.mapped = u64_max(shortage.mapped, blocks->wanted_pages);
    shortage.mapped = u64_min(shortage.mapped, counts.empty_pages);
    shortage.leased = u64_min(shortage.leased, counts.empty_pages - shortage.mapped);
    pthread_mutex_unlock(&blocks->lock);
    return shortage;
}

/* False: more is wanted, and for now it is no use asking. */
static bool ask_for_lease(struct kvc_region *region, const struct shortage *shortage)
{
    struct lease lease = lease_of(region);
    uint64_t have = (uint64_t)lease.offered + lease.claimed + region->lease.asked_pages;
    uint64_t wanted = shortage->mapped + shortage->leased;

    return wanted <= have || (lease_may_ask(region) && lease_ask(region, wanted - have, true) == 0);
}

/* What is on its way is in no report, so a report's claims are left alone: what is merely offered is claimed
 * and spent before any report can see it. Returns how many pages there are to spend. */
static uint64_t claim_for_refill(struct kvc_blocks *blocks, struct kvc_region *region, uint64_t pages)
{
    if (!blocks_is_promised(blocks))
        return u64_min(lease_claim_up_to(region, pages), pages);
    return lease_claim(region->lease.line, (uint32_t)u64_min(pages, UINT32_MAX));
}

/* The daemon sees the hint before the claims are gone from the word: what it could ask for is in the one or
 * the other all the time. */
static uint64_t spend_for_refill(struct kvc_blocks *blocks, struct kvc_region *region, uint64_t pages)
{
    uint64_t n;

    pthread_mutex_lock(&blocks->lock);
    n = claim_for_refill(blocks, region, pages);
    if (n > 0) {
        blocks_set_ahead(blocks, region, region->ahead_pages + n);
        if (!lease_spend(region->lease.line, (uint32_t)n)) {
            blocks_set_ahead(blocks, region, region->ahead_pages - n);
            n = 0;
        }
    }
    pthread_mutex_unlock(&blocks->lock);
    return n;
}

static void take_leased(struct kvc_blocks *blocks, struct kvc_region *region, uint64_t pages)
{
    uint64_t n;

    if (region->refill)
        return;
    n = spend_for_refill(blocks, region, u64_min(pages, region->take_max));
    if (n > 0 && borrow_later(region, (uint32_t)n, true, &region->refill) < 0)
        blocks_note_ahead(region);
}

/* Without leases a courtesy is what the status page shows room for. */
static void take_plainly(struct kvc_region *region, uint64_t pages, bool wanted)
{
    struct status_values status;
    uint64_t room;

    status_page_read(region->client->status, &status);
    if (region->refill ||
        (!wanted && region->refill_refused && memcmp(&status, &region->refused_at, sizeof(status)) == 0))
        return;
    room = u64_sub_floor(status.limit_bytes, status.used_bytes) / region->shape->slot_bytes;
    pages = u64_min(pages, wanted ? UINT64_MAX : room);
    pages = u64_min(pages, region->take_max);
    if (pages > 0)
        borrow_later(region, (uint32_t)pages, false, &region->refill);
}

static bool is_busy(const struct kvc_client *client)
{
    return !client->conn->alive || client_must_shrink(client) || client->n_takers > 0 ||
           atomic_load(&client->notice.open);
}

/* False: in vain. */
static bool try_to_fill_up(struct kvc_blocks *blocks, struct kvc_region *region)
{
    struct shortage shortage;
    bool wanted, asked;

    if (is_busy(region->client) || blocks_are_over(blocks))
        return false;
    shortage = find_shortage(blocks);
    wanted = blocks->wanted_pages > 0;
    if (!blocks->prealloc_on || !lease_is_on(region) || (wanted && lease_is_short(region, shortage.mapped))) {
        if (shortage.mapped > 0)
            take_plainly(region, shortage.mapped, wanted);
        return shortage.mapped == 0 || region->refill;
    }
    asked = ask_for_lease(region, &shortage);
    if (shortage.mapped > 0)
        take_leased(blocks, region, shortage.mapped);
    return asked;
}

static void fill_up(struct kvc_blocks *blocks, struct kvc_region *region)
{
    atomic_store(&blocks->in_vain, !try_to_fill_up(blocks, region));
}

void blocks_work(struct kvc_region *region)
{
    struct kvc_blocks *blocks = region->blocks;

    if (!blocks_has_work(region))
        return;
    atomic_store(&region->work_wanted, false);
    if (!blocks_begin(blocks))
        return;
    blocks_map_arrived(region);
    fill_up(blocks, region);
    blocks_end(blocks);
}
