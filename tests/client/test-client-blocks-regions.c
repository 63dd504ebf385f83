/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks over several regions, of one client and of several: opened over what is there, mapped together, and
 * closed in any order.
 */

#include "blockworld.h"

#include <pthread.h>

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
    while (fake_count(fake).leases < 2)
        ;
    check_ok(kvc_dispatch(client));
    check_eq(fake_count(fake).issued, 2);
    check_eq(status_of(blocks).offered_pages, 0);
    fake_set_limit(fake, GIB);
    check_ok(kvc_blocks_want(blocks, 2 * EACH, 0, NULL));
    while (fake_count(fake).issued < 4)
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
        while (fake_count(fake).late == 0)
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
    while (fake_count(fake).late == 0)
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

/* Blocks over two regions, of a client each. */
struct duo {
    struct world w;
    struct kvc_client *second;
    struct kvc_region *regions[2];
    struct kvc_blocks *blocks;
};

#define DUO_PAGE (3 * PAGE) /* over both regions */

static struct duo duo_open(bool leases, int min)
{
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct duo p = {.w = world_open(leases, min, 4)};

    p.second = open_caching(p.w.fake, min, 4, 0);
    p.regions[0] = open_region(p.w.client, 1, PAGE, 4);
    p.regions[1] = open_region(p.second, 1, 2 * PAGE, 4);
    check_ok(kvc_blocks_open(p.regions, 2, &options, &p.blocks));
    return p;
}

static void duo_close(struct duo *p)
{
    kvc_blocks_close(p->blocks);
    kvc_close(p->second);
    world_close(&p->w);
}

/* Where pages are mapped in place of being set aside: at once, and in both regions. */
static void want_over_two_regions(int timeout_ms)
{
    struct duo p = duo_open(false, 1);
    uint64_t available;
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_want(p.blocks, 2 * EACH, timeout_ms, &available));
    check_eq(available, 2 * EACH);
    check_eq(lent_bytes(p.w.fake), 2 * DUO_PAGE);
    check_eq(status_of(p.blocks).mapped_pages, 2);
    check_ok(kvc_blocks_alloc(p.blocks, 2 * EACH, ids));
    check_eq(lent_bytes(p.w.fake), 2 * DUO_PAGE);
    fake_set_limit(p.w.fake, 2 * DUO_PAGE + PAGE);
    check_error(kvc_blocks_want(p.blocks, EACH, timeout_ms, &available), KVC_E_LIMIT);
    check_eq(available, 0);
    check_eq(lent_bytes(p.w.fake), 2 * DUO_PAGE);
    duo_close(&p);
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
    struct duo p = duo_open(true, 1);
    uint64_t available;
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_want(p.blocks, 2 * EACH, -1, &available));
    check_eq(available, 2 * EACH);
    check_eq(fake_count(p.w.fake).issued, 2 + 2);
    check_ok(kvc_blocks_alloc(p.blocks, 2 * EACH, ids));
    check_eq(lent_bytes(p.w.fake), 2 * DUO_PAGE);
    duo_close(&p);
}

/* What only one region got makes no page: it is offered again, and a report doesn't claim it. */
TEST(claims_that_make_no_page)
{
    struct duo p = duo_open(true, 1);
    struct kvc_blocks_status status;
    uint64_t available;

    fake_set_limit(p.w.fake, 4 * PAGE);
    check_error(kvc_blocks_want(p.blocks, 2 * EACH, -1, &available), KVC_E_LIMIT);
    check_eq(available, 0);
    status = status_of(p.blocks);
    check_eq(status.claimed_pages, 0);
    check_eq(status.offered_pages, 0);
    fake_withdraw(p.w.fake, 4);
    check_eq(fake_count(p.w.fake).issued, 0);
    duo_close(&p);
}

/* ---- A driver that fails, a daemon that does not answer ---- */

/* Trying again what has just failed would never end. */
TEST(a_driver_that_unmaps_nothing)
{
    uint32_t ids[4 * EACH];
    struct world w;

    check_eq(setenv("KVCACHED_EMULATE_FAULTS", "cuMemUnmap:1-8=INVALID_VALUE", 1), 0);
    w = world_open(true, 0, 4);
    check_ok(kvc_blocks_alloc(w.blocks, 4 * EACH, ids));
    check_ok(kvc_blocks_free(w.blocks, ids, 4 * EACH, 0));
    kvc_trim(w.client);
    check_eq(lent_bytes(w.fake), 4 * SLOT);
    check_eq(status_of(w.blocks).free_pages, 4);
    while (kvc_blocks_trim(w.blocks) == KVC_E_DRIVER)
        ;
    check_eq(lent_bytes(w.fake), 0);
    world_close(&w);
}

static void *want_soon(void *data)
{
    check_error(kvc_blocks_want(data, 3 * EACH, 1000, NULL), KVC_E_TIMEOUT);
    return NULL;
}

/* Who waits behind a question that is not answered waits as long as it has said, and sees to notices. */
TEST(waiting_behind_a_question)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;
    struct kvc_blocks *blocks;
    pthread_t thread;

    options.timeout_ms = 3600000;
    options.min_reserved_pages = 1;
    options.max_reserved_pages = 4;
    check_ok(kvc_open(&options, &client));
    blocks = open_blocks(open_region(client, 2, PAGE, PAGES), BLOCK, 0);
    fake_lie(fake, FAKE_SILENCE, MESSAGE_LEASE);
    check_ok(kvc_blocks_want(blocks, 2 * EACH, 0, NULL));
    check_eq(pthread_create(&thread, NULL, want_soon, blocks), 0);
    fake_notice(fake, PAGE, 60000, true);
    check_eq(pthread_join(thread, NULL), 0);
    check_eq(fake_count(fake).acks, 1);
    kvc_close(client);
    fake_stop(fake);
}
