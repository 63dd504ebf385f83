/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A hold lies in a page of its own that the kernel wipes in a forked child: there it has no references, so
 * whatever a host's destructors do with it, nothing is freed and no driver called. It keeps the driver loaded
 * and the primary context retained, or the last tensor of a program would call into nothing.
 */

#include "hold.h"

#include <sys/mman.h>

#include "error.h"
#include "region.h"

#define PAGE_BYTES 4096

struct kvc_hold {
    atomic_uint n_refs;
    struct gpu *gpu;
    CUdeviceptr address;
    uint64_t bytes;
};

int hold_new(struct gpu *gpu, CUdeviceptr address, uint64_t bytes, struct kvc_hold **ret)
{
    struct kvc_hold *hold =
        mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (hold == MAP_FAILED)
        return error_nomem();
    if (madvise(hold, PAGE_BYTES, MADV_WIPEONFORK) < 0) {
        munmap(hold, PAGE_BYTES);
        return error_nomem();
    }
    atomic_init(&hold->n_refs, 1);
    hold->gpu = gpu_ref(gpu);
    hold->address = address;
    hold->bytes = bytes;
    *ret = hold;
    return 0;
}

struct kvc_hold *hold_ref(struct kvc_hold *hold)
{
    atomic_fetch_add(&hold->n_refs, 1);
    return hold;
}

CUresult hold_drop(struct kvc_hold *hold)
{
    CUresult result;

    /* In a forked child there are none. */
    if (!hold || atomic_load(&hold->n_refs) == 0 || atomic_fetch_sub(&hold->n_refs, 1) > 1)
        return CUDA_SUCCESS;
    result = gpu_free_addresses(hold->gpu, hold->address, hold->bytes);
    gpu_close(hold->gpu);
    munmap(hold, PAGE_BYTES);
    return result;
}

KVC_API int kvc_region_hold(struct kvc_region *region, struct kvc_hold **ret)
{
    int r;

    if (!region || !ret)
        return error_set(KVC_E_INVALID, "No region to hold, or nowhere to put the hold");
    r = client_enter(region->client);
    if (r < 0)
        return r;
    if (region->remote)
        r = error_set(KVC_E_INVALID, "A scheduler's region has no addresses to hold");
    else if (!region->hold)
        r = hold_new(region->client->gpu, region->address, region->shape->total_bytes, &region->hold);
    if (r == 0)
        *ret = hold_ref(region->hold);
    client_leave(region->client);
    return r;
}

KVC_API struct kvc_hold *kvc_hold_release(struct kvc_hold *hold)
{
    hold_drop(hold);
    return NULL;
}
