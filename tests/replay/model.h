/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a replayed engine serves and on what: the sizes of its model and the time that a step of it takes.
 * Times are seconds as doubles, because the outcome under shortage is chaotic: only the same arithmetic in
 * the same order gives the same counts.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct model {
    const char *name;
    const char *summary;
    uint64_t weights_bytes;
    uint64_t token_bytes; /* keys and values of one token, over all layers */
    uint32_t layers;
    uint32_t block_tokens; /* tokens of a KV block */
    double step_s;         /* of any step: the weights are read once */
    double prefill_s;      /* per token of prompt */
    double decode_s;       /* per request that generates a token */
    uint32_t step_tokens;  /* tokens of one step, over all its requests */
    uint32_t max_running;  /* requests that are batched together */
};

/* NULL where there is no model of that name. */
const struct model *model_find(const char *name);
/* The n-th preset, NULL after the last; the first is the default. */
const struct model *model_at(size_t n);

static inline uint32_t model_blocks(const struct model *m, uint64_t tokens)
{
    return (uint32_t)((tokens + m->block_tokens - 1) / m->block_tokens);
}

static inline uint64_t model_block_bytes(const struct model *m)
{
    return m->token_bytes * m->block_tokens;
}
