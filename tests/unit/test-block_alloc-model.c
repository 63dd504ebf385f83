/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Random lives of the block allocator, compared with naive rows after every step. KVCACHED_TEST_SEED repeats
 * a run, KVCACHED_TEST_ROUNDS makes it longer.
 */

#include "block-world.h"

#include <stdio.h>

#include "test.h"

#define LIVES 2500
#define STEPS 1000

/* How often each thing is done. */
static const unsigned weights[_BLOCK_WORLD_N] = {
    [BLOCK_WORLD_TAKE] = 40,   [BLOCK_WORLD_GIVE] = 35,    [BLOCK_WORLD_GIVE_ANY] = 8,
    [BLOCK_WORLD_GROW] = 15,   [BLOCK_WORLD_PLAN] = 2,     [BLOCK_WORLD_SHED] = 10,
    [BLOCK_WORLD_SETTLE] = 30, [BLOCK_WORLD_COMPLETE] = 8, [BLOCK_WORLD_RESERVE] = 4,
    [BLOCK_WORLD_RELEASE] = 2, [BLOCK_WORLD_PIN] = 3,      [BLOCK_WORLD_UNPIN] = 6,
    [BLOCK_WORLD_RESIZE] = 2,  [BLOCK_WORLD_CLEAR] = 1,
};

static enum block_world_op random_op(uint64_t *state)
{
    unsigned sum = 0, pick;

    for (unsigned op = 0; op < _BLOCK_WORLD_N; op++)
        sum += weights[op];
    pick = (test_random(state) >> 32) % sum;
    for (unsigned op = 0;; op++) {
        if (pick < weights[op])
            return op;
        pick -= weights[op];
    }
}

static void live(uint64_t seed)
{
    uint64_t state = seed;
    struct block_world *world = block_world_new(test_random(&state));
    const char *failure = NULL;
    unsigned step;

    for (step = 0; !failure && step < STEPS; step++) {
        enum block_world_op op = random_op(&state);

        failure = block_world_step(world, op, test_random(&state) >> 32);
    }
    if (!failure)
        failure = block_world_end(world);
    if (failure)
        test_fail(__FILE__, __LINE__, "life %" PRIu64 ", step %u: %s", seed, step, failure);
    world = block_world_free(world);
}

TEST_LIMIT(lives, 300)
{
    uint64_t state = test_seed();

    for (unsigned i = 0, n = test_rounds(LIVES); i < n; i++)
        live(test_random(&state) | 1);
}
