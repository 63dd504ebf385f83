/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks over one region, with a daemon that knows leases and with one that doesn't.
 */

#include "support.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE (2 * MIB)
#define BLOCK (256 * KIB) /* eight in a page */
#define EACH 8
#define PAGES 16

struct world {
    struct fake *fake;
    struct kvc_client *client;
    struct kvc_region *region;
    struct kvc_blocks *blocks;
};

static struct kvc_blocks *open_blocks(struct kvc_region *region, uint64_t block_bytes, int null_block)
{
    struct kvc_blocks_options options = {
        .size = sizeof(options), .block_bytes = block_bytes, .null_block = null_block};
    struct kvc_blocks *blocks;

    check_ok(kvc_blocks_open(&region, 1, &options, &blocks));
    return blocks;
}

static struct world world_open(bool leases, int min, int max)
{
    struct fake_settings settings = {.leases = leases};
    struct world w = {.fake = fake_start(&settings)};

    w.client = open_caching(w.fake, min, max, 0);
    w.region = open_region(w.client, 2, PAGE, PAGES);
    w.blocks = open_blocks(w.region, BLOCK, 0);
    return w;
}

#define SLOT (2 * PAGE) /* a page over both segments */

static void world_close(struct world *w)
{
    kvc_blocks_close(w->blocks);
    kvc_close(w->client);
    check_eq(lent_bytes(w->fake), 0);
    fake_stop(w->fake);
}

static struct kvc_blocks_status status_of(struct kvc_blocks *blocks)
{
    struct kvc_blocks_status status = {.size = sizeof(status)};

    check_ok(kvc_blocks_status(blocks, &status));
    return status;
}

static struct fake_counts counts_of(struct fake *fake)
{
    struct fake_counts counts;

    fake_count(fake, &counts);
    return counts;
}

TEST(alloc_and_free)
{
    struct world w = world_open(true, 0, 0);
    uint32_t ids[20];

    check_eq(kvc_blocks_available(w.blocks), 0);
    check_ok(kvc_blocks_alloc(w.blocks, 20, ids));
    for (uint32_t i = 0; i < 20; i++)
        check_eq(ids[i], i);
    check_eq(lent_bytes(w.fake), 3 * SLOT);
    check_eq(kvc_blocks_available(w.blocks), 4);
    check_ok(kvc_blocks_free(w.blocks, ids, 10, 0));
    check_eq(kvc_blocks_page_of(w.blocks, 9), 1);
    check_ok(kvc_blocks_free(w.blocks, ids + 10, 10, 0));
    /* What was reported a moment ago stays for now. */
    check_eq(status_of(w.blocks).used_blocks, 0);
    check_ok(kvc_blocks_trim(w.blocks));
    check_eq(lent_bytes(w.fake), 0);
    check_eq(kvc_blocks_available(w.blocks), 0);
    check_eq(counts_of(w.fake).leases, 0);
    world_close(&w);
}

TEST(all_or_nothing)
{
    struct world w = world_open(true, 0, 4);
    uint32_t ids[PAGES * EACH + 1], one;

    check_error(kvc_blocks_alloc(w.blocks, PAGES * EACH + 1, ids), KVC_E_NO_BLOCKS);
    fake_set_limit(w.fake, 3 * SLOT);
    check_ok(kvc_blocks_alloc(w.blocks, EACH + 1, ids));
    check_error(kvc_blocks_alloc(w.blocks, 2 * EACH, ids + EACH + 1), KVC_E_LIMIT);
    check_eq(lent_bytes(w.fake), 2 * SLOT);
    check_eq(status_of(w.blocks).mapped_pages, 2);
    check_eq(status_of(w.blocks).used_blocks, EACH + 1);
    check_ok(kvc_blocks_alloc(w.blocks, EACH - 1, ids + EACH + 1));
    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids + 2 * EACH));
    check_error(kvc_blocks_alloc(w.blocks, 1, &one), KVC_E_LIMIT);
    fake_set_limit(w.fake, GIB);
    check_ok(kvc_blocks_alloc(w.blocks, 1, &one));
    check_eq(one, 3 * EACH);
    world_close(&w);
}

