/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Several threads on the blocks of one client, and of two, under a limit that moves, with notices in between
 * and the library's own threads at work. Each thread stamps the pages of its blocks and finds the stamps
 * again; what was reported is there; at the end everything is back. Meant for ThreadSanitizer as well.
 */

#include "support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define PAGE (2 * MIB)
#define BLOCK (300 * KIB) /* six whole ones in most pages */
#define PAGES 24
#define GROUPS 2
#define THREADS 3 /* for each kvc_blocks */
#define ROUNDS 150
#define HELD_MAX 64

struct group {
    struct kvc_region *region; /* or the first of them */
    struct kvc_blocks *blocks;
    struct emulator *emulator;
    _Atomic uint32_t owner[PAGES * PAGE / BLOCK + 1];
};

struct hand {
    pthread_t thread;
    struct group *group;
    uint32_t number;
    uint64_t random;
    uint32_t held[HELD_MAX];
    size_t n_held;
    unsigned n_refused;
};

static CUdeviceptr address(const struct hand *hand, uint32_t id)
{
    return kvc_region_address(hand->group->region) + (uint64_t)id * BLOCK;
}

/* Nobody else has the block, and its memory is there. */
static void begin(struct hand *hand, uint32_t id)
{
    check_eq(atomic_exchange(&hand->group->owner[id], hand->number), 0);
    check_eq(hand->group->emulator->driver->cuMemsetD32(address(hand, id), hand->number, 1), CUDA_SUCCESS);
}

static void end(struct hand *hand, uint32_t id)
{
    uint32_t found = 0;

    check_eq(hand->group->emulator->driver->cuMemcpyDtoH(&found, address(hand, id), 4), CUDA_SUCCESS);
    check_eq(found, hand->number);
    check_eq(atomic_exchange(&hand->group->owner[id], 0), hand->number);
}

static void take(struct hand *hand)
{
    size_t n = 1 + test_random(&hand->random) % 12;
    uint32_t ids[12];
    int r;

    if (hand->n_held + n > HELD_MAX)
        return;
    r = kvc_blocks_alloc(hand->group->blocks, n, ids);
    if (r < 0) {
        check(r == KVC_E_LIMIT || r == KVC_E_NO_BLOCKS);
        hand->n_refused++;
        return;
    }
    for (size_t i = 0; i < n; i++) {
        begin(hand, ids[i]);
        hand->held[hand->n_held++] = ids[i];
    }
}

static void give(struct hand *hand, size_t n, uint64_t epoch)
{
    uint32_t *ids = hand->held + hand->n_held - n;

    for (size_t i = 0; i < n; i++)
        end(hand, ids[i]);
    check_ok(kvc_blocks_free(hand->group->blocks, ids, n, epoch));
    hand->n_held -= n;
}

static void look(struct hand *hand)
{
    struct kvc_blocks *blocks = hand->group->blocks;
    struct kvc_blocks_status status = {.size = sizeof(status)};
    int r;

    switch (test_random(&hand->random) % 6) {
    case 0:
        check(kvc_blocks_available(blocks) <= PAGES * PAGE / BLOCK);
        break;
    case 1:
        r = kvc_blocks_want(blocks, 1 + test_random(&hand->random) % 30, 0, NULL);
        check(r == 0 || r == KVC_E_NO_BLOCKS);
        break;
    case 2:
        check_ok(kvc_blocks_complete(blocks, test_random(&hand->random) % ROUNDS));
        break;
    case 3:
        check_ok(kvc_blocks_trim(blocks));
        break;
    case 4:
        check_ok(kvc_blocks_status(blocks, &status));
        check_eq(status.broken_pages, 0);
        check_eq(status.free_pages + status.partly_pages + status.full_pages, status.mapped_pages);
        break;
    default:
        r = kvc_blocks_want(blocks, 1 + test_random(&hand->random) % 30, 20, NULL);
        check(r == 0 || r == KVC_E_NO_BLOCKS || r == KVC_E_LIMIT || r == KVC_E_TIMEOUT);
        break;
    }
}

static void *work(void *data)
{
    struct hand *hand = data;

    check_eq(hand->group->emulator->driver->cuCtxSetCurrent(hand->group->emulator->context), CUDA_SUCCESS);
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint64_t dice = test_random(&hand->random) % 4;

        if (dice < 2)
            take(hand);
        else if (dice == 2)
            give(hand, test_random(&hand->random) % (hand->n_held + 1), dice + round);
        else
            look(hand);
    }
    give(hand, hand->n_held, 0);
    return NULL;
}

