/* SPDX-License-Identifier: Apache-2.0 */

/*
 * How many blocks there are, as a promise, and how there come to be more.
 *
 * Counting and what takes pages away run without a common lock, so each leaves word for the other before it
 * looks: a report first says that it holds, and what it promises, and then looks whether somebody is
 * shedding; who sheds says so first, and then looks what is promised. One of the two sees the other. Blocks
 * of mapped pages are counted before claims: memory on its way from the one to the other is then missed,
 * never counted twice.
 */

#include <inttypes.h>

#include "base/arith.h"
#include "blocks.h"
#include "region.h"
#include "reserve.h"

static inline struct lease least_lease(const struct kvc_blocks *blocks)
{
    struct lease least = {.claimed = UINT32_MAX};
    uint64_t total = UINT32_MAX;

    for (size_t i = 0; i < blocks->n_regions; i++) {
        const struct glance *glance = &blocks->glances[i];
        struct lease lease = {0};

        if (glance->line && atomic_load(glance->connected))
            lease = lease_read(glance->line);
        least.claimed = lease_min(least.claimed, lease.claimed);
        total = u64_min(total, (uint64_t)lease.claimed + lease.offered);
    }
    least.offered = (uint32_t)(total - least.claimed);
    return least;
}

struct lease blocks_least_lease(const struct kvc_blocks *blocks)
{
    return least_lease(blocks);
}

/* ---- Reports ---- */

uint64_t blocks_report_until(const struct kvc_blocks *blocks)
{
    return atomic_load(&blocks->report_until_ns);
}

static inline bool is_notice_open(const struct kvc_blocks *blocks)
{
    for (size_t i = 0; i < blocks->n_regions; i++)
        if (atomic_load(blocks->glances[i].noticed))
            return true;
    return false;
}

/* Inlined, their frames would cost each report some of the nanoseconds that it takes. */
#define _slow_path_ __attribute__((cold, noinline))

/* What a notice cannot take: blocks of pages that have used ones. */
_slow_path_ static uint64_t count_certain(struct kvc_blocks *blocks)
{
    struct block_alloc_counts counts;

    pthread_mutex_lock(&blocks->lock);
    block_alloc_count(blocks->alloc, &counts);
    pthread_mutex_unlock(&blocks->lock);
    return u64_sub_floor(counts.free_blocks, counts.free_pages * counts.page_blocks);
}

_slow_path_ static uint64_t count_slowly(struct kvc_blocks *blocks)
{
    struct lease lease;
    uint64_t n;

    pthread_mutex_lock(&blocks->lock);
    lease = blocks_least_lease(blocks);
    for (size_t i = 0; i < blocks->n_regions; i++)
        lease_claim_up_to(blocks->regions[i], (uint64_t)lease.claimed + lease.offered);
    blocks_publish(blocks);
    n = block_alloc_free_blocks(blocks->alloc) + (uint32_t)atomic_load(&blocks->claim_view);
    pthread_mutex_unlock(&blocks->lock);
    return n;
}

static inline uint64_t count_all(struct kvc_blocks *blocks)
{
    uint64_t n = block_alloc_free_blocks(blocks->alloc), view;
    struct lease lease;

    atomic_thread_fence(memory_order_acquire);
    lease = least_lease(blocks);
    view = atomic_load_explicit(&blocks->claim_view, memory_order_acquire);
    if (lease.offered > 0 || lease.claimed != view >> 32 || atomic_load(&blocks->shedding))
        return count_slowly(blocks);
    return n + (uint32_t)view;
}

/* Says that a report holds from now on. False: a notice has come, and it doesn't. */
static inline bool stamp(struct kvc_blocks *blocks)
{
    uint64_t until_ns = lease_now_ns() + blocks->hold_ns;

    if (is_notice_open(blocks))
        return false;
    if (atomic_load_explicit(&blocks->report_until_ns, memory_order_relaxed) == until_ns)
        return true;
    atomic_store(&blocks->report_until_ns, until_ns);
    return !is_notice_open(blocks);
}

static inline uint64_t report(struct kvc_blocks *blocks)
{
    uint64_t n = UINT64_MAX, again;

    if (!stamp(blocks))
        return count_certain(blocks);
    while ((again = count_all(blocks)) < n) {
        n = again;
        if (atomic_load_explicit(&blocks->promised_blocks, memory_order_relaxed) == n)
            break;
        atomic_store(&blocks->promised_blocks, n);
    }
    return n;
}

KVC_API uint64_t kvc_blocks_available(struct kvc_blocks *blocks)
{
    if (!blocks || *blocks->ours == 0 || blocks_are_over(blocks))
        return 0;
    return report(blocks);
}

/* ---- Wanting more ---- */

/* How many pages more have to be there, mapped or claimed. */
static int find_need(struct kvc_blocks *blocks, uint64_t n, uint64_t *ret_pages)
{
    struct block_alloc_counts counts;
    uint64_t missing;

    pthread_mutex_lock(&blocks->lock);
    missing = block_alloc_missing(blocks->alloc, n);
    block_alloc_count(blocks->alloc, &counts);
    pthread_mutex_unlock(&blocks->lock);
    if (missing > counts.empty_pages + counts.mapping_pages + counts.unmapping_pages)
        return error_set(KVC_E_NO_BLOCKS, "There are not %" PRIu64 " free blocks in all pages", n);
    *ret_pages = missing;
    return 0;
}

void blocks_begin_claiming(struct kvc_blocks *blocks)
{
    pthread_mutex_lock(&blocks->lock);
    blocks->n_claiming++;
    pthread_mutex_unlock(&blocks->lock);
}

