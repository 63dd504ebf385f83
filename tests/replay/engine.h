/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * An engine that serves a trace: continuous batching with chunked prefill over KV blocks, as the common
 * servers do it. Pure: time is an argument, memory is an interface.
 *
 * Life of an engine: arrivals are announced with engine_arrive(); engine_step() decides what the next step of
 * the GPU computes and takes the blocks for it; when that step is over, engine_finish() hands its tokens to
 * the requests. Between the two the engine is busy.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "memory.h"
#include "model.h"
#include "trace.h"

struct engine_counts {
    uint64_t served;
    uint64_t preempted;   /* times that a request lost its blocks and had to start again */
    uint64_t refused;     /* requests that could never fit */
    uint64_t used_blocks; /* held by requests at the moment; no decision looks at it */
    uint64_t peak_blocks;
    uint64_t steps; /* the number of the last one */
};

struct engine;

/* Model, memory and trace are borrowed. */
int engine_new(const struct model *model, struct memory *memory, const struct trace *trace,
               struct engine **ret_engine);
struct engine *engine_free(struct engine *engine);

DEFINE_CLEANUP(struct engine *, engine_free);

/* When the next request comes; INFINITY after the last. */
double engine_next_arrival(const struct engine *engine);
void engine_arrive(struct engine *engine);

/* Work that needs a step, though none may be possible for want of memory. */
bool engine_has_work(const struct engine *engine);
bool engine_is_busy(const struct engine *engine);

/* All requests have come and gone. */
bool engine_is_done(const struct engine *engine);

/* Afterwards the engine is busy, or has found nothing that it could do. Negative errno from the memory. */
int engine_step(struct engine *engine);

/* Seconds that the step takes while `sharing` engines, this one included, share the GPU. */
double engine_step_cost(const struct engine *engine, unsigned sharing);

/* The step ends `now`. The engine stays busy until engine_step() has found nothing to do. */
int engine_finish(struct engine *engine, double now);

/* Gives back what running requests hold: for an end before the end of the trace. */
int engine_abandon(struct engine *engine);

const struct engine_counts *engine_counts(const struct engine *engine);

/* Seconds from arrival to first token, in the order of the first tokens; valid until the next call. */
const double *engine_ttft(const struct engine *engine, size_t *ret_n);
