/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the engines of a replay tell: how far they are, and in the end what they did. It is memory that is
 * shared with processes forked later. Each engine writes its own slot only; everybody may read the atomic
 * parts at any time, the others once the engine is through.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "borrow.h"
#include "engine.h"
#include "options.h"

#define INSTANCE_MAX 65

struct slot {
    char instance[INSTANCE_MAX];
    const char *spec; /* of its trace */
    struct trace *trace;

    _Atomic bool busy; /* in a step */
    _Atomic uint64_t served, refused, preempted, used_blocks;

    uint64_t page_bytes; /* once connected */
    struct engine_counts counts;
    struct borrow_counts borrow;
    double *ttft;
    size_t n_ttft;
    char error[BORROW_ERROR_MAX]; /* "": none */
};

struct board {
    const struct options *options;
    size_t size; /* of the shared memory */
    size_t n;
    struct slot *slots;

    uint64_t budget_bytes;
    uint64_t share_bytes; /* of each engine, as shares_set() has set it */
    double start_s;       /* by progress_clock(); live only */
    double replayed_s;    /* time of the traces that has passed */
    double wall_s;
    bool interrupted;
};

/* With a slot for each trace; borrows the options and takes the traces, also when it fails. -ENOMEM. */
int board_new(const struct options *options, struct trace **traces, size_t n, struct board **ret_board);
struct board *board_free(struct board *board);

DEFINE_CLEANUP(struct board *, board_free);

/* Counters, for others to see while the replay runs. */
void slot_update(struct slot *slot, const struct engine *engine);
/* Everything, in the end. Both may be NULL. */
void slot_close(struct slot *slot, const struct engine *engine, const struct borrow *borrow);

/* What a block takes of the GPU's memory, over all workers of its engine. */
uint64_t board_block_bytes(const struct board *board);

/* What the engine of a slot borrows with. */
struct worker_options slot_borrow_options(const struct board *board, size_t i);

/* Requests that are neither served nor refused. */
uint64_t slot_unfinished(const struct slot *slot);
bool board_has_failed(const struct board *board);
