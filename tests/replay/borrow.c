/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The memory of a replayed engine, through libkvclient as any engine uses it: it allocates and frees blocks,
 * and what the library refuses it reports as a shortage. It has no idea how much memory there is, nor how
 * the library keeps some ready; whether the worker is in this process or in another, what is decided here is
 * the same.
 *
 * Blocks are stamped once they are allocated and checked before they are freed.
 *
 * What the library reports as available when a step begins it must not refuse while the report holds. That
 * is judged by the clock on the wall, also in virtual time, and decides nothing: a report that is too small
 * keeps nobody from asking for more.
 */

#include "borrow.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/arith.h"
#include "kvclient.h"
#include "layout.h"
#include "progress.h"
#include "promise.h"

struct borrow {
    struct memory memory;
    struct worker *worker;                   /* in this process, or */
    struct remote *remote;                   /* in processes of their own; then */
    struct kvc_client *client;               /* of the scheduler */
    struct kvc_region *regions[WORKERS_MAX]; /* the workers', as the scheduler sees them */
    unsigned n_regions;
    struct kvc_blocks *blocks;
    struct layout layout;
    struct promise promise;
    double report_s; /* for how long a report holds */
    uint64_t retries, refusals, promised;
    char error[BORROW_ERROR_MAX];
};

