/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The shared memory of a replay. Its layout is made before any process is forked, and all have it at the same
 * address, so it holds pointers into itself. Times to first token have room for one of each request.
 */

#include "board.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* The library's default; and while a replay in virtual time works out what happens next, an engine whose step
 * has been planned does not keep what others wait for. */
#define REPORT_LIVE_MS 100
#define REPORT_VIRTUAL_MS 1

static size_t board_size(struct trace *const *traces, size_t n)
{
    size_t size = sizeof(struct board) + n * sizeof(struct slot);

    for (size_t i = 0; i < n; i++)
        size += traces[i]->n * sizeof(double);
    return size;
}

static void slot_init(struct slot *slot, const struct options *o, size_t i, struct trace *trace)
{
    snprintf(slot->instance, sizeof(slot->instance), "%s-%zu", o->prefix, i);
    slot->spec = o->specs[i];
    slot->trace = trace;
}

int board_new(const struct options *options, struct trace **traces, size_t n, struct board **ret_board)
{
    size_t size = board_size(traces, n);
    struct board *b = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    double *ttft;

    if (b == MAP_FAILED) {
        for (size_t i = 0; i < n; i++)
            trace_free(traces[i]);
        return -ENOMEM;
    }
    b->options = options;
    b->size = size;
    b->n = n;
    b->slots = (struct slot *)(b + 1);
    ttft = (double *)(b->slots + n);
    for (size_t i = 0; i < n; i++) {
        slot_init(&b->slots[i], options, i, traces[i]);
        b->slots[i].ttft = ttft;
        ttft += traces[i]->n;
    }
    *ret_board = b;
    return 0;
}

struct board *board_free(struct board *b)
{
    if (!b)
        return NULL;
    for (size_t i = 0; i < b->n; i++)
        trace_free(b->slots[i].trace);
    munmap(b, b->size);
    return NULL;
}

void slot_update(struct slot *slot, const struct engine *engine)
{
    const struct engine_counts *counts = engine_counts(engine);

    atomic_store_explicit(&slot->served, counts->served, memory_order_relaxed);
    atomic_store_explicit(&slot->refused, counts->refused, memory_order_relaxed);
    atomic_store_explicit(&slot->preempted, counts->preempted, memory_order_relaxed);
    atomic_store_explicit(&slot->used_blocks, counts->used_blocks, memory_order_relaxed);
}

void slot_close(struct slot *slot, const struct engine *engine, const struct borrow *borrow)
{
    const double *ttft;

    if (engine) {
        slot_update(slot, engine);
        slot->counts = *engine_counts(engine);
        ttft = engine_ttft(engine, &slot->n_ttft);
        memcpy(slot->ttft, ttft, slot->n_ttft * sizeof(*ttft));
    }
    if (borrow)
        slot->borrow = borrow_counts(borrow);
}

uint64_t slot_unfinished(const struct slot *slot)
{
    return slot->trace->n - slot->counts.served - slot->counts.refused;
}

bool board_has_failed(const struct board *b)
{
    for (size_t i = 0; i < b->n; i++)
        if (*b->slots[i].error)
            return true;
    return false;
}

uint64_t board_block_bytes(const struct board *board)
{
    const struct options *o = board->options;

    return model_block_bytes(&o->model) * (o->workers ? o->workers : 1);
}

struct worker_options slot_borrow_options(const struct board *board, size_t i)
{
    const struct options *o = board->options;

    return (struct worker_options){
        .socket = o->socket,
        .instance = board->slots[i].instance,
        .model = &o->model,
        .per_layer = o->per_layer,
        .page_bytes = o->page_bytes,
        .weights_bytes = o->model.weights_bytes,
        .workers = o->workers,
        .reserves = o->reserves,
        .hold = o->hold,
        .report_ms = o->live ? REPORT_LIVE_MS : REPORT_VIRTUAL_MS,
    };
}