TEST(wrong_calls)
{
    struct world w = world_open(true, 0, 4);
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct kvc_region *other = open_region(w.client, 1, PAGE, 2);
    struct kvc_region *two[2] = {other, other};
    struct kvc_blocks *blocks;
    uint32_t ids[3] = {0, 1, 1}, used[1];
    uint64_t page = 0, none = PAGES;

    check_error(kvc_region_map(w.region, &page, 1), KVC_E_INVALID);
    check_error(kvc_region_unmap(w.region, &page, 1), KVC_E_INVALID);
    check_error(kvc_blocks_open(&w.region, 1, &options, &blocks), KVC_E_INVALID);
    check_error(kvc_blocks_open(two, 2, &options, &blocks), KVC_E_INVALID);
    options.block_bytes = 2 * PAGE;
    check_error(kvc_blocks_open(&other, 1, &options, &blocks), KVC_E_INVALID);
    options.block_bytes = 0;
    check_error(kvc_blocks_open(&other, 1, &options, &blocks), KVC_E_INVALID);
    check_ok(kvc_region_map(other, &page, 1));
    options.block_bytes = BLOCK;
    check_error(kvc_blocks_open(&other, 1, &options, &blocks), KVC_E_INVALID);
    check_error(kvc_blocks_alloc(NULL, 1, ids), KVC_E_INVALID);
    check_error(kvc_blocks_alloc(w.blocks, 1, NULL), KVC_E_INVALID);
    check_error(kvc_blocks_free(w.blocks, ids, 1, 0), KVC_E_NOT_ALLOCATED);
    check_ok(kvc_blocks_alloc(w.blocks, 2, ids));
    ids[2] = ids[1];
    check_error(kvc_blocks_free(w.blocks, ids, 3, 0), KVC_E_NOT_ALLOCATED);
    check_eq(status_of(w.blocks).used_blocks, 2);
    check_error(kvc_blocks_occupancy(w.blocks, &none, 1, used), KVC_E_INVALID);
    check_ok(kvc_blocks_occupancy(w.blocks, &page, 1, used));
    check_eq(used[0], 2);
    check_eq(kvc_blocks_available(NULL), 0);
    world_close(&w);
}

TEST(null_block)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 2);
    struct kvc_blocks *blocks = open_blocks(region, BLOCK, 1);
    uint32_t ids[2 * EACH];

    check_eq(lent_bytes(fake), PAGE);
    check_eq(kvc_blocks_available(blocks), EACH - 1);
    check_error(kvc_blocks_alloc(blocks, 2 * EACH, ids), KVC_E_NO_BLOCKS);
    check_ok(kvc_blocks_alloc(blocks, 2 * EACH - 1, ids));
    for (uint32_t i = 0; i < 2 * EACH - 1; i++)
        check_eq(ids[i], i + 1);
    check_ok(kvc_blocks_clear(blocks));
    check_ok(kvc_blocks_trim(blocks));
    check_eq(lent_bytes(fake), PAGE);
    kvc_close(client); /* and the blocks with it */
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

TEST(epochs)
{
    struct world w = world_open(true, 0, 0);
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_alloc(w.blocks, 2 * EACH, ids));
    check_ok(kvc_blocks_free(w.blocks, ids, EACH, 5));
    check_ok(kvc_blocks_free(w.blocks, ids + EACH, EACH, 6));
    check_ok(kvc_blocks_trim(w.blocks));
    check_eq(lent_bytes(w.fake), 2 * SLOT);
    check_ok(kvc_blocks_complete(w.blocks, 4));
    check_eq(lent_bytes(w.fake), 2 * SLOT);
    check_ok(kvc_blocks_complete(w.blocks, 5));
    check_eq(lent_bytes(w.fake), SLOT);
    check_eq(status_of(w.blocks).waiting_pages, 1);
    check_ok(kvc_blocks_complete(w.blocks, 6));
    check_eq(lent_bytes(w.fake), 0);
    world_close(&w);
}

