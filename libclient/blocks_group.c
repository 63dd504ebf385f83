/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Memory is claimed at one daemon after the other, in the order of their GPUs' UUIDs as everybody does it, so
 * that no two schedulers wait for each other in a circle. Only with all claims in hand are the workers asked,
 * at once; a page's memory is then there, and what can fail is a driver, or a process.
 *
 * How much can be set aside is bounded by the daemons' descriptors, for each call and over all. What is too
 * much for that is claimed and mapped in smaller parts; where not even a page can be claimed, memory is asked
 * for with the order itself, and then it is the daemon that promises nothing. Either way a failure undoes all
 * of the call.
 */

#include "blocks_group.h"

#include <stdlib.h>

#include "base/arith.h"
#include "blocks.h"
#include "remote.h"

#define BATCH 64

/* ---- Claims ---- */

/* Off the word: nobody else can spend them any more. */
static int take_claims(struct kvc_region *region, uint32_t n, uint64_t deadline_ns)
{
    struct kvc_client *client = region->client;
    int r = client_enter(client);

    if (r < 0)
        return r;
    r = conn_check(client->conn);
    while (r == 0 && !lease_spend(region->lease.line, n))
        r = blocks_lease(region, n, deadline_ns);
    client_leave(client);
    return r;
}

static uint32_t missing_at(struct kvc_blocks *blocks, size_t rank, const uint64_t *pages, size_t n)
{
    return (uint32_t)group_missing(blocks->group, (uint32_t)rank, pages, n);
}

static bool are_leases_on(const struct kvc_blocks *blocks)
{
    for (size_t i = 0; i < blocks->n_regions; i++)
        if (!lease_is_on(blocks->regions[i]))
            return false;
    return true;
}

/* For all ranks, or none. */
static int take_all_claims(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    uint64_t deadline_ns = remote_deadline(blocks->regions[0]);
    size_t done = 0;
    int r = 0;

    blocks_begin_claiming(blocks);
    while (done < blocks->n_regions && r == 0) {
        size_t rank = blocks->order[done];

        r = take_claims(blocks->regions[rank], missing_at(blocks, rank, pages, n), deadline_ns);
        done += r == 0;
    }
    /* How much was spent for a rank that was lost meanwhile is not known any more. */
    while (r < 0 && done-- > 0 && !blocks_are_over(blocks)) {
        size_t rank = blocks->order[done];

        lease_unspend(blocks->regions[rank]->lease.line, missing_at(blocks, rank, pages, n));
    }
    blocks_end_claiming(blocks, r);
    return r;
}

/* ---- Mapping ---- */

/* How pages are asked for: so many at once, whose memory has been claimed before, or not. */
struct manner {
    size_t step; /* a power of two: what some rank has mapped of more, others then map in whole steps */
    bool leased;
};

static int map_step(struct kvc_blocks *blocks, const uint64_t *pages, size_t n, bool leased)
{
    int r = leased ? take_all_claims(blocks, pages, n) : 0;

    return r == 0 ? group_map(blocks->group, pages, n, leased) : r;
}

/* After n pages were refused. False: there is no other way. */
static bool try_otherwise(struct manner *manner, size_t n, int r)
{
    if (!lease_is_too_much(r) || (!manner->leased && (n == 1 || r == KVC_E_RESOURCES)))
        return false;
    if (n == 1)
        *manner = (struct manner){.step = BATCH};
    while (n > 1 && manner->step >= n)
        manner->step /= 2;
    return true;
}

static int map_steps(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    struct manner manner = {.step = BATCH, .leased = are_leases_on(blocks)};
    size_t done = 0;
    int r = 0;

    while (done < n && r == 0) {
        size_t some = u64_min(n - done, manner.step);

        r = map_step(blocks, pages + done, some, manner.leased);
        if (r == 0)
            done += some;
        else if (try_otherwise(&manner, some, r))
            r = 0;
    }
    return r;
}

/* Pages that some rank has; `whole` ones, that all have, or not. */
static size_t find_mapped(struct kvc_blocks *blocks, const uint64_t *pages, size_t n, bool whole,
                          uint64_t *ret)
{
    size_t found = 0;

    for (size_t i = 0; i < n; i++) {
        enum group_page_state state = group_page(blocks->group, pages[i]);

        if (state == GROUP_PAGE_PARTIAL || (whole && state == GROUP_PAGE_MAPPED))
            ret[found++] = pages[i];
    }
    return found;
}

static void undo(struct kvc_blocks *blocks, const uint64_t *pages, size_t n, bool whole)
{
    uint64_t mapped[BATCH];
    size_t found = find_mapped(blocks, pages, n, whole, mapped);

    error_hold();
    if (found > 0)
        group_unmap(blocks->group, mapped, found);
    error_release();
}

int blocks_group_map(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    int r = map_steps(blocks, pages, n);

    if (r < 0)
        undo(blocks, pages, n, true);
    return r;
}

int blocks_group_unmap(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    return group_unmap(blocks->group, pages, n);
}

/* ---- Doubts ---- */

/* Nobody else is at work on pages that are in doubt, and only one thread at a time on all of them. */
static size_t begin_settling(struct kvc_blocks *blocks, uint64_t **ret_pages)
{
    struct block_alloc_counts counts;
    size_t n = 0;

    pthread_mutex_lock(&blocks->lock);
    block_alloc_count(blocks->alloc, &counts);
    if (counts.doubt_pages > 0 && !blocks->settling)
        *ret_pages = calloc(counts.doubt_pages, sizeof(**ret_pages));
    for (uint64_t i = 0; *ret_pages && n < counts.doubt_pages; i++)
        if (block_alloc_page_state(blocks->alloc, i) == BLOCK_ALLOC_DOUBT)
            (*ret_pages)[n++] = i;
    blocks->settling |= n > 0;
    pthread_mutex_unlock(&blocks->lock);
    return n;
}

void blocks_group_settle(struct kvc_blocks *blocks)
{
    _cleanup_free_ uint64_t *pages = NULL;
    size_t n = begin_settling(blocks, &pages), left;

    if (n == 0)
        return;
    error_hold();
    group_poll(blocks->group, &left);
    for (size_t i = 0; i < n; i += BATCH) {
        undo(blocks, pages + i, u64_min(n - i, BATCH), false);
        blocks_judge(blocks, pages + i, u64_min(n - i, BATCH));
    }
    error_release();
    pthread_mutex_lock(&blocks->lock);
    blocks->settling = false;
    pthread_mutex_unlock(&blocks->lock);
}

/* ---- The end ---- */

static void give_back(struct kvc_blocks *blocks, const uint64_t *pages, size_t n)
{
    int r = group_unmap(blocks->group, pages, n);

    if (r < 0)
        client_log(blocks->regions[0]->client, KVC_LOG_WARNING, "Pages could not be given back: %s",
                   kvc_last_error());
    if (error_is_unanswered(r))
        group_abandon(blocks->group);
}

void blocks_group_empty(struct kvc_blocks *blocks)
{
    uint64_t pages[REMOTE_PAGES_MAX], total = group_pages(blocks->group);

    group_abandon(blocks->group);
    for (uint64_t next = 0; next < total;) {
        size_t n = 0;

        for (; n < REMOTE_PAGES_MAX && next < total; next++)
            n += find_mapped(blocks, &next, 1, true, &pages[n]);
        if (n > 0)
            give_back(blocks, pages, n);
    }
}
