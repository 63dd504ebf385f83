/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Where an engine's KV blocks come from. The engine keeps no count of free memory: it asks, and a refusal is
 * how it learns of a shortage.
 */

#include <stddef.h>
#include <stdint.h>

enum {
    MEMORY_E_SHORT = 1, /* refused: not that many blocks now */
};

struct memory {
    const struct memory_ops *ops;
};

struct memory_ops {
    /* n blocks, all or none. 0, MEMORY_E_SHORT with nothing taken, or a negative errno. */
    int (*take)(struct memory *memory, size_t n, uint32_t *ret_blocks);
    /* What is given back is there for others when the call returns. 0 or a negative errno. */
    int (*give)(struct memory *memory, const uint32_t *blocks, size_t n);
    /* Blocks that this engine may hold at the very most, whoever else holds what. */
    uint64_t (*capacity)(struct memory *memory);
};

static inline int memory_take(struct memory *m, size_t n, uint32_t *ret_blocks)
{
    return n ? m->ops->take(m, n, ret_blocks) : 0;
}

static inline int memory_give(struct memory *m, const uint32_t *blocks, size_t n)
{
    return n ? m->ops->give(m, blocks, n) : 0;
}

static inline uint64_t memory_capacity(struct memory *m)
{
    return m->ops->capacity(m);
}