TEST(free_pages_are_kept)
{
    struct world w = world_open(true, 0, 2);
    uint32_t ids[5 * EACH];

    check_ok(kvc_blocks_alloc(w.blocks, 5 * EACH, ids));
    check_ok(kvc_blocks_free(w.blocks, ids, 5 * EACH, 0));
    check_eq(lent_bytes(w.fake), 2 * SLOT);
    check_eq(counts_of(w.fake).cached, 2);
    check_eq(kvc_blocks_available(w.blocks), 2 * EACH);
    check_ok(kvc_blocks_alloc(w.blocks, 2 * EACH, ids));
    check_eq(counts_of(w.fake).takes, 1);
    check_eq(counts_of(w.fake).cached, 0);
    world_close(&w);
}

/* More free pages than are kept, and a report that counts on them. */
TEST(free_leaves_what_was_reported)
{
    struct world w = world_open(false, 1, 2);
    uint32_t ids[6 * EACH];
    uint64_t available;

    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    check_ok(kvc_blocks_want(w.blocks, 5 * EACH, -1, &available));
    check_eq(available, 5 * EACH);
    check_ok(kvc_blocks_free(w.blocks, ids, EACH, 0));
    check(status_of(w.blocks).free_blocks >= 5 * EACH);
    check_ok(kvc_blocks_alloc(w.blocks, 5 * EACH, ids));
    check_eq(counts_of(w.fake).takes, 2);
    world_close(&w);
}

TEST(resize)
{
    struct world w = world_open(true, 0, 4);
    uint32_t ids[3 * EACH];

    check_ok(kvc_blocks_alloc(w.blocks, 3 * EACH, ids));
    check_ok(kvc_blocks_resize(w.blocks, 2));
    check_error(kvc_blocks_alloc(w.blocks, 1, ids), KVC_E_NO_BLOCKS);
    check_eq(lent_bytes(w.fake), 3 * SLOT);
    check_ok(kvc_blocks_free(w.blocks, ids + 2 * EACH, EACH, 0));
    check_eq(lent_bytes(w.fake), 2 * SLOT);
    check_ok(kvc_blocks_resize(w.blocks, UINT64_MAX));
    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids + 2 * EACH));
    check_eq(ids[2 * EACH], 2 * EACH);
    world_close(&w);
}

TEST(reserve)
{
    struct world w = world_open(true, 0, 0);
    struct kvc_page_census census[4];
    uint32_t ids[2 * EACH];
    size_t n;

    check_ok(kvc_blocks_reserve(w.blocks, EACH + 1));
    check_eq(lent_bytes(w.fake), 2 * SLOT);
    check_ok(kvc_blocks_trim(w.blocks));
    check_eq(lent_bytes(w.fake), 2 * SLOT);
    check_error(kvc_blocks_reserve(w.blocks, SIZE_MAX), KVC_E_NO_BLOCKS);
    check_ok(kvc_blocks_alloc(w.blocks, 2, ids));
    check_eq(status_of(w.blocks).reserved_blocks, EACH - 1);
    check_ok(kvc_blocks_census(w.blocks, census, 4, &n));
    check_eq(n, 1);
    check_eq(census[0].page, 0);
    check_eq(census[0].used, 2);
    check_ok(kvc_blocks_release(w.blocks));
    check_eq(lent_bytes(w.fake), SLOT);
    world_close(&w);
}

/* ---- Wanting ---- */

