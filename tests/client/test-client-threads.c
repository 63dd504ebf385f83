/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Several threads on one client, under a limit that refuses them now and then, with the library's own thread
 * refilling what they use. Each thread stamps its pages and finds the stamps again; at the end everything is
 * back. Meant to be run under ThreadSanitizer as well.
 */

#include "support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define PAGE (2 * MIB)
#define THREADS 4
#define PAGES_EACH 12
#define ROUNDS 60

struct crew {
    struct kvc_client *client;
    struct kvc_region *regions[2];
    struct emulator *emulator;
    uint32_t flags; /* of the regions */
    atomic_uint refused, mapped;
    atomic_bool done;
};

struct hand {
    pthread_t thread;
    struct crew *crew;
    unsigned number;
    uint64_t random;
};

/* Some of the thread's own pages, ascending. */
static size_t choose(struct hand *hand, uint64_t *pages)
{
    size_t n = 0;

    for (uint64_t i = 0; i < PAGES_EACH; i++)
        if (test_random(&hand->random) % 2)
            pages[n++] = hand->number * PAGES_EACH + i;
    return n;
}

/* Sometimes the pages leave when the GPU has come to an event. */
static void take_away(struct hand *hand, struct kvc_region *region, const uint64_t *pages, size_t n)
{
    const struct cuda_driver *driver = hand->crew->emulator->driver;
    CUevent event;

    if (n == 0 || test_random(&hand->random) % 2) {
        check_ok(kvc_region_unmap(region, pages, n));
        return;
    }
    check_eq(driver->cuEventCreate(&event, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
    check_eq(driver->cuEventRecord(event, NULL), CUDA_SUCCESS);
    check_ok(kvc_region_unmap_after(region, pages, n, event));
    check_eq(driver->cuEventDestroy(event), CUDA_SUCCESS);
    check_error(kvc_region_unmap(region, pages, n), KVC_E_NOT_MAPPED);
}

/* Pinned pages stay, whatever others do. */
static void pin_one(struct kvc_region *region, uint64_t page)
{
    check_ok(kvc_region_pin(region, page, 1));
    check_error(kvc_region_unmap(region, &page, 1), KVC_E_PINNED);
    check_ok(kvc_region_unpin(region, page, 1));
}

static void turn(struct hand *hand, uint32_t serial)
{
    struct crew *crew = hand->crew;
    struct kvc_region *region = crew->regions[test_random(&hand->random) % 2];
    uint64_t pages[PAGES_EACH];
    size_t n = choose(hand, pages);
    int r = kvc_region_map(region, pages, n);

    if (r == KVC_E_LIMIT) {
        atomic_fetch_add(&crew->refused, 1);
        return;
    }
    check_ok(r);
    atomic_fetch_add(&crew->mapped, 1);
    if (crew->flags & KVC_REGION_ZERO_ON_MAP)
        for (size_t i = 0; i < n; i++)
            check_stamp(crew->emulator, region, PAGE, 0, pages[i], 0);
    for (size_t i = 0; i < n; i++)
        stamp(crew->emulator, region, PAGE, 0, pages[i], serial + (uint32_t)i);
    for (size_t i = 0; i < n; i++)
        check_stamp(crew->emulator, region, PAGE, 0, pages[i], serial + (uint32_t)i);
    if (n > 0)
        pin_one(region, pages[0]);
    take_away(hand, region, pages, n);
}

static void *work(void *data)
{
    struct hand *hand = data;

    check_eq(hand->crew->emulator->driver->cuCtxSetCurrent(hand->crew->emulator->context), CUDA_SUCCESS);
    for (uint32_t round = 0; round < ROUNDS; round++)
        turn(hand, (hand->number * ROUNDS + round) * 1000);
    return NULL;
}

/* What a host's other threads do meanwhile. */
static void *look(void *data)
{
    struct crew *crew = data;
    struct kvc_status status = {.size = sizeof(status)};

    while (!atomic_load(&crew->done)) {
        check_ok(kvc_status(crew->client, &status));
        check(status.connected);
        check(kvc_get_events(crew->client) > 0);
        check(kvc_get_timeout(crew->client) >= -1);
        check_ok(kvc_dispatch(crew->client));
        check_ok(kvc_trim(crew->client));
    }
    return NULL;
}

static struct kvc_region *open_flagged(struct crew *crew)
{
    const struct kvc_region_options options = {.size = sizeof(options),
                                               .page_bytes = PAGE,
                                               .pages = (uint64_t)THREADS * PAGES_EACH,
                                               .flags = crew->flags};
    struct kvc_region *region;

    check_ok(kvc_region_open(crew->client, &options, &region));
    return region;
}

static void run_crew(uint32_t flags, int own_thread, int min, int max)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct crew crew = {.flags = flags};
    struct hand hands[THREADS];
    pthread_t looker;

    options.own_thread = own_thread;
    options.min_reserved_pages = min;
    options.max_reserved_pages = max;
    check_ok(kvc_open(&options, &crew.client));
    fake_set_limit(fake, 20 * PAGE);
    for (int i = 0; i < 2; i++)
        crew.regions[i] = open_flagged(&crew);
    crew.emulator = emulator_open(crew.client);
    check_eq(pthread_create(&looker, NULL, look, &crew), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        hands[i] = (struct hand){.crew = &crew, .number = i, .random = test_seed() + i};
        check_eq(pthread_create(&hands[i].thread, NULL, work, &hands[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        check_eq(pthread_join(hands[i].thread, NULL), 0);
    atomic_store(&crew.done, true);
    check_eq(pthread_join(looker, NULL), 0);
    check(crew.mapped > 0);
    emulator_close(crew.emulator);
    kvc_close(crew.client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

TEST_LIMIT(share_a_client, 120)
{
    run_crew(0, 0, 0, 0);
}

TEST_LIMIT(share_a_client_with_its_thread, 120)
{
    run_crew(0, 1, 3, 6);
}

TEST_LIMIT(share_a_client_with_caches, 120)
{
    run_crew(0, 0, 2, 4);
}

TEST_LIMIT(share_a_client_with_zeros_and_holes, 120)
{
    run_crew(KVC_REGION_ZERO_ON_MAP | KVC_REGION_HOLES_ZERO, 1, 2, 4);
}

/* Each answer wakes the thread that it is for, also when that isn't the one that receives. */
static void *map_one(void *data)
{
    struct hand *hand = data;
    const uint64_t page = hand->number;

    for (int i = 0; i < 50; i++) {
        check_ok(kvc_region_map(hand->crew->regions[0], &page, 1));
        check_ok(kvc_region_unmap(hand->crew->regions[0], &page, 1));
    }
    return NULL;
}

TEST_LIMIT(answers_find_their_threads, 120)
{
    struct fake *fake = fake_start(NULL);
    struct crew crew = {.client = open_plain(fake)};
    struct hand hands[THREADS];
    const uint64_t late = THREADS;

    crew.regions[0] = open_region(crew.client, 1, PAGE, THREADS + 1);
    for (int round = 0; round < 5; round++) {
        for (unsigned i = 0; i < THREADS; i++) {
            hands[i] = (struct hand){.crew = &crew, .number = i};
            check_eq(pthread_create(&hands[i].thread, NULL, map_one, &hands[i]), 0);
        }
        check_ok(kvc_region_map(crew.regions[0], &late, 1));
        for (unsigned i = 0; i < THREADS; i++)
            check_eq(pthread_join(hands[i].thread, NULL), 0);
        check_ok(kvc_region_unmap(crew.regions[0], &late, 1));
    }
    kvc_close(crew.client);
    fake_stop(fake);
}

/* A map that waits for the daemon keeps nobody else from unmapping. */
static void *map_late(void *data)
{
    struct crew *crew = data;

    check_ok(map_range(crew->regions[0], 8, 2));
    return NULL;
}

TEST(unmap_while_a_map_waits)
{
    struct fake *fake = fake_start(NULL);
    struct crew crew = {.client = open_plain(fake)};
    pthread_t waiter;

    crew.regions[0] = open_region(crew.client, 1, PAGE, 10);
    check_ok(map_range(crew.regions[0], 0, 4));
    fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
    check_eq(pthread_create(&waiter, NULL, map_late, &crew), 0);
    while (fake_count(fake).late == 0)
        ;
    check_ok(unmap_range(crew.regions[0], 0, 4));
    check_error(map_range(crew.regions[0], 8, 1), KVC_E_MAPPED);
    check_ok(map_range(crew.regions[0], 0, 1));
    check_eq(lent_bytes(fake), 3 * PAGE);
    fake_release(fake);
    check_eq(pthread_join(waiter, NULL), 0);
    check_eq(lent_bytes(fake), 3 * PAGE);
    kvc_close(crew.client);
    fake_stop(fake);
}
