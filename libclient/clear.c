/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The driver clears memory between owners, but neither promises it nor does so when a handle is mapped again;
 * and what an engine finds in its own old pages may be no number at all. So whoever wants zeros gets them
 * from us, on every map, also of a page that was still mapped. In order of the engine's stream: what it
 * launches there afterwards sees zeros, and nobody waits.
 *
 * Unmapping does not wait for streams, and the engine doesn't know when its stream has come to our work. So
 * an event is recorded behind it, and waited for before anything of the region is unmapped: else the GPU
 * would write where nothing is, or into what is another engine's by then. One event is enough, since all
 * that is cleared lies in one stream, and a change of the stream waits for it too. The wait keeps the lock:
 * it can only be long when a page goes before the stream has come to its clearing, which is work that the
 * engine had queued before it asked for the page.
 */

#include "clear.h"

#include "region.h"

int clear_check_stream(const void *stream)
{
    if (stream != CU_STREAM_PER_THREAD)
        return 0;
    return error_set(KVC_E_INVALID, "Pages cannot be cleared in the per-thread stream: it is another one on "
                                    "each thread, and the library has its own");
}

static int clear_run(struct kvc_region *region, uint64_t page, uint64_t n, uint64_t segment)
{
    struct gpu *gpu = region->client->gpu;
    CUdeviceptr address =
        region->address + segment * region->shape->stride_bytes + page * region->shape->page_bytes;

    return gpu_result(gpu,
                      gpu->driver->cuMemsetD8Async(address, 0, n * region->shape->page_bytes, region->stream),
                      "cuMemsetD8Async");
}

static int clear_all(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r = 0;

    for (size_t i = 0, run; i < n && r == 0; i += run) {
        for (run = 1; i + run < n && places[i + run].page == places[i].page + run;)
            run++;
        for (uint64_t segment = 0; segment < region->shape->segments && r == 0; segment++)
            r = clear_run(region, places[i].page, run, segment);
    }
    return r;
}

static int record(struct kvc_region *region)
{
    struct gpu *gpu = region->client->gpu;
    int r = 0;

    if (!region->cleared)
        r = gpu_result(
            gpu,
            gpu->driver->cuEventCreate(&region->cleared, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC),
            "cuEventCreate");
    if (r == 0)
        r = gpu_result(gpu, gpu->driver->cuEventRecord(region->cleared, region->stream), "cuEventRecord");
    return r;
}

int clear_pages(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r;

    if (!(region->flags & KVC_REGION_ZERO_ON_MAP) || n == 0)
        return 0;
    region->clearing = CLEARING_STREAM;
    r = clear_all(region, places, n);
    if (r == 0)
        r = record(region);
    if (r == 0)
        region->clearing = CLEARING_EVENT;
    return r;
}

int clear_wait(struct kvc_region *region)
{
    struct gpu *gpu = region->client->gpu;
    int r = 0;

    if (region->clearing == CLEARING_EVENT)
        r = gpu_result(gpu, gpu->driver->cuEventSynchronize(region->cleared), "cuEventSynchronize");
    else if (region->clearing == CLEARING_STREAM)
        r = gpu_result(gpu, gpu->driver->cuStreamSynchronize(region->stream), "cuStreamSynchronize");
    if (r == 0)
        region->clearing = CLEARING_NONE;
    return r;
}

void clear_close(struct kvc_region *region)
{
    struct gpu *gpu = region->client->gpu;
    CUcontext previous;

    if (!region->cleared || gpu_enter(gpu, &previous) < 0)
        return;
    gpu->driver->cuEventDestroy(region->cleared);
    region->cleared = NULL;
    gpu_leave(gpu, previous);
}

static int set_stream(struct kvc_region *region, void *stream)
{
    struct gpu *gpu = region->client->gpu;
    CUcontext previous;
    int r;

    r = gpu_enter(gpu, &previous);
    if (r < 0)
        return r;
    r = clear_wait(region);
    gpu_leave(gpu, previous);
    if (r == 0)
        region->stream = stream;
    return r;
}

KVC_API int kvc_region_set_stream(struct kvc_region *region, void *stream)
{
    int r;

    if (!region)
        return error_set(KVC_E_INVALID, "No region");
    if (region->remote)
        return error_set(KVC_E_INVALID, "A scheduler has no streams");
    r = client_enter(region->client);
    if (r < 0)
        return r;
    r = clear_check_stream(stream);
    if (r == 0)
        r = set_stream(region, stream);
    client_leave(region->client);
    return r;
}