struct admin {
    pthread_t thread;
    struct fake *fake;
    uint64_t random;
    atomic_bool done;
};

static void *administrate(void *data)
{
    struct admin *admin = data;

    while (!atomic_load(&admin->done)) {
        uint64_t pages = 6 + test_random(&admin->random) % 20;

        fake_set_limit(admin->fake, pages * PAGE);
        fake_press(admin->fake, test_random(&admin->random) % 4 ? 0 : PAGE);
        fake_notice(admin->fake, (1 + test_random(&admin->random) % 4) * PAGE, 500,
                    test_random(&admin->random) % 2);
        fake_withdraw(admin->fake, test_random(&admin->random) % 3);
    }
    fake_press(admin->fake, 0);
    return NULL;
}

static void open_group(struct group *group, struct kvc_client *client, struct kvc_client *second,
                       struct emulator *emulator)
{
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct kvc_region *regions[2] = {open_region(client, 1, PAGE, PAGES)};

    if (second)
        regions[1] = open_region(second, 1, PAGE, PAGES);
    group->region = regions[0];
    group->emulator = emulator;
    check_ok(kvc_blocks_open(regions, second ? 2 : 1, &options, &group->blocks));
}

struct crew {
    bool old_daemon;
    unsigned n_clients;
    bool jointly; /* each kvc_blocks has regions of both clients */
    int own_thread, min;
};

static void run_crew(struct crew crew)
{
    struct fake_settings settings = {.leases = !crew.old_daemon};
    struct fake *fake = fake_start(&settings);
    struct kvc_options options = plain_options(fake);
    struct admin admin = {.fake = fake, .random = test_seed() + 99};
    struct group *groups = calloc(GROUPS * crew.n_clients, sizeof(*groups));
    struct hand *hands = calloc((size_t)GROUPS * crew.n_clients * THREADS, sizeof(*hands));
    struct kvc_client *clients[2];
    struct emulator *emulator;

    options.own_thread = crew.own_thread;
    options.min_reserved_pages = crew.min;
    options.max_reserved_pages = 4;
    options.report_ms = 2;
    for (unsigned i = 0; i < crew.n_clients; i++)
        check_ok(kvc_open(&options, &clients[i]));
    emulator = emulator_open(clients[0]);
    for (unsigned i = 0; i < GROUPS * crew.n_clients; i++)
        open_group(&groups[i], clients[i / GROUPS], crew.jointly ? clients[1 - i / GROUPS] : NULL, emulator);
    check_eq(pthread_create(&admin.thread, NULL, administrate, &admin), 0);
    for (unsigned i = 0; i < GROUPS * crew.n_clients * THREADS; i++) {
        hands[i] = (struct hand){.group = &groups[i / THREADS], .number = i + 1, .random = test_seed() + i};
        check_eq(pthread_create(&hands[i].thread, NULL, work, &hands[i]), 0);
    }
    for (unsigned i = 0; i < GROUPS * crew.n_clients * THREADS; i++)
        check_eq(pthread_join(hands[i].thread, NULL), 0);
    atomic_store(&admin.done, true);
    check_eq(pthread_join(admin.thread, NULL), 0);
    for (unsigned i = 0; i < GROUPS * crew.n_clients; i++)
        kvc_blocks_close(groups[i].blocks);
    emulator_close(emulator);
    for (unsigned i = 0; i < crew.n_clients; i++)
        kvc_close(clients[i]);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
    free(groups);
    free(hands);
}

TEST_LIMIT(share_blocks, 120)
{
    run_crew((struct crew){.n_clients = 1, .own_thread = 1, .min = 2});
}

TEST_LIMIT(share_blocks_of_two_clients, 120)
{
    run_crew((struct crew){.n_clients = 2, .own_thread = 1, .min = 2});
}

TEST_LIMIT(share_blocks_over_two_clients, 120)
{
    run_crew((struct crew){.n_clients = 2, .jointly = true, .own_thread = 1, .min = 2});
}

TEST_LIMIT(share_blocks_without_preallocation, 120)
{
    run_crew((struct crew){.n_clients = 1, .own_thread = 1});
}

TEST_LIMIT(share_blocks_without_a_thread, 120)
{
    run_crew((struct crew){.n_clients = 1, .min = 2});
}

TEST_LIMIT(share_blocks_of_an_old_daemon, 120)
{
    run_crew((struct crew){.old_daemon = true, .n_clients = 2, .own_thread = 1, .min = 2});
}