static void level_claims(struct kvc_blocks *blocks)
{
    uint32_t claimed = blocks_least_lease(blocks).claimed;

    for (size_t i = 0; i < blocks->n_regions; i++)
        lease_give_up(blocks->regions[i], u64_sub_floor(lease_of(blocks->regions[i]).claimed, claimed));
    blocks_publish(blocks);
}

void blocks_end_claiming(struct kvc_blocks *blocks, int r)
{
    pthread_mutex_lock(&blocks->lock);
    blocks->uneven |= r < 0;
    if (--blocks->n_claiming == 0 && blocks->uneven) {
        level_claims(blocks);
        blocks->uneven = false;
    }
    pthread_mutex_unlock(&blocks->lock);
}

int blocks_lease(struct kvc_region *region, uint64_t pages, uint64_t deadline_ns)
{
    uint64_t before = lease_claim_up_to(region, pages), now_ns = conn_now_ns();
    int r;

    if (before >= pages)
        return 0;
    if (now_ns >= deadline_ns)
        return error_set(KVC_E_TIMEOUT, "kvcachedd did not answer in time");
    /* What the background has asked for counts against the region, and is as good. */
    r = reserve_await(region, deadline_ns);
    if (r != 0)
        return r < 0 ? r : 0;
    r = lease_ask_and_wait(region, pages - before, deadline_ns - now_ns);
    if (r == KVC_E_LIMIT || r == KVC_E_BUDGET || r == KVC_E_DEVICE_MEMORY)
        r = reserve_yield(region, false) || lease_claim_up_to(region, pages) > before ? 0 : r;
    return r;
}

/* Whoever fills up in the background leaves what is claimed here alone from this moment on. */
static int lease_and_wait(struct kvc_blocks *blocks, struct kvc_region *region, uint64_t n,
                          uint64_t deadline_ns)
{
    struct kvc_client *client = region->client;
    uint64_t pages = 0;
    int r = client_enter(client);

    if (r < 0)
        return r;
    r = conn_check(client->conn);
    while (r == 0) {
        blocks_map_arrived(region);
        r = find_need(blocks, n, &pages);
        if (r < 0 || lease_claim_up_to(region, pages) >= pages)
            break;
        r = blocks_lease(region, pages, deadline_ns);
    }
    if (r == 0)
        stamp(blocks);
    client_leave(client);
    return r;
}

static int lease_later(struct kvc_region *region, uint64_t pages)
{
    struct kvc_client *client = region->client;
    struct lease lease = lease_of(region);
    uint64_t have = (uint64_t)lease.claimed + lease.offered;
    int r = client_enter(client);

    if (r < 0)
        return r;
    r = conn_check(client->conn);
    have += region->lease.asked_pages;
    if (r == 0 && have < pages)
        r = lease_ask(region, pages - have, false);
    client_leave(client);
    return r;
}

static uint64_t deadline_of(const struct kvc_region *region, int timeout_ms)
{
    uint64_t timeout_ns =
        timeout_ms < 0 ? region->client->conn->timeout_ns : (uint64_t)timeout_ms * NSEC_PER_MSEC;

    return u64_add_ceil(conn_now_ns(), timeout_ns);
}

static int want_leases(struct kvc_blocks *blocks, uint64_t n, uint64_t pages, int timeout_ms)
{
    uint64_t deadline_ns = deadline_of(blocks->regions[0], timeout_ms);
    int r = 0;

    blocks_begin_claiming(blocks);
    for (size_t i = 0; i < blocks->n_regions && r == 0; i++) {
        struct kvc_region *region = blocks->regions[blocks->order[i]];

        r = timeout_ms == 0 ? lease_later(region, pages) : lease_and_wait(blocks, region, n, deadline_ns);
    }
    blocks_end_claiming(blocks, r);
    return r;
}

/* Whether so many pages can be set aside, as far as is known. Who waits for the answer asks. */
static bool has_leases(const struct kvc_blocks *blocks, uint64_t pages, int timeout_ms)
{
    for (size_t i = 0; i < blocks->n_regions; i++)
        if (!lease_is_on(blocks->regions[i]) ||
            (timeout_ms == 0 && lease_is_short(blocks->regions[i], pages)))
            return false;
    return blocks->prealloc_on || !blocks_are_alone(blocks);
}

/* Mapped, they are there as well as set aside. */
static int want_pages(struct kvc_blocks *blocks, uint64_t n, uint64_t pages, int timeout_ms)
{
    if (timeout_ms != 0 || !blocks_are_alone(blocks))
        return blocks_grow(blocks, n, NULL);
    pthread_mutex_lock(&blocks->lock);
    blocks->wanted_pages = pages;
    pthread_mutex_unlock(&blocks->lock);
    blocks_call(blocks);
    return 0;
}

KVC_API int kvc_blocks_want(struct kvc_blocks *blocks, uint64_t n, int timeout_ms, uint64_t *ret_available)
{
    uint64_t pages = 0;
    int r = blocks_check(blocks);

    if (r < 0)
        return r;
    r = blocks_check_usable(blocks);
    if (r == 0)
        r = find_need(blocks, n, &pages);
    if (r == 0 && pages > 0) {
        r = has_leases(blocks, pages, timeout_ms) ? want_leases(blocks, n, pages, timeout_ms)
                                                  : KVC_E_RESOURCES;
        if (lease_is_too_much(r))
            r = want_pages(blocks, n, pages, timeout_ms);
    }
    if (ret_available)
        *ret_available = kvc_blocks_available(blocks);
    return r;
}
