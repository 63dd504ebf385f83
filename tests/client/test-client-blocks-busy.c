/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the engine calls all the time, while another thread has the client: it waits neither for a driver nor
 * for the daemon.
 */

#include "blockworld.h"

#include <pthread.h>
#include <stdatomic.h>

#define MANY (3 * EACH)   /* more than are there */
#define MAP_COST "100000" /* of each call, in microseconds */
#define TRIES 20

struct taker {
    pthread_t thread;
    struct kvc_blocks *blocks;
    atomic_bool done;
};

static void *take_many(void *data)
{
    struct taker *taker = data;
    uint32_t ids[MANY];

    check_ok(kvc_blocks_alloc(taker->blocks, MANY, ids));
    atomic_store(&taker->done, true);
    return NULL;
}

static void start(struct taker *taker)
{
    check_eq(pthread_create(&taker->thread, NULL, take_many, taker), 0);
}

/* Of the two pages that are mapped one is free, and one in use but for a block. */
static struct world begin(void)
{
    struct world w = world_open(true, 0, 4);
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_alloc(w.blocks, 2 * EACH, ids));
    check_ok(kvc_blocks_free(w.blocks, ids + EACH - 1, EACH + 1, 0));
    return w;
}

static uint64_t look_and_use(struct world *w)
{
    struct kvc_status status = {.size = sizeof(status)};
    uint64_t available = kvc_blocks_available(w->blocks);
    uint32_t ids[EACH];

    check_eq(status_of(w->blocks).broken_pages, 0);
    check_ok(kvc_status(w->client, &status));
    for (size_t n = 1; n <= EACH; n += EACH - 1) {
        check_ok(kvc_blocks_alloc(w->blocks, n, ids));
        check_ok(kvc_blocks_free(w->blocks, ids, n, 0));
    }
    return available;
}

/* While pages are mapped, which ends with access to them. False: too late to say anything. */
static bool look_during_a_map(void)
{
    struct world w = begin();
    struct emulator *emulator = emulator_open(w.client);
    struct taker taker = {.blocks = w.blocks};
    uint64_t maps = emulator->calls("cuMemMap"), accesses = emulator->calls("cuMemSetAccess");
    uint64_t available;
    bool in_time;

    start(&taker);
    while (emulator->calls("cuMemMap") == maps)
        ;
    available = look_and_use(&w);
    in_time = emulator->calls("cuMemSetAccess") == accesses;
    check_eq(pthread_join(taker.thread, NULL), 0);
    if (in_time)
        check_eq(available, EACH + 1);
    emulator_close(emulator);
    world_close(&w);
    return in_time;
}

TEST_LIMIT(while_the_driver_is_slow, 120)
{
    unsigned tries = 0;

    emulate_costs("cuMemMap call:" MAP_COST "\n");
    while (!look_during_a_map())
        check(++tries < TRIES);
}

TEST(while_the_daemon_is_slow)
{
    struct world w = begin();
    struct taker taker = {.blocks = w.blocks};

    fake_lie(w.fake, FAKE_LATE, MESSAGE_TAKE);
    start(&taker);
    while (fake_count(w.fake).late == 0)
        ;
    check_eq(look_and_use(&w), EACH + 1);
    check(!atomic_load(&taker.done));
    fake_release(w.fake);
    check_eq(pthread_join(taker.thread, NULL), 0);
    world_close(&w);
}
