/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks over workers elsewhere, whom the fake daemon plays: it fails the test when a page is mapped twice at
 * a rank, unmapped where it isn't, or mapped out of a lease without a claim.
 */

#include "support.h"

#include <pthread.h>

#define RANKS 3
#define PAGES 16
#define PAGE (2 * MIB)
#define BLOCK (256 * KIB)
#define EACH 8
#define N_THREADS 4
#define ROUNDS 300
#define MOST (2 * EACH)

struct world {
    struct fake *fake;
    struct kvc_client *clients[RANKS];
    struct kvc_region *regions[RANKS];
    struct kvc_blocks *blocks;
};

static struct world world_open(unsigned report_ms)
{
    struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = BLOCK};
    struct world w = {.fake = fake_start(&(struct fake_settings){.orders = true, .leases = true})};
    struct kvc_options options = plain_options(w.fake);

    options.role = KVC_ROLE_SCHEDULER;
    options.report_ms = report_ms;
    for (unsigned i = 0; i < RANKS; i++) {
        options.own_thread = i % 2;
        check_ok(kvc_open(&options, &w.clients[i]));
        /* Of the same rank, since others have more pages: to the fake daemon these are three workers. */
        check_ok(kvc_region_attach(w.clients[i], 0, 0, -1, &w.regions[i]));
    }
    check_ok(kvc_blocks_open(w.regions, RANKS, &blocks, &w.blocks));
    return w;
}

static void world_close(struct world *w)
{
    struct fake_counts counts;

    kvc_blocks_close(w->blocks);
    fake_count(w->fake, &counts);
    check_eq(counts.mapped, 0);
    for (unsigned i = 0; i < RANKS; i++)
        kvc_close(w->clients[i]);
    fake_stop(w->fake);
}

static struct kvc_blocks_status status_of(const struct world *w)
{
    struct kvc_blocks_status status = {.size = sizeof(status)};

    check_ok(kvc_blocks_status(w->blocks, &status));
    return status;
}

static struct fake_counts counts_of(const struct world *w)
{
    struct fake_counts counts;

    fake_count(w->fake, &counts);
    return counts;
}

TEST(trimming_gives_claims_back)
{
    struct world w = world_open(1);

    check_ok(kvc_blocks_want(w.blocks, 2 * EACH, -1, NULL));
    check_eq(status_of(&w).claimed_pages, 2);
    /* What was reported a moment ago is kept until that has run out. */
    do {
        for (unsigned i = 0; i < RANKS; i++)
            check_ok(kvc_trim(w.clients[i]));
        fake_withdraw(w.fake, 2);
    } while (counts_of(&w).issued > 0);
    world_close(&w);
}

TEST(a_limit_for_all_or_none)
{
    struct world w = world_open(0);
    uint32_t ids[2 * EACH];

    fake_set_limit(w.fake, 5 * PAGE);
    check_error(kvc_blocks_alloc(w.blocks, 2 * EACH, ids), KVC_E_LIMIT);
    check_eq(counts_of(&w).mapped, 0);
    check_eq(status_of(&w).claimed_pages, 0);
    fake_withdraw(w.fake, 2);
    check_eq(counts_of(&w).issued, 0);
    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    check_eq(counts_of(&w).mapped, RANKS);
    world_close(&w);
}

/* ---- Threads ---- */

static void *churn(void *data)
{
    struct kvc_blocks *blocks = data;
    uint32_t ids[MOST];

    for (unsigned i = 0; i < ROUNDS; i++) {
        size_t n = i * 7 % MOST + 1;
        int r = i % 5 ? kvc_blocks_alloc(blocks, n, ids) : kvc_blocks_want(blocks, n, -1, NULL);

        check(r == 0 || r == KVC_E_LIMIT);
        kvc_blocks_available(blocks);
        if (i % 5 && r == 0)
            check_ok(kvc_blocks_free(blocks, ids, n, 0));
    }
    return NULL;
}

/* There is not room for what all want at once: some are refused while others are at work. */
static void churn_with(uint64_t pages)
{
    struct world w = world_open(1);
    pthread_t threads[N_THREADS];

    fake_set_limit(w.fake, pages * PAGE);
    for (unsigned i = 0; i < N_THREADS; i++)
        check_eq(pthread_create(&threads[i], NULL, churn, w.blocks), 0);
    for (unsigned i = 0; i < N_THREADS; i++)
        check_eq(pthread_join(threads[i], NULL), 0);
    check_eq(status_of(&w).used_blocks, 0);
    check_eq(status_of(&w).doubt_pages + status_of(&w).broken_pages, 0);
    check_ok(kvc_blocks_trim(w.blocks));
    check_eq(counts_of(&w).mapped, 0);
    fake_withdraw(w.fake, UINT32_MAX);
    check_eq(counts_of(&w).issued, 0);
    world_close(&w);
}

TEST_LIMIT(threads, 60)
{
    churn_with(RANKS * PAGES);
}

TEST_LIMIT(threads_that_are_refused, 60)
{
    churn_with(RANKS * 2 + 1);
}