static int fail(struct borrow *b, int r, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int fail(struct borrow *b, int r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(b->error, sizeof(b->error), format, args);
    va_end(args);
    return r;
}

static int fail_client(struct borrow *b, const char *what, int error)
{
    const char *details = kvc_last_error();

    return fail(b, -EIO, "%s: %s", what, *details ? details : kvc_strerror(error));
}

static int fail_worker(struct borrow *b, int r)
{
    return fail(b, r, "%s", b->remote ? remote_error(b->remote) : worker_error(b->worker));
}

static bool is_shortage(int error)
{
    return error == KVC_E_LIMIT || error == KVC_E_BUDGET || error == KVC_E_DEVICE_MEMORY;
}

/* The clock is read first, so that the promise does not last longer here than for the library. */
static void borrow_begin(struct memory *memory)
{
    struct borrow *b = (struct borrow *)memory;
    double now_s = progress_clock();

    promise_make(&b->promise, kvc_blocks_available(b->blocks), now_s, b->report_s);
}

static int refused(struct borrow *b, size_t n)
{
    if (promise_is_broken(&b->promise, n, progress_clock()))
        return fail(b, -EPROTO, "%zu blocks were refused, though %" PRIu64 " had been reported as available",
                    n, b->promise.blocks);
    b->refusals++;
    return MEMORY_E_SHORT;
}

static int borrow_take(struct memory *memory, size_t n, uint32_t *ret_blocks)
{
    struct borrow *b = (struct borrow *)memory;
    int r;

    r = worker_try(&b->retries, kvc_blocks_alloc(b->blocks, n, ret_blocks));
    if (is_shortage(r))
        return refused(b, n);
    if (r < 0)
        return fail_client(b, "allocating blocks", r);
    b->promised += u64_min(n, b->promise.blocks);
    promise_spend(&b->promise, n);
    r = b->remote ? remote_stamp(b->remote, ret_blocks, n) : worker_stamp(b->worker, ret_blocks, n);
    return r < 0 ? fail_worker(b, r) : 0;
}

static int borrow_give(struct memory *memory, const uint32_t *blocks, size_t n, uint64_t step)
{
    struct borrow *b = (struct borrow *)memory;
    int r;

    r = b->remote ? remote_check(b->remote, blocks, n) : worker_check(b->worker, blocks, n);
    if (r < 0)
        return fail_worker(b, r);
    r = kvc_blocks_free(b->blocks, blocks, n, step);
    return r < 0 ? fail_client(b, "freeing blocks", r) : 0;
}

static int borrow_complete(struct memory *memory, uint64_t step)
{
    struct borrow *b = (struct borrow *)memory;
    int r = kvc_blocks_complete(b->blocks, step);

    return r < 0 ? fail_client(b, "completing a step", r) : 0;
}

static uint64_t borrow_capacity(struct memory *memory)
{
    struct borrow *b = (struct borrow *)memory;
    struct kvc_status status = {.size = sizeof(status)};

    if (kvc_status(b->client, &status) < 0)
        return 0;
    return layout_blocks(&b->layout, u64_min(status.limit_bytes, status.budget_bytes) / borrow_page_bytes(b));
}

static const struct memory_ops borrow_ops = {
    .begin = borrow_begin,
    .take = borrow_take,
    .give = borrow_give,
    .complete = borrow_complete,
    .capacity = borrow_capacity,
};

static int open_here(struct borrow *b, const struct worker_options *options)
{
    char error[WORKER_ERROR_MAX];
    int r = worker_new(options, &b->worker, error);

    if (r < 0)
        return fail(b, r, "%s", error);
    b->client = worker_client(b->worker);
    b->regions[b->n_regions++] = worker_region(b->worker);
    b->layout = *worker_layout(b->worker);
    return 0;
}

static int open_split(struct borrow *b, const struct worker_options *options)
{
    int r;

    b->layout = *remote_layout(b->remote);
    r = worker_open_client(options, KVC_ROLE_SCHEDULER, &b->retries, &b->client);
    if (r < 0)
        return fail_client(b, "connecting to kvcachedd", r);
    for (unsigned rank = 0; rank < options->workers; rank++) {
        r = kvc_region_attach(b->client, 0, rank, 0, &b->regions[rank]);
        if (r < 0)
            return fail_client(b, "finding a worker", r);
        b->n_regions++;
    }
    return 0;
}

static int set_up(struct borrow *b, const struct worker_options *options)
{
    struct kvc_blocks_options blocks = {.size = sizeof(blocks)};
    int r;

    r = b->remote ? open_split(b, options) : open_here(b, options);
    if (r < 0)
        return r;
    blocks.block_bytes = b->layout.block_bytes;
    r = kvc_blocks_open(b->regions, b->n_regions, &blocks, &b->blocks);
    return r < 0 ? fail_client(b, "opening the blocks", r) : 0;
}

int borrow_new(const struct worker_options *options, struct remote *remote, struct borrow **ret_borrow,
               char error[static BORROW_ERROR_MAX])
{
    _cleanup_(borrow_freep) struct borrow *b = calloc(1, sizeof(*b));
    int r;

    if (!b) {
        remote_free(remote);
        snprintf(error, BORROW_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    b->memory.ops = &borrow_ops;
    b->report_s = options->report_ms / 1e3;
    b->remote = remote;
    r = set_up(b, options);
    if (r < 0) {
        snprintf(error, BORROW_ERROR_MAX, "%s", b->error);
        return r;
    }
    *ret_borrow = steal_pointer(b);
    return 0;
}

int borrow_fill(struct borrow *b, uint64_t bytes)
{
    size_t n = layout_blocks(&b->layout, bytes / borrow_page_bytes(b));
    _cleanup_free_ uint32_t *ids = calloc(n + 1, sizeof(*ids));
    int r;

    if (!ids)
        return fail(b, -ENOMEM, "out of memory");
    r = worker_try(&b->retries, kvc_blocks_alloc(b->blocks, n, ids));
    if (r == 0)
        r = kvc_blocks_free(b->blocks, ids, n, 0);
    return r < 0 ? fail_client(b, "taking everything", r) : 0;
}

/* The scheduler's memory goes before its workers do. */
struct borrow *borrow_free(struct borrow *b)
{
    if (!b)
        return NULL;
    kvc_blocks_close(b->blocks);
    if (b->remote) {
        for (unsigned i = 0; i < b->n_regions; i++)
            kvc_region_close(b->regions[i]);
        kvc_close(b->client);
    }
    worker_free(b->worker);
    remote_free(b->remote);
    free(b);
    return NULL;
}

struct memory *borrow_memory(struct borrow *b)
{
    return &b->memory;
}

const char *borrow_error(const struct borrow *b)
{
    return b->error;
}

uint64_t borrow_budget_bytes(struct borrow *b)
{
    struct kvc_status status = {.size = sizeof(status)};

    return kvc_status(b->client, &status) < 0 ? 0 : status.budget_bytes;
}

uint64_t borrow_page_bytes(const struct borrow *b)
{
    return layout_page_total(&b->layout) * b->n_regions;
}

struct borrow_counts borrow_counts(const struct borrow *b)
{
    struct worker_counts counts = b->remote ? remote_counts(b->remote) : worker_counts(b->worker);

    return (struct borrow_counts){
        .refusals = b->refusals,
        .promised = b->promised,
        .stamps = counts.stamps,
        .retries = b->retries + counts.retries,
    };
}