static void want_in_some_world(bool leases, int min)
{
    struct world w = world_open(leases, min, 4);
    uint64_t available;
    uint32_t ids[4 * EACH];

    check_ok(kvc_blocks_want(w.blocks, 3 * EACH, -1, &available));
    check_eq(available, 3 * EACH);
    check_eq(kvc_blocks_available(w.blocks), 3 * EACH);
    check_eq(lent_bytes(w.fake), 3 * SLOT);
    fake_set_limit(w.fake, 3 * SLOT);
    check_error(kvc_blocks_want(w.blocks, 3 * EACH + 1, -1, &available), KVC_E_LIMIT);
    check_eq(available, 3 * EACH);
    check_error(kvc_blocks_want(w.blocks, PAGES * EACH + 1, -1, &available), KVC_E_NO_BLOCKS);
    check_ok(kvc_blocks_alloc(w.blocks, 3 * EACH, ids));
    check_eq(kvc_blocks_available(w.blocks), 0);
    check_eq(counts_of(w.fake).issued, 0);
    check_eq(lent_bytes(w.fake), 3 * SLOT);
    world_close(&w);
}

TEST(want_with_leases)
{
    want_in_some_world(true, 1);
}

TEST(want_without_preallocation)
{
    want_in_some_world(true, 0);
}

TEST(want_of_an_old_daemon)
{
    want_in_some_world(false, 1);
}

static void want_in_the_background(bool leases, int min)
{
    struct world w = world_open(leases, min, 4);
    uint64_t available;

    check_ok(kvc_blocks_want(w.blocks, 2 * EACH, 0, &available));
    check(available <= 2 * EACH);
    dispatch_until(w.client, kvc_blocks_available(w.blocks) >= 2 * EACH);
    world_close(&w);
}

TEST(want_later_with_leases)
{
    want_in_the_background(true, 1);
}

TEST(want_later_without_preallocation)
{
    want_in_the_background(true, 0);
}

TEST(want_later_of_an_old_daemon)
{
    want_in_the_background(false, 1);
}

/* ---- Preallocation ---- */

TEST(pages_are_ready)
{
    struct world w = world_open(true, 2, 4);
    uint32_t ids[EACH];

    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    dispatch_until(w.client, status_of(w.blocks).free_pages >= 2);
    check_eq(counts_of(w.fake).courtesies, counts_of(w.fake).leases);
    check(counts_of(w.fake).leased_takes > 0);
    check(status_of(w.blocks).ready_total >= 2);
    check(status_of(w.blocks).free_pages <= 4);
    world_close(&w);
}

TEST(pages_are_ready_with_an_old_daemon)
{
    struct world w = world_open(false, 2, 4);
    uint32_t ids[EACH];

    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    dispatch_until(w.client, status_of(w.blocks).free_pages >= 2);
    world_close(&w);
}

TEST(nothing_is_prepared_under_pressure)
{
    struct world w = world_open(true, 2, 4);
    uint32_t ids[EACH];

    fake_press(w.fake, PAGE);
    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    check_ok(kvc_dispatch(w.client));
    check_eq(kvc_get_timeout(w.client), -1);
    check_eq(counts_of(w.fake).leases, 0);
    check_ok(kvc_blocks_free(w.blocks, ids, EACH, 0));
    check_eq(lent_bytes(w.fake), 0);
    world_close(&w);
}

/* ---- Several of one client ---- */

TEST(two_groups_share_a_limit)
{
    struct world w = world_open(true, 1, 4);
    struct kvc_region *region = open_region(w.client, 2, PAGE, PAGES);
    struct kvc_blocks *other = open_blocks(region, BLOCK, 0);
    uint32_t ids[4 * EACH];

    fake_set_limit(w.fake, 4 * SLOT);
    check_ok(kvc_blocks_alloc(w.blocks, 2 * EACH, ids));
    check_ok(kvc_blocks_free(w.blocks, ids, 2 * EACH, 0));
    check_eq(status_of(w.blocks).free_pages, 2);
    check_ok(kvc_blocks_alloc(other, 4 * EACH, ids));
    check_eq(status_of(w.blocks).mapped_pages, 0);
    check_error(kvc_blocks_alloc(w.blocks, 1, ids), KVC_E_LIMIT);
    kvc_blocks_close(other);
    check_ok(kvc_blocks_alloc(w.blocks, 4 * EACH, ids));
    world_close(&w);
}

