/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any sequence of calls is survived by the block allocator, and its books stay right: eight bytes choose the
 * geometry, and then every five an operation and its argument.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block-world.h"

static void must(const char *failure)
{
    if (!failure)
        return;
    fprintf(stderr, "%s\n", failure);
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct block_world *world;
    uint64_t seed;
    uint32_t arg;

    if (size < sizeof(seed))
        return 0;
    memcpy(&seed, data, sizeof(seed));
    world = block_world_new(seed);
    data += sizeof(seed);
    size -= sizeof(seed);
    for (; size > sizeof(arg); data += 1 + sizeof(arg), size -= 1 + sizeof(arg)) {
        memcpy(&arg, data + 1, sizeof(arg));
        must(block_world_step(world, data[0] % _BLOCK_WORLD_N, arg));
    }
    must(block_world_end(world));
    world = block_world_free(world);
    return 0;
}
