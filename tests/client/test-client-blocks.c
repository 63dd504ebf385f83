/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks over one region, with a daemon that knows leases and with one that doesn't.
 */

#include "support.h"

#include <pthread.h>
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

/* More pages than are mapped at a time: the first ones would fit. */
TEST(all_or_nothing_in_many_pages)
{
    struct world w = world_open(true, 0, 0);
    struct kvc_region *region = open_region(w.client, 1, PAGE, 200);
    struct kvc_blocks *blocks = open_blocks(region, PAGE, 0);
    uint32_t ids[150];

    fake_set_limit(w.fake, 100 * PAGE);
    check_error(kvc_blocks_alloc(blocks, 150, ids), KVC_E_LIMIT);
    check_eq(lent_bytes(w.fake), 0);
    check_eq(status_of(blocks).mapped_pages, 0);
    check_eq(status_of(blocks).empty_pages, 200);
    check_ok(kvc_blocks_alloc(blocks, 100, ids));
    kvc_blocks_close(blocks);
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

/* However soon the engine goes on. */
TEST(pages_are_ready_again)
{
    struct world w = world_open(true, 2, 2);
    uint32_t ids[EACH];

    for (unsigned i = 0; i < 10; i++) {
        check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
        dispatch_until(w.client, status_of(w.blocks).free_pages >= 2);
    }
    check_eq(status_of(w.blocks).waited_total, 1);
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

TEST(nothing_is_prepared_after_a_trim)
{
    struct world w = world_open(true, 2, 4);
    uint32_t ids[EACH];

    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    check_ok(kvc_blocks_free(w.blocks, ids, EACH, 0));
    check_ok(kvc_blocks_trim(w.blocks));
    check_ok(kvc_dispatch(w.client));
    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    check_eq(counts_of(w.fake).leases, 0);
    dispatch_until(w.client, status_of(w.blocks).free_pages >= 2);
    world_close(&w);
}

/* The second call's answer shows that whatever came before it has arrived. */
TEST(nothing_is_prepared_without_preallocation)
{
    struct world w = world_open(true, 0, 4);
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids));
    check_ok(kvc_dispatch(w.client));
    check_ok(kvc_blocks_alloc(w.blocks, EACH, ids + EACH));
    check_eq(counts_of(w.fake).leases, 0);
    check_eq(lent_bytes(w.fake), 2 * SLOT);
    world_close(&w);
}

TEST(a_refused_courtesy_is_not_repeated)
{
    struct world w = world_open(true, 2, 4);
    uint32_t ids[2 * EACH];

    fake_set_limit(w.fake, 2 * SLOT);
    check_ok(kvc_blocks_alloc(w.blocks, 2 * EACH, ids));
    for (unsigned i = 0; i < 5; i++) {
        check_ok(kvc_dispatch(w.client));
        check_error(kvc_blocks_alloc(w.blocks, 1, ids), KVC_E_LIMIT);
    }
    check_eq(counts_of(w.fake).courtesies, 1);
    fake_set_limit(w.fake, GIB);
    check_ok(kvc_blocks_alloc(w.blocks, 1, ids));
    dispatch_until(w.client, status_of(w.blocks).free_pages >= 2);
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

/* What is set aside for one region alone is of no use to the blocks. */
TEST(offers_count_where_all_regions_have_them)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *regions[2] = {open_region(client, 1, PAGE, 8), open_region(client, 1, PAGE, 8)};
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct kvc_blocks *blocks;

    check_ok(kvc_blocks_open(regions, 2, &options, &blocks));
    fake_set_limit(fake, 3 * PAGE);
    check_ok(kvc_blocks_want(blocks, 2 * EACH, 0, NULL));
    while (counts_of(fake).leases < 2)
        ;
    check_ok(kvc_dispatch(client));
    check_eq(counts_of(fake).issued, 2);
    check_eq(status_of(blocks).offered_pages, 0);
    fake_set_limit(fake, GIB);
    check_ok(kvc_blocks_want(blocks, 2 * EACH, 0, NULL));
    while (counts_of(fake).issued < 4)
        ;
    check_eq(status_of(blocks).claimed_pages, 0);
    check_eq(status_of(blocks).offered_pages, 2);
    check_eq(kvc_blocks_available(blocks), 2 * EACH);
    check_eq(status_of(blocks).claimed_pages, 2);
    check_eq(status_of(blocks).offered_pages, 0);
    kvc_blocks_close(blocks);
    kvc_close(client);
    fake_stop(fake);
}

