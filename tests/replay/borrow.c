/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The memory of a replayed engine, through libkvclient as any engine uses it. It owns the connection, the
 * region, which of the region's addresses are in use, and the stamps. It has no idea how much memory there
 * is: it maps, and what the library refuses it reports as a shortage.
 *
 * Blocks are stamped once they are mapped and checked before they are unmapped. A driver call that fails
 * within the library is a returned error; the call is made again a few times, since a replay must get through
 * a driver that fails now and then.
 */

#include "borrow.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gpu.h"
#include "kvclient.h"
#include "layout.h"
#include "pages.h"
#include "stamps.h"

struct borrow {
    struct memory memory;
    struct kvc_client *client;
    struct kvc_region *region;
    struct gpu *gpu;
    struct pages *pages;
    struct stamps *stamps;
    struct layout layout;
    uint64_t retries, refusals;
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

/* Also when it says that there are no addresses: an emulated failure may have any name. */
static bool is_driver_failure(int error)
{
    return error == KVC_E_DRIVER || error == KVC_E_NOSPACE;
}

/* The result of the last attempt. */
#define client_try(b, call)                                                                                  \
    ({                                                                                                       \
        int client_error = (call);                                                                           \
        for (int client_n = 1; is_driver_failure(client_error) && client_n < GPU_ATTEMPTS; client_n++) {     \
            (b)->retries++;                                                                                  \
            client_error = (call);                                                                           \
        }                                                                                                    \
        client_error;                                                                                        \
    })

static bool is_shortage(int error)
{
    return error == KVC_E_LIMIT || error == KVC_E_BUDGET || error == KVC_E_DEVICE_MEMORY;
}

static int map(struct borrow *b, size_t n_blocks)
{
    const uint64_t *wanted;
    size_t n;
    int r;

    r = pages_wanted(b->pages, n_blocks, &wanted, &n);
    if (r < 0)
        return fail(b, r, "the region has no addresses left for %zu more blocks", n_blocks);
    if (n == 0)
        return 0;
    r = client_try(b, kvc_region_map(b->region, wanted, n));
    if (is_shortage(r)) {
        b->refusals++;
        return MEMORY_E_SHORT;
    }
    if (r < 0)
        return fail_client(b, "mapping pages", r);
    pages_add(b->pages, n);
    return 0;
}

static int borrow_take(struct memory *memory, size_t n, uint32_t *ret_blocks)
{
    struct borrow *b = (struct borrow *)memory;
    int r;

    r = map(b, n);
    if (r)
        return r;
    pages_take(b->pages, n, ret_blocks);
    r = stamps_write(b->stamps, ret_blocks, n);
    if (r < 0)
        return fail(b, r, "stamping blocks: %s", gpu_error(b->gpu));
    return 0;
}

static int check_stamps(struct borrow *b, const uint32_t *blocks, size_t n)
{
    int r = stamps_check(b->stamps, blocks, n);

    if (r == STAMPS_E_WRONG)
        return fail(b, -EBADMSG, "%s", stamps_complaint(b->stamps));
    if (r < 0)
        return fail(b, r, "checking stamps: %s", gpu_error(b->gpu));
    return 0;
}

static int borrow_give(struct memory *memory, const uint32_t *blocks, size_t n)
{
    struct borrow *b = (struct borrow *)memory;
    const uint64_t *empty;
    size_t n_empty;
    int r;

    r = check_stamps(b, blocks, n);
    if (r < 0)
        return r;
    pages_give(b->pages, blocks, n, &empty, &n_empty);
    if (n_empty == 0)
        return 0;
    r = client_try(b, kvc_region_unmap(b->region, empty, n_empty));
    return r < 0 ? fail_client(b, "unmapping pages", r) : 0;
}

static uint64_t borrow_capacity(struct memory *memory)
{
    struct borrow *b = (struct borrow *)memory;
    struct kvc_status status = {.size = sizeof(status)};

    if (kvc_status(b->client, &status) < 0)
        return 0;
    return (status.limit_bytes < status.budget_bytes ? status.limit_bytes : status.budget_bytes) /
           layout_page_total(&b->layout) * b->layout.blocks_per_page;
}

static const struct memory_ops borrow_ops = {
    .take = borrow_take,
    .give = borrow_give,
    .capacity = borrow_capacity,
};

static int open_client(struct borrow *b, const struct borrow_options *options)
{
    const struct kvc_options client_options = {
        .size = sizeof(client_options),
        .socket = options->socket,
        .instance = options->instance,
        .own_thread = !options->deterministic,
        .min_reserved_pages = options->deterministic ? 0 : -1,
        .max_reserved_pages = options->deterministic ? 0 : -1,
    };
    int r = client_try(b, kvc_open(&client_options, &b->client));

    return r < 0 ? fail_client(b, "connecting to kvcachedd", r) : 0;
}

static int open_gpu(struct borrow *b, const struct kvc_device *device, uint64_t weights_bytes)
{
    char error[GPU_ERROR_MAX];
    int r;

    r = gpu_new(kvc_driver_path(b->client), device->ordinal, &b->gpu, error);
    if (r < 0)
        return fail(b, r, "the GPU: %s", error);
    r = gpu_load_weights(b->gpu, weights_bytes);
    return r < 0 ? fail(b, r, "the GPU: %s", gpu_error(b->gpu)) : 0;
}

/* Addresses for as many pages as the device could hold: they cost nothing, and a refusal is the daemon's to
 * make. */
static int open_region(struct borrow *b, const struct kvc_device *device, const char *instance)
{
    const struct kvc_region_options options = {
        .size = sizeof(options),
        .segments = b->layout.segments,
        .page_bytes = b->layout.page_bytes,
        .pages = device->total_bytes / layout_page_total(&b->layout),
    };
    uint32_t n_pages = (uint32_t)options.pages;
    int r;

    r = client_try(b, kvc_region_open(b->client, &options, &b->region));
    if (r < 0)
        return fail_client(b, "opening a region", r);
    r = pages_new(n_pages, b->layout.blocks_per_page, &b->pages);
    if (r == 0)
        r = stamps_new(b->gpu, &b->layout, kvc_region_address(b->region), kvc_region_stride(b->region),
                       n_pages * b->layout.blocks_per_page, instance, &b->stamps);
    return r < 0 ? fail(b, r, "opening a region: %s", strerror(-r)) : 0;
}

static int set_up(struct borrow *b, const struct borrow_options *options)
{
    struct kvc_device device = {.size = sizeof(device)};
    int r;

    r = open_client(b, options);
    if (r < 0)
        return r;
    r = kvc_device(b->client, &device);
    if (r < 0)
        return fail_client(b, "asking for the device", r);
    if (!layout_make(options->model, options->per_layer, options->page_bytes, device.granularity_bytes,
                     &b->layout))
        return fail(b, -EINVAL, "pages of this size do not fit the blocks of %s", options->model->name);
    r = open_gpu(b, &device, options->weights_bytes);
    if (r < 0)
        return r;
    return open_region(b, &device, options->instance);
}

int borrow_new(const struct borrow_options *options, struct borrow **ret_borrow,
               char error[static BORROW_ERROR_MAX])
{
    _cleanup_(borrow_freep) struct borrow *b = calloc(1, sizeof(*b));
    int r;

    if (!b) {
        snprintf(error, BORROW_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    b->memory.ops = &borrow_ops;
    r = set_up(b, options);
    if (r < 0) {
        snprintf(error, BORROW_ERROR_MAX, "%s", b->error);
        return r;
    }
    *ret_borrow = steal_pointer(b);
    return 0;
}

struct borrow *borrow_free(struct borrow *b)
{
    if (!b)
        return NULL;
    stamps_free(b->stamps);
    pages_free(b->pages);
    kvc_region_close(b->region);
    gpu_free(b->gpu);
    kvc_close(b->client);
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
    return layout_page_total(&b->layout);
}

uint64_t borrow_block_bytes(const struct borrow *b)
{
    return b->layout.block_bytes * b->layout.segments;
}

struct borrow_counts borrow_counts(const struct borrow *b)
{
    return (struct borrow_counts){
        .refusals = b->refusals,
        .stamps = stamps_checked(b->stamps),
        .retries = b->retries + gpu_retries(b->gpu),
    };
}
