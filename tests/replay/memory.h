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
    /* A step is about to be planned. What the memory says now that it has, it may not refuse to the step:
     * where it does, take() fails. */
    void (*begin)(struct memory *memory);
    /* n blocks, all or none. 0, MEMORY_E_SHORT with nothing taken, or a negative errno. */
    int (*take)(struct memory *memory, size_t n, uint32_t *ret_blocks);
    /* The step with this number, counted from 1, was the last to use them; 0: none was. They may be taken
     * again at once. 0 or a negative errno. */
    int (*give)(struct memory *memory, const uint32_t *blocks, size_t n, uint64_t step);
    /* The GPU is through with this step and those before. What they used last, and was given back, is there
     * for others when the call returns. 0 or a negative errno. */
    int (*complete)(struct memory *memory, uint64_t step);
    /* Blocks that this engine may hold at the very most, whoever else holds what. */
    uint64_t (*capacity)(struct memory *memory);
};

static inline void memory_begin(struct memory *m)
{
    m->ops->begin(m);
}

static inline int memory_take(struct memory *m, size_t n, uint32_t *ret_blocks)
{
    return n ? m->ops->take(m, n, ret_blocks) : 0;
}

static inline int memory_give(struct memory *m, const uint32_t *blocks, size_t n, uint64_t step)
{
    return n ? m->ops->give(m, blocks, n, step) : 0;
}

static inline int memory_complete(struct memory *m, uint64_t step)
{
    return m->ops->complete(m, step);
}

static inline uint64_t memory_capacity(struct memory *m)
{
    return m->ops->capacity(m);
}