/* What the host has kept, or has still to come, is one region's alone. */
static void open_over_what_is_cached(size_t n_regions, bool refill)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, refill ? 4 : 0, 8, 0);
    struct kvc_region *regions[2] = {open_region(client, 1, PAGE, 8), open_region(client, 1, PAGE, 8)};
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct kvc_blocks *blocks;
    uint32_t ids[8 * EACH];

    check_ok(map_range(regions[0], 0, 3));
    if (refill) {
        fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
        check_ok(kvc_dispatch(client));
        while (counts_of(fake).late == 0)
            ;
    }
    check_ok(unmap_range(regions[0], 0, 3));
    check_eq(lent_bytes(fake), (refill ? 7 : 3) * PAGE);
    check_ok(kvc_blocks_open(regions, n_regions, &options, &blocks));
    check_ok(kvc_dispatch(client));
    check_eq(status_of(blocks).mapped_pages, 0);
    fake_release(fake);
    dispatch_until(client, lent_bytes(fake) == 0);
    check_eq(status_of(blocks).mapped_pages, 0);
    check_ok(kvc_blocks_alloc(blocks, 8 * EACH, ids));
    check_eq(lent_bytes(fake), 8 * PAGE * n_regions);
    kvc_blocks_close(blocks);
    kvc_close(client);
    fake_stop(fake);
}

TEST(what_was_cached_is_not_mapped_in_one_region_alone)
{
    open_over_what_is_cached(2, false);
}

TEST(what_was_asked_for_is_not_mapped_in_one_region_alone)
{
    open_over_what_is_cached(2, true);
}

TEST(one_region_gives_its_cache_back_too)
{
    open_over_what_is_cached(1, false);
}

struct map_call {
    pthread_t thread;
    struct kvc_region *region;
};

static void *map_page(void *data)
{
    struct map_call *call = data;

    check_ok(map_range(call->region, 0, 1));
    return NULL;
}

/* The host's map waits for the daemon: the page is its own already. */
TEST(blocks_are_not_opened_over_a_map)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct map_call call = {.region = open_region(client, 1, PAGE, 8)};
    struct kvc_blocks *blocks;

    fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
    check_eq(pthread_create(&call.thread, NULL, map_page, &call), 0);
    while (counts_of(fake).late == 0)
        ;
    check_error(kvc_blocks_open(&call.region, 1, &options, &blocks), KVC_E_INVALID);
    fake_release(fake);
    check_eq(pthread_join(call.thread, NULL), 0);
    check_ok(unmap_range(call.region, 0, 1));
    check_ok(kvc_blocks_open(&call.region, 1, &options, &blocks));
    kvc_blocks_close(blocks);
    kvc_close(client);
    fake_stop(fake);
}

static uint64_t mapped_bytes(struct kvc_client *client)
{
    struct kvc_status status = {.size = sizeof(status)};

    check_ok(kvc_status(client, &status));
    return status.mapped_bytes;
}

/* A pinned page stays, and no other for its sake. */
TEST(pinned_pages_are_the_hosts_after_closing)
{
    struct world w = world_open(true, 0, 2);
    uint32_t ids[6 * EACH];

    check_ok(kvc_blocks_alloc(w.blocks, 6 * EACH, ids));
    check_ok(kvc_region_pin(w.region, 2, 1));
    w.blocks = kvc_blocks_close(w.blocks);
    check_eq(lent_bytes(w.fake), SLOT);
    check_eq(mapped_bytes(w.client), SLOT);
    check_error(unmap_range(w.region, 2, 1), KVC_E_PINNED);
    check_ok(kvc_region_unpin(w.region, 2, 1));
    check_ok(unmap_range(w.region, 2, 1));
    check_eq(mapped_bytes(w.client), 0);
    check_ok(kvc_trim(w.client));
    check_eq(lent_bytes(w.fake), 0);
    world_close(&w);
}