TEST(what_was_reported_is_kept_from_the_other_group)
{
    struct world w = world_open(true, 1, 4);
    struct kvc_region *region = open_region(w.client, 2, PAGE, PAGES);
    struct kvc_blocks *other = open_blocks(region, BLOCK, 0);
    uint32_t ids[4 * EACH];
    uint64_t available;

    fake_set_limit(w.fake, 4 * SLOT);
    check_ok(kvc_blocks_want(w.blocks, 2 * EACH, -1, &available));
    check_eq(available, 2 * EACH);
    check_error(kvc_blocks_alloc(other, 3 * EACH, ids), KVC_E_LIMIT);
    check_ok(kvc_blocks_alloc(w.blocks, 2 * EACH, ids));
    kvc_blocks_close(other);
    world_close(&w);
}

TEST(two_regions_are_mapped_together)
{
    struct world w = world_open(true, 0, 0);
    struct kvc_region *regions[2] = {open_region(w.client, 1, PAGE, 4),
                                     open_region(w.client, 1, 2 * PAGE, 4)};
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct kvc_blocks *blocks;
    uint32_t ids[4 * EACH];

    check_ok(kvc_blocks_open(regions, 2, &options, &blocks));
    check_ok(kvc_blocks_alloc(blocks, EACH + 1, ids));
    check_eq(lent_bytes(w.fake), 6 * PAGE);
    fake_set_limit(w.fake, 7 * PAGE);
    check_error(kvc_blocks_alloc(blocks, EACH, ids), KVC_E_LIMIT);
    check_eq(lent_bytes(w.fake), 6 * PAGE);
    check_eq(status_of(blocks).mapped_pages, 2);
    check_eq(status_of(blocks).broken_pages, 0);
    kvc_blocks_close(blocks);
    check_eq(lent_bytes(w.fake), 0);
    world_close(&w);
}

/* Blocks over two regions, of a client each. */
struct pair_world {
    struct world w;
    struct kvc_client *second;
    struct kvc_region *regions[2];
    struct kvc_blocks *blocks;
};

#define PAIR_PAGE (3 * PAGE) /* over both regions */

static struct pair_world pair_open(bool leases, int min)
{
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct pair_world p = {.w = world_open(leases, min, 4)};

    p.second = open_caching(p.w.fake, min, 4, 0);
    p.regions[0] = open_region(p.w.client, 1, PAGE, 4);
    p.regions[1] = open_region(p.second, 1, 2 * PAGE, 4);
    check_ok(kvc_blocks_open(p.regions, 2, &options, &p.blocks));
    return p;
}

static void pair_close(struct pair_world *p)
{
    kvc_blocks_close(p->blocks);
    kvc_close(p->second);
    world_close(&p->w);
}

/* Where pages are mapped in place of being set aside: at once, and in both regions. */
static void want_over_two_regions(int timeout_ms)
{
    struct pair_world p = pair_open(false, 1);
    uint64_t available;
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_want(p.blocks, 2 * EACH, timeout_ms, &available));
    check_eq(available, 2 * EACH);
    check_eq(lent_bytes(p.w.fake), 2 * PAIR_PAGE);
    check_eq(status_of(p.blocks).mapped_pages, 2);
    check_ok(kvc_blocks_alloc(p.blocks, 2 * EACH, ids));
    check_eq(lent_bytes(p.w.fake), 2 * PAIR_PAGE);
    fake_set_limit(p.w.fake, 2 * PAIR_PAGE + PAGE);
    check_error(kvc_blocks_want(p.blocks, EACH, timeout_ms, &available), KVC_E_LIMIT);
    check_eq(available, 0);
    check_eq(lent_bytes(p.w.fake), 2 * PAIR_PAGE);
    pair_close(&p);
}

TEST(want_over_two_regions_of_an_old_daemon)
{
    want_over_two_regions(-1);
}

TEST(want_later_over_two_regions_of_an_old_daemon)
{
    want_over_two_regions(0);
}

