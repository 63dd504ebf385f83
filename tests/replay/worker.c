/* SPDX-License-Identifier: Apache-2.0 */

/*
 * It owns the connection, the region, the GPU and the stamps. Which blocks are in use is the scheduler's to
 * know; memory is behind them as long as it says so.
 */

#include "worker.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gpu.h"
#include "stamps.h"

struct worker {
    struct kvc_client *client;
    struct kvc_region *region;
    struct gpu *gpu;
    struct stamps *stamps;
    struct layout layout;
    uint64_t retries;
    char error[WORKER_ERROR_MAX];
};

static int fail(struct worker *w, int r, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int fail(struct worker *w, int r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(w->error, sizeof(w->error), format, args);
    va_end(args);
    return r;
}

static int fail_client(struct worker *w, const char *what, int error)
{
    const char *details = kvc_last_error();

    return fail(w, -EIO, "%s: %s", what, *details ? details : kvc_strerror(error));
}

int worker_open_client(const struct worker_options *options, enum kvc_role role, uint64_t *retries,
                       struct kvc_client **ret_client)
{
    const struct kvc_options client_options = {
        .size = sizeof(client_options),
        .socket = options->socket,
        .instance = options->instance,
        .role = role,
        .own_thread = 1, /* which gives back what a report has kept, when others need it */
        .min_reserved_pages = options->reserves ? -1 : 0,
        .max_reserved_pages = options->hold       ? INT_MAX
                              : options->reserves ? -1
                                                  : 0,
        .report_ms = options->report_ms,
    };

    return worker_try(retries, kvc_open(&client_options, ret_client));
}

static int open_gpu(struct worker *w, const struct kvc_device *device, uint64_t weights_bytes)
{
    char error[GPU_ERROR_MAX];
    int r;

    r = gpu_new(kvc_driver_path(w->client), device->ordinal, &w->gpu, error);
    if (r < 0)
        return fail(w, r, "the GPU: %s", error);
    r = gpu_load_weights(w->gpu, weights_bytes);
    return r < 0 ? fail(w, r, "the GPU: %s", gpu_error(w->gpu)) : 0;
}

/* Addresses for as many pages as the device could hold: they cost nothing, and a refusal is the daemon's to
 * make. */
static int open_region(struct worker *w, const struct worker_options *options,
                       const struct kvc_device *device)
{
    const struct kvc_region_options region = {
        .size = sizeof(region),
        .segments = w->layout.segments,
        .page_bytes = w->layout.page_bytes,
        .pages = device->total_bytes / layout_page_total(&w->layout),
        .flags = options->workers ? KVC_REGION_ORDERED : 0,
        .rank = options->rank,
    };
    int r;

    r = worker_try(&w->retries, kvc_region_open(w->client, &region, &w->region));
    if (r < 0)
        return fail_client(w, "opening a region", r);
    r = stamps_new(w->gpu, &w->layout, kvc_region_address(w->region), kvc_region_stride(w->region),
                   layout_blocks(&w->layout, region.pages), options->instance, &w->stamps);
    return r < 0 ? fail(w, r, "opening a region: %s", strerror(-r)) : 0;
}

static int set_up(struct worker *w, const struct worker_options *options)
{
    struct kvc_device device = {.size = sizeof(device)};
    int r;

    r = worker_open_client(options, options->workers ? KVC_ROLE_WORKER : KVC_ROLE_ENGINE, &w->retries,
                           &w->client);
    if (r < 0)
        return fail_client(w, "connecting to kvcachedd", r);
    r = kvc_device(w->client, &device);
    if (r < 0)
        return fail_client(w, "asking for the device", r);
    if (!layout_make(options->model, options->per_layer, options->page_bytes, device.granularity_bytes,
                     &w->layout))
        return fail(w, -EINVAL, "pages of this size do not fit the blocks of %s", options->model->name);
    r = open_gpu(w, &device, options->weights_bytes);
    return r < 0 ? r : open_region(w, options, &device);
}

int worker_new(const struct worker_options *options, struct worker **ret_worker,
               char error[static WORKER_ERROR_MAX])
{
    _cleanup_(worker_freep) struct worker *w = calloc(1, sizeof(*w));
    int r;

    if (!w) {
        snprintf(error, WORKER_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    r = set_up(w, options);
    if (r < 0) {
        snprintf(error, WORKER_ERROR_MAX, "%s", w->error);
        return r;
    }
    *ret_worker = steal_pointer(w);
    return 0;
}

struct worker *worker_free(struct worker *w)
{
    if (!w)
        return NULL;
    stamps_free(w->stamps);
    kvc_region_close(w->region);
    gpu_free(w->gpu);
    kvc_close(w->client);
    free(w);
    return NULL;
}

int worker_stamp(struct worker *w, const uint32_t *blocks, size_t n)
{
    int r = stamps_write(w->stamps, blocks, n);

    return r < 0 ? fail(w, r, "stamping blocks: %s", gpu_error(w->gpu)) : 0;
}

int worker_check(struct worker *w, const uint32_t *blocks, size_t n)
{
    int r = stamps_check(w->stamps, blocks, n);

    if (r == STAMPS_E_WRONG)
        return fail(w, -EBADMSG, "%s", stamps_complaint(w->stamps));
    return r < 0 ? fail(w, r, "checking stamps: %s", gpu_error(w->gpu)) : 0;
}

const char *worker_error(const struct worker *w)
{
    return w->error;
}

struct kvc_client *worker_client(struct worker *w)
{
    return w->client;
}

struct kvc_region *worker_region(struct worker *w)
{
    return w->region;
}

const struct layout *worker_layout(const struct worker *w)
{
    return &w->layout;
}

struct worker_counts worker_counts(const struct worker *w)
{
    return (struct worker_counts){
        .stamps = stamps_checked(w->stamps),
        .retries = w->retries + gpu_retries(w->gpu),
    };
}