TEST(what_the_driver_does_not_unmap_is_cached_after_closing)
{
    struct world w;
    uint32_t ids[6 * EACH];

    check_eq(setenv("KVCACHED_EMULATE_FAULTS", "cuMemUnmap:1=INVALID_VALUE", 1), 0);
    w = world_open(true, 0, 2);
    check_ok(kvc_blocks_alloc(w.blocks, 6 * EACH, ids));
    w.blocks = kvc_blocks_close(w.blocks);
    check(lent_bytes(w.fake) > 0);
    check_eq(mapped_bytes(w.client), 0);
    check_ok(kvc_trim(w.client));
    check_eq(lent_bytes(w.fake), 0);
    world_close(&w);
}

/* ---- Closed with its regions ---- */

struct pair {
    struct kvc_client *clients[2]; /* of the regions */
    struct kvc_region *regions[2];
};

static struct pair pair_open(struct fake *fake, bool two_clients, int own_thread)
{
    struct pair p = {0};
    struct kvc_options options = plain_options(fake);
    struct kvc_blocks_options blocks_options = {.size = sizeof(blocks_options), .block_bytes = BLOCK};
    struct kvc_blocks *blocks;
    uint32_t ids[4 * EACH];

    options.own_thread = own_thread;
    options.min_reserved_pages = options.max_reserved_pages = 2;
    for (int i = 0; i < 2; i++) {
        if (i == 0 || two_clients)
            check_ok(kvc_open(&options, &p.clients[i]));
        else
            p.clients[i] = p.clients[0];
        p.regions[i] = open_region(p.clients[i], 1, PAGE, PAGES);
    }
    check_ok(kvc_blocks_open(p.regions, 2, &blocks_options, &blocks));
    check_ok(kvc_blocks_alloc(blocks, 4 * EACH, ids));
    check_ok(kvc_blocks_want(blocks, EACH, -1, NULL));
    return p;
}

static void close_a_region_first(struct fake *fake, bool two_clients, int own_thread, int first)
{
    struct pair p = pair_open(fake, two_clients, own_thread);
    struct kvc_region *other = p.regions[1 - first];

    check(!kvc_region_close(p.regions[first]));
    check_eq(mapped_bytes(p.clients[0]) + mapped_bytes(p.clients[1]), 0);
    check_ok(map_range(other, 0, 2));
    check_ok(kvc_dispatch(p.clients[1 - first]));
    check(!kvc_region_close(other));
    check(!kvc_close(p.clients[0]));
    if (two_clients)
        check(!kvc_close(p.clients[1]));
    check_eq(lent_bytes(fake), 0);
}

TEST(the_first_region_takes_its_blocks_along)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});

    for (int i = 0; i < 8; i++)
        close_a_region_first(fake, i & 1, i >> 1 & 1, i >> 2 & 1);
    fake_stop(fake);
}

TEST(a_client_takes_its_blocks_along)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});

    for (int own_thread = 0; own_thread < 2; own_thread++) {
        struct pair p = pair_open(fake, false, own_thread);

        check(!kvc_close(p.clients[0]));
        check_eq(lent_bytes(fake), 0);
    }
    fake_stop(fake);
}

TEST(one_of_two_clients_takes_their_blocks_along)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});

    for (int i = 0; i < 4; i++) {
        struct pair p = pair_open(fake, true, i >> 1);
        int first = i & 1;

        check(!kvc_close(p.clients[first]));
        check_eq(mapped_bytes(p.clients[1 - first]), 0);
        check_ok(map_range(p.regions[1 - first], 0, 2));
        check(!kvc_close(p.clients[1 - first]));
        check_eq(lent_bytes(fake), 0);
    }
    fake_stop(fake);
}

static void *close_client(void *data)
{
    check(!kvc_close(data));
    return NULL;
}

/* Either may be the one that takes the blocks along. */
TEST(two_clients_are_closed_at_once)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});

    for (int i = 0; i < 20; i++) {
        struct pair p = pair_open(fake, true, i & 1);
        pthread_t threads[2];

        for (int j = 0; j < 2; j++)
            check_eq(pthread_create(&threads[j], NULL, close_client, p.clients[j]), 0);
        for (int j = 0; j < 2; j++)
            check_eq(pthread_join(threads[j], NULL), 0);
        check_eq(lent_bytes(fake), 0);
    }
    fake_stop(fake);
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
