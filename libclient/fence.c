/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The caller's event is waited for in a stream of our own, and followed by an event of our own: so the
 * caller's can be recorded again, or destroyed, as soon as the call returns, no stream of the engine waits for
 * anything, and fences are passed in the order in which they were made.
 *
 * Nobody looks at a clock. Fences are looked at whenever the library is called, and waited for when somebody
 * needs what lies behind them: a map that would otherwise be refused, or of the very page; a trim; the end of
 * the region.
 */

#include "fence.h"

#include <inttypes.h>
#include <string.h>

#include "map.h"

static struct fence *fence_free(struct kvc_client *client, struct fence *fence)
{
    if (fence && fence->event)
        client->gpu->driver->cuEventDestroy(fence->event);
    free(fence);
    return NULL;
}

void fence_forget(struct kvc_region *region)
{
    list_for_each_safe (it, &region->fences) {
        list_unlink(it);
        free(container_of(it, struct fence, link));
    }
}

void fence_close(struct kvc_client *client)
{
    CUcontext previous;

    if (!client->fences || gpu_enter(client->gpu, &previous) < 0)
        return;
    client->gpu->driver->cuStreamDestroy(client->fences);
    client->fences = NULL;
    gpu_leave(client->gpu, previous);
}

/* ---- Making ---- */

static int record(struct kvc_client *client, struct fence *fence, CUevent event)
{
    const struct cuda_driver *driver = client->gpu->driver;
    int r = 0;

    if (!client->fences)
        r = gpu_result(client->gpu, driver->cuStreamCreate(&client->fences, CU_STREAM_NON_BLOCKING),
                       "cuStreamCreate");
    if (r == 0)
        r = gpu_result(client->gpu, driver->cuEventCreate(&fence->event, CU_EVENT_DISABLE_TIMING),
                       "cuEventCreate");
    if (r == 0)
        r = gpu_result(client->gpu, driver->cuStreamWaitEvent(client->fences, event, 0), "cuStreamWaitEvent");
    if (r == 0)
        r = gpu_result(client->gpu, driver->cuEventRecord(fence->event, client->fences), "cuEventRecord");
    return r;
}

static int make(struct kvc_region *region, const uint64_t *pages, size_t n, CUevent event, struct fence **ret)
{
    struct kvc_client *client = region->client;
    struct fence *fence = calloc(1, sizeof(*fence) + n * sizeof(fence->pages[0]));
    CUcontext previous;
    int r;

    if (!fence)
        return error_nomem();
    list_init(&fence->link);
    fence->n = n;
    memcpy(fence->pages, pages, n * sizeof(fence->pages[0]));
    r = gpu_enter(client->gpu, &previous);
    if (r == 0) {
        r = record(client, fence, event);
        gpu_leave(client->gpu, previous);
    }
    if (r < 0) {
        fence_free(client, fence);
        return r;
    }
    *ret = fence;
    return 0;
}

static int unmap_after(struct kvc_region *region, const uint64_t *pages, size_t n, CUevent event)
{
    struct fence *fence = NULL;
    int r;

    r = map_set_leaving(region, pages, n, true);
    if (r < 0)
        return r;
    r = make(region, pages, n, event, &fence);
    if (r < 0) {
        map_set_leaving(region, pages, n, false);
        return r;
    }
    list_append(&region->fences, &fence->link);
    return 0;
}

KVC_API int kvc_region_unmap_after(struct kvc_region *region, const uint64_t *pages, size_t n, void *event)
{
    int r;

    if (!region || (n > 0 && !pages) || !event)
        return error_set(KVC_E_INVALID, "No region, no list of pages, or no event");
    if (region->remote)
        return error_set(KVC_E_INVALID, "A scheduler has no events; it unmaps when its workers are done");
    r = client_enter(region->client);
    if (r < 0)
        return r;
    r = map_check_host(region);
    if (r == 0)
        fence_poll(region->client);
    if (r == 0 && n > 0)
        r = unmap_after(region, pages, n, event);
    client_leave(region->client);
    return r;
}

/* ---- Passing ---- */

/* The event has come: the pages are the library's to unmap, as in any unmap. What the driver refuses stays
 * mapped, and the caller's problem is over: it is tried again by the next poll. */
static bool pass(struct kvc_region *region, struct fence *fence)
{
    struct kvc_client *client = region->client;
    int r;

    map_set_leaving(region, fence->pages, fence->n, false);
    error_hold();
    r = unmap_pages(region, fence->pages, fence->n);
    error_release();
    if (r == KVC_E_DRIVER || r == KVC_E_NOMEM) {
        map_set_leaving(region, fence->pages, fence->n, true);
        list_prepend(&region->fences, &fence->link);
        return false;
    }
    fence_free(client, fence);
    return true;
}

static void poll_region(struct kvc_region *region)
{
    struct kvc_client *client = region->client;
    bool going = true;

    while (going && !list_is_empty(&region->fences)) {
        struct fence *fence = list_first(&region->fences, struct fence, link);

        if (client->gpu->driver->cuEventQuery(fence->event) != CUDA_SUCCESS)
            return;
        list_unlink(&fence->link);
        going = pass(region, fence);
    }
}

void fence_poll(struct kvc_client *client)
{
    CUcontext previous;

    if (!client->fences || gpu_enter(client->gpu, &previous) < 0)
        return;
    list_for_each (it, &client->regions)
        poll_region(container_of(it, struct kvc_region, link));
    gpu_leave(client->gpu, previous);
}

static struct kvc_region *first_fenced(struct kvc_client *client, struct kvc_region *region)
{
    if (region)
        return list_is_empty(&region->fences) ? NULL : region;
    list_for_each (it, &client->regions) {
        region = container_of(it, struct kvc_region, link);
        if (!list_is_empty(&region->fences))
            return region;
    }
    return NULL;
}

/* Without the lock, so the fence is nobody's meanwhile. */
static bool synchronize(struct kvc_client *client, struct fence *fence)
{
    CUresult result;

    list_unlink(&fence->link);
    pthread_mutex_unlock(&client->conn->lock);
    result = client->gpu->driver->cuEventSynchronize(fence->event);
    pthread_mutex_lock(&client->conn->lock);
    return result == CUDA_SUCCESS;
}

static bool wait_for(struct kvc_region *region, struct fence *fence)
{
    if (synchronize(region->client, fence))
        return pass(region, fence);
    list_prepend(&region->fences, &fence->link);
    return false;
}

bool fence_wait(struct kvc_client *client, struct kvc_region *region)
{
    struct kvc_region *fenced;
    CUcontext previous;
    bool any = false, going = true;

    if (!client->fences || gpu_enter(client->gpu, &previous) < 0)
        return false;
    while (going && (fenced = first_fenced(client, region))) {
        going = wait_for(fenced, list_first(&fenced->fences, struct fence, link));
        any |= going;
    }
    gpu_leave(client->gpu, previous);
    return any;
}

void fence_abandon(struct kvc_region *region)
{
    struct kvc_client *client = region->client;
    CUcontext previous;

    if (list_is_empty(&region->fences) || gpu_enter(client->gpu, &previous) < 0)
        return;
    while (!list_is_empty(&region->fences)) {
        struct fence *fence = list_first(&region->fences, struct fence, link);

        client->gpu->driver->cuEventSynchronize(fence->event);
        map_set_leaving(region, fence->pages, fence->n, false);
        list_unlink(&fence->link);
        fence_free(client, fence);
    }
    gpu_leave(client->gpu, previous);
}
