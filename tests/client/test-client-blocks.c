/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks over one region, with a daemon that knows leases and with one that doesn't.
 */

#include "blockworld.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

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
    check_eq(fake_count(w.fake).leases, 0);
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

/* Neither speaks to the daemon, even where it would have to for more. */
TEST(try_alloc_and_try_free)
{
    struct world w = world_open(true, 0, 1);
    uint32_t ids[3 * EACH];
    int untidy = 7;

    check_error(kvc_blocks_try_alloc(w.blocks, 1, ids), KVC_E_NO_BLOCKS);
    check_eq(lent_bytes(w.fake), 0);
    check_ok(kvc_blocks_alloc(w.blocks, 3 * EACH, ids));
    check_ok(kvc_blocks_try_free(w.blocks, ids, 2, 0, &untidy));
    check_eq(untidy, 0);
    check_error(kvc_blocks_try_alloc(w.blocks, 3, ids), KVC_E_NO_BLOCKS);
    check_ok(kvc_blocks_try_alloc(w.blocks, 2, ids));
    check_error(kvc_blocks_try_free(w.blocks, ids, 0, 0, NULL), KVC_E_INVALID);
    check_ok(kvc_blocks_try_free(w.blocks, ids, 3 * EACH, 0, &untidy));
    check_eq(untidy, 1);
    check_eq(lent_bytes(w.fake), 3 * SLOT);
    check_eq(status_of(w.blocks).free_pages, 3);
    check_ok(kvc_blocks_tidy(w.blocks));
    check_eq(lent_bytes(w.fake), SLOT);
    check_eq(status_of(w.blocks).free_pages, 1);
    check_error(kvc_blocks_try_free(w.blocks, ids, 1, 0, &untidy), KVC_E_NOT_ALLOCATED);
    check_error(kvc_blocks_try_alloc(NULL, 1, ids), KVC_E_INVALID);
    check_error(kvc_blocks_try_alloc(w.blocks, 1, NULL), KVC_E_INVALID);
    check_error(kvc_blocks_tidy(NULL), KVC_E_INVALID);
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
    check_eq(fake_count(w.fake).cached, 2);
    check_eq(kvc_blocks_available(w.blocks), 2 * EACH);
    check_ok(kvc_blocks_alloc(w.blocks, 2 * EACH, ids));
    check_eq(fake_count(w.fake).takes, 1);
    check_eq(fake_count(w.fake).cached, 0);
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
    check_eq(fake_count(w.fake).takes, 2);
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
    check_eq(fake_count(w.fake).issued, 0);
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
    check_eq(fake_count(w.fake).courtesies, fake_count(w.fake).leases);
    check(fake_count(w.fake).leased_takes > 0);
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

#define MAX 10

static bool are_ready(struct kvc_blocks *blocks, uint64_t pages)
{
    struct kvc_blocks_status status = status_of(blocks);

    check(status.free_pages <= MAX);
    check(status.free_pages + status.claimed_pages + status.offered_pages <= 2 * MAX);
    return status.free_pages >= pages;
}

/* What was used of late says how many, not only the least that there is to be; and the most bounds it. */
TEST_LIMIT(pages_are_ready_for_who_uses_many, 20)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});
    struct kvc_client *client = open_caching(fake, 1, MAX, 0);
    struct kvc_blocks *blocks = open_blocks(open_region(client, 1, PAGE, 100), BLOCK, 0);
    uint32_t ids[8 * EACH];
    uint64_t waited;

    for (unsigned i = 0; i < 4; i++)
        check_ok(kvc_blocks_alloc(blocks, 8 * EACH, ids));
    waited = status_of(blocks).waited_total;
    dispatch_until(client, are_ready(blocks, 4));
    check_ok(kvc_blocks_alloc(blocks, 4 * EACH, ids));
    check_eq(status_of(blocks).waited_total, waited);
    dispatch_until(client, are_ready(blocks, 4));
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
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
    check_eq(fake_count(w.fake).leases, 0);
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
    check_eq(fake_count(w.fake).leases, 0);
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
    check_eq(fake_count(w.fake).leases, 0);
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
    check_eq(fake_count(w.fake).courtesies, 1);
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

TEST(in_a_forked_child)
{
    struct world w = world_open(true, 0, 2);
    struct kvc_region *other = open_region(w.client, 1, PAGE, 2);
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct kvc_blocks *none = NULL;
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
            kvc_blocks_open(&other, 1, &options, &none) == KVC_E_FORKED && !none &&
            kvc_blocks_alloc(w.blocks, 1, ids) == KVC_E_FORKED &&
            kvc_blocks_free(w.blocks, ids, 1, 0) == KVC_E_FORKED &&
            kvc_blocks_try_alloc(w.blocks, 1, ids) == KVC_E_FORKED &&
            kvc_blocks_try_free(w.blocks, ids, 1, 0, &status) == KVC_E_FORKED &&
            kvc_blocks_tidy(w.blocks) == KVC_E_FORKED && kvc_blocks_complete(w.blocks, 1) == KVC_E_FORKED &&
            kvc_blocks_available(w.blocks) == 0 && kvc_blocks_want(w.blocks, 1, 0, NULL) == KVC_E_FORKED &&
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
