/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Random lives of the broker, each compared with naive books after every event: a million events in
 * all. KVCACHED_TEST_SEED repeats a run, KVCACHED_TEST_ROUNDS makes it longer.
 */

#include "broker-world.h"

#include <stdio.h>

#include "test.h"

#define LIVES 120 /* of each kind */
#define STEPS 3000

/* How often each thing is done; what is not listed is rare. */
static const unsigned weights[_WORLD_N] = {
    [WORLD_JOIN] = 12,      [WORLD_TAKE] = 40,    [WORLD_SENT] = 40,   [WORLD_RETURN] = 16,
    [WORLD_RETURN_BAD] = 3, [WORLD_WITHDRAW] = 2, [WORLD_DRIVE] = 60,  [WORLD_PASS] = 20,
    [WORLD_LOSE] = 2,       [WORLD_DIE] = 6,      [WORLD_LIMIT] = 3,   [WORLD_DELETE] = 2,
    [WORLD_BUDGET] = 1,     [WORLD_FOREIGN] = 4,  [WORLD_FAIL] = 3,    [WORLD_LIE] = 3,
    [WORLD_FREEZE] = 1,     [WORLD_OPEN] = 6,     [WORLD_CLOSE] = 1,   [WORLD_ASK] = 30,
    [WORLD_CLAIM] = 30,     [WORLD_SPEND] = 20,   [WORLD_HINT] = 10,   [WORLD_ACK] = 20,
    [WORLD_SCRIBBLE] = 1,   [WORLD_RESERVE] = 8,  [WORLD_RELEASE] = 6, [WORLD_LOAD] = 8,
    [WORLD_UNLOAD] = 2,
};

static enum world_op random_op(uint64_t *state)
{
    unsigned sum = 0, pick;

    for (unsigned op = 0; op < _WORLD_N; op++)
        sum += weights[op];
    pick = test_random(state) % sum;
    for (unsigned op = 0;; op++) {
        if (pick < weights[op])
            return op;
        pick -= weights[op];
    }
}

static void live(uint64_t seed, enum world_kind kind)
{
    uint64_t state = seed;
    struct world *world = world_new(test_random(&state), kind);
    const char *failure = NULL;
    unsigned step;

    for (step = 0; !failure && step < STEPS; step++) {
        failure = world_step(world, random_op(&state), test_random(&state) >> 32);
        if (!failure && step % 500 == 499)
            failure = world_quiesce(world);
    }
    if (!failure)
        failure = world_end(world);
    if (failure)
        test_fail(__FILE__, __LINE__, "life %" PRIu64 ", step %u: %s", seed, step, failure);
    world = world_free(world);
}

static void lives(enum world_kind kind)
{
    uint64_t state = test_seed();

    for (unsigned i = 0, n = test_rounds(LIVES); i < n; i++)
        live(test_random(&state) | 1, kind);
}

TEST_LIMIT(honest_lives, 300)
{
    lives(WORLD_HONEST);
}

TEST_LIMIT(lying_lives, 300)
{
    lives(WORLD_LYING);
}

TEST_LIMIT(hostile_lives, 300)
{
    lives(WORLD_HOSTILE);
}
