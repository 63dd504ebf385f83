/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks over workers elsewhere, whom the fake daemon plays: it fails the test when a page is mapped twice at
 * a rank, unmapped where it isn't, or mapped out of a lease without a claim.
 */

#include "support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

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

static struct world world_open_at(struct fake *fake, unsigned report_ms)
{
    struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = BLOCK};
    struct world w = {.fake = fake};
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

static struct world world_open(unsigned report_ms)
{
    return world_open_at(fake_start(&(struct fake_settings){.orders = true, .leases = true}), report_ms);
}

static void world_close(struct world *w)
{
    kvc_blocks_close(w->blocks);
    check_eq(fake_count(w->fake).mapped, 0);
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
    } while (fake_count(w.fake).issued > 0);
    world_close(&w);
}

/* Everybody claims at a daemon after the same others, so that no two wait for each other in a circle. */
TEST(claims_are_asked_for_in_the_order_of_the_gpus)
{
    struct fake_settings settings = {.orders = true, .leases = true, .falling_uuids = true};
    struct world w = world_open_at(fake_start(&settings), 1);
    struct fake_counts counts;
    uint32_t ids[3 * EACH];

    check_ok(kvc_blocks_want(w.blocks, EACH, -1, NULL));
    check_eq(fake_count(w.fake).leases, RANKS);
    check_ok(kvc_blocks_alloc(w.blocks, 3 * EACH, ids));
    counts = fake_count(w.fake);
    check_eq(counts.leases, 2 * RANKS);
    for (unsigned i = 0; i < 2 * RANKS; i++)
        check_eq(counts.askers[i], RANKS - 1 - i % RANKS);
    world_close(&w);
}

TEST(a_limit_for_all_or_none)
{
    struct world w = world_open(0);
    uint32_t ids[2 * EACH];

    fake_set_limit(w.fake, 5 * PAGE);
    check_error(kvc_blocks_alloc(w.blocks, 2 * EACH, ids), KVC_E_LIMIT);
    check_eq(fake_count(w.fake).mapped, 0);
    check_eq(status_of(&w).claimed_pages, 0);
    fake_withdraw(w.fake, 2);
    check_eq(fake_count(w.fake).issued, 0);
    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    check_eq(fake_count(w.fake).mapped, RANKS);
    world_close(&w);
}

/* ---- Notices ---- */

#define KEPT 5 /* free pages */

static struct world keep_free_pages(int own_thread)
{
    struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = PAGE};
    struct world w = {.fake = fake_start(&(struct fake_settings){.leases = true, .orders = true})};
    struct kvc_options options = plain_options(w.fake);
    uint32_t ids[KEPT];

    options.role = KVC_ROLE_SCHEDULER;
    options.max_reserved_pages = PAGES;
    options.report_ms = 1;
    options.own_thread = own_thread;
    check_ok(kvc_open(&options, &w.clients[0]));
    for (uint32_t i = 0; i < 2; i++)
        check_ok(kvc_region_attach(w.clients[0], i, 0, -1, &w.regions[i]));
    check_ok(kvc_blocks_open(w.regions, 2, &blocks, &w.blocks));
    check_ok(kvc_blocks_alloc(w.blocks, KEPT, ids));
    check_ok(kvc_blocks_free(w.blocks, ids, KEPT, 0));
    check_eq(fake_count(w.fake).mapped, 2 * KEPT);
    check_eq(fake_count(w.fake).cached, 2 * KEPT);
    return w;
}

/* The workers are not asked themselves. */
TEST(a_notice_takes_pages_of_workers)
{
    struct world w = keep_free_pages(0);

    fake_notice(w.fake, 2 * PAGE + 1, 5000, true);
    dispatch_until(w.clients[0], fake_count(w.fake).acks == 1);
    check_eq(fake_count(w.fake).mapped, 2 * (KEPT - 2));
    check_eq(fake_count(w.fake).cached, 2 * (KEPT - 2));
    world_close(&w);
}

struct closer {
    pthread_t thread;
    atomic_int tid;
    struct kvc_blocks *blocks;
};

static void *close_blocks(void *data)
{
    struct closer *closer = data;

    atomic_store(&closer->tid, gettid());
    kvc_blocks_close(closer->blocks);
    return NULL;
}

static bool is_asleep(pid_t tid)
{
    char path[64], state = 0;
    FILE *stat;

    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
    stat = fopen(path, "re");
    check(stat && fscanf(stat, "%*d (%*[^)]) %c", &state) == 1 && fclose(stat) == 0);
    return state == 'S';
}

/* Whoever closes waits for the thread that answers, which waits for a worker. */
TEST(closing_while_a_notice_is_answered)
{
    struct world w = keep_free_pages(1);
    struct closer closer = {.blocks = w.blocks};

    fake_lie(w.fake, FAKE_LATE, MESSAGE_UNMAP);
    fake_notice(w.fake, 2 * PAGE, 5000, true);
    while (fake_count(w.fake).late == 0 || fake_count(w.fake).mapped > 2 * (KEPT - 1))
        ;
    check_eq(pthread_create(&closer.thread, NULL, close_blocks, &closer), 0);
    while (!atomic_load(&closer.tid) || !is_asleep(closer.tid))
        ;
    for (unsigned i = 0; i < 200; i++)
        check_eq(fake_count(w.fake).mapped, 2 * (KEPT - 1));
    fake_release(w.fake);
    check_eq(pthread_join(closer.thread, NULL), 0);
    w.blocks = NULL;
    world_close(&w);
}

/* ---- Several of one scheduler ---- */

/* What one keeps without need at all of its workers, another one's claims get; what is in use they don't. */
TEST(two_groups_share_a_limit)
{
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = PAGE};
    struct world w = keep_free_pages(0);
    struct kvc_region *regions[2];
    struct kvc_blocks *other;
    uint32_t ids[KEPT];

    for (uint32_t i = 0; i < 2; i++)
        check_ok(kvc_region_attach(w.clients[0], i, 0, -1, &regions[i]));
    check_ok(kvc_blocks_open(regions, 2, &options, &other));
    fake_set_limit(w.fake, 2 * KEPT * PAGE);
    check_ok(kvc_blocks_alloc(w.blocks, 1, ids));
    check_ok(kvc_blocks_alloc(other, KEPT - 1, ids + 1));
    check_eq(fake_count(w.fake).mapped, 2 * KEPT);
    check_eq(status_of(&w).mapped_pages, 1);
    check_error(kvc_blocks_alloc(other, 1, ids), KVC_E_LIMIT);
    check_eq(status_of(&w).used_blocks, 1);
    check_ok(kvc_blocks_free(other, ids + 1, KEPT - 1, 0));
    check_ok(kvc_blocks_alloc(w.blocks, KEPT - 1, ids + 1));
    check_eq(status_of(&w).mapped_pages, KEPT);
    check_eq(fake_count(w.fake).mapped, 2 * KEPT);
    kvc_blocks_close(other);
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
    check_eq(fake_count(w.fake).mapped, 0);
    fake_withdraw(w.fake, UINT32_MAX);
    check_eq(fake_count(w.fake).issued, 0);
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
