/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any sequence of events is survived by the broker, and its books stay right: eight bytes choose the world,
 * and then every five an operation and its argument.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker-world.h"

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
    struct world *world;
    uint64_t seed;
    uint32_t arg;

    if (size < sizeof(seed))
        return 0;
    memcpy(&seed, data, sizeof(seed));
    world = world_new(seed, (seed >> 32) % _WORLD_KINDS);
    data += sizeof(seed);
    size -= sizeof(seed);
    for (; size > sizeof(arg); data += 1 + sizeof(arg), size -= 1 + sizeof(arg)) {
        memcpy(&arg, data + 1, sizeof(arg));
        must(world_step(world, data[0] % _WORLD_N, arg));
    }
    must(world_quiesce(world));
    must(world_end(world));
    world = world_free(world);
    return 0;
}
