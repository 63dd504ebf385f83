/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The driver clears memory between owners, but neither promises it nor does so when a handle is mapped again;
 * and what an engine finds in its own old pages may be no number at all. So whoever wants zeros gets them
 * from us, on every map, also of a page that was still mapped. In order of the engine's stream: what it
 * launches there afterwards sees zeros, and nobody waits.
 */

#include "clear.h"

static int clear_run(struct kvc_region *region, uint64_t page, uint64_t n, uint64_t segment)
{
    struct gpu *gpu = region->client->gpu;
    CUdeviceptr address =
        region->address + segment * region->shape->stride_bytes + page * region->shape->page_bytes;

    return gpu_result(gpu,
                      gpu->driver->cuMemsetD8Async(address, 0, n * region->shape->page_bytes, region->stream),
                      "cuMemsetD8Async");
}

int clear_pages(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r = 0;

    if (!(region->flags & KVC_REGION_ZERO_ON_MAP))
        return 0;
    for (size_t i = 0, run; i < n && r == 0; i += run) {
        for (run = 1; i + run < n && places[i + run].page == places[i].page + run;)
            run++;
        for (uint64_t segment = 0; segment < region->shape->segments && r == 0; segment++)
            r = clear_run(region, places[i].page, run, segment);
    }
    return r;
}