TEST(want_over_two_regions_with_leases)
{
    struct pair_world p = pair_open(true, 1);
    uint64_t available;
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_want(p.blocks, 2 * EACH, -1, &available));
    check_eq(available, 2 * EACH);
    check_eq(counts_of(p.w.fake).issued, 2 + 2);
    check_ok(kvc_blocks_alloc(p.blocks, 2 * EACH, ids));
    check_eq(lent_bytes(p.w.fake), 2 * PAIR_PAGE);
    pair_close(&p);
}

/* What only one region got makes no page: it is offered again, and a report doesn't claim it. */
TEST(claims_that_make_no_page)
{
    struct pair_world p = pair_open(true, 1);
    struct kvc_blocks_status status;
    uint64_t available;

    fake_set_limit(p.w.fake, 4 * PAGE);
    check_error(kvc_blocks_want(p.blocks, 2 * EACH, -1, &available), KVC_E_LIMIT);
    check_eq(available, 0);
    status = status_of(p.blocks);
    check_eq(status.claimed_pages, 0);
    check_eq(status.offered_pages, 0);
    fake_withdraw(p.w.fake, 4);
    check_eq(counts_of(p.w.fake).issued, 0);
    pair_close(&p);
}

/* The first one takes the blocks with it. */
static void close_regions(int first)
{
    struct pair_world p = pair_open(true, 1);
    uint32_t ids[EACH];

    check_ok(kvc_blocks_alloc(p.blocks, EACH, ids));
    kvc_region_close(p.regions[first]);
    check_eq(lent_bytes(p.w.fake), 0);
    check_ok(map_range(p.regions[1 - first], 0, 1));
    kvc_region_close(p.regions[1 - first]);
    check_eq(lent_bytes(p.w.fake), 0);
    kvc_close(p.second);
    world_close(&p.w);
}

TEST(first_region_closed_before_the_blocks)
{
    close_regions(0);
}

TEST(second_region_closed_before_the_blocks)
{
    close_regions(1);
}

TEST(a_client_of_two_closed_before_the_blocks)
{
    struct pair_world p = pair_open(true, 1);
    uint32_t ids[EACH];

    check_ok(kvc_blocks_alloc(p.blocks, EACH, ids));
    kvc_close(p.second);
    check_eq(lent_bytes(p.w.fake), 0);
    check_ok(map_range(p.regions[0], 0, 1));
    world_close(&p.w);
}

TEST(in_a_forked_child)
{
    struct world w = world_open(true, 0, 2);
    uint32_t ids[2];
    uint64_t page = 0;
    int status;
    pid_t pid;

    check_ok(kvc_blocks_alloc(w.blocks, 2, ids));
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        struct kvc_blocks_status s = {.size = sizeof(s)};
        uint32_t used;
        size_t n;
        bool good =
            kvc_blocks_alloc(w.blocks, 1, ids) == KVC_E_FORKED &&
            kvc_blocks_free(w.blocks, ids, 1, 0) == KVC_E_FORKED &&
            kvc_blocks_complete(w.blocks, 1) == KVC_E_FORKED && kvc_blocks_available(w.blocks) == 0 &&
            kvc_blocks_want(w.blocks, 1, 0, NULL) == KVC_E_FORKED &&
            kvc_blocks_reserve(w.blocks, 1) == KVC_E_FORKED && kvc_blocks_release(w.blocks) == KVC_E_FORKED &&
            kvc_blocks_trim(w.blocks) == KVC_E_FORKED && kvc_blocks_resize(w.blocks, 1) == KVC_E_FORKED &&
            kvc_blocks_clear(w.blocks) == KVC_E_FORKED &&
            kvc_blocks_occupancy(w.blocks, &page, 1, &used) == KVC_E_FORKED &&
            kvc_blocks_census(w.blocks, NULL, 0, &n) == KVC_E_FORKED &&
            kvc_blocks_status(w.blocks, &s) == KVC_E_FORKED && kvc_blocks_page_of(w.blocks, 0) == UINT64_MAX;

        kvc_blocks_close(w.blocks);
        kvc_close(w.client);
        _exit(good ? 0 : 1);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check_ok(kvc_blocks_alloc(w.blocks, 1, ids));
    world_close(&w);
}
