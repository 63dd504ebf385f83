/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The caller's event is waited for in a stream of our own, and followed by an event of our own: so the
 * caller's can be recorded again, or destroyed, as soon as the call returns, no stream of the engine waits
 * for anything, and fences are passed in the order in which they were made. To query the caller's own event
 * would be cheaper, but then somebody would have to tell the caller until when to keep it, and an event that
 * was recorded again meanwhile would stand for something else.
 *
 * Nobody looks at a clock. Fences are looked at whenever the library is called to map, unmap or dispatch, and
 * waited for when somebody needs what lies behind them: a map that would otherwise be refused, or of the very
 * page; a trim; the end of the region. What goes back to the daemon when a fence is passed isn't waited for:
 * whoever looks may be the library's thread, or somebody who came for another region.
 *
 * The lock is released during a wait for the GPU. Meanwhile the fence may be passed by others, and its region
 * may come to its end, so a fence lives until nobody waits for it, and says itself whether it still stands.
 */

#include "fence.h"

#include <string.h>

#include "map.h"

/* In the primary context. */
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
        struct fence *fence = container_of(it, struct fence, link);

        list_unlink(&fence->link);
        fence->region = NULL;
        if (fence->n_waiters == 0)
            free(fence);
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
        r = gpu_result(client->gpu,
                       driver->cuEventCreate(&fence->event, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC),
                       "cuEventCreate");
    if (r == 0)
        r = gpu_result(client->gpu, driver->cuStreamWaitEvent(client->fences, event, 0), "cuStreamWaitEvent");
    if (r == 0)
        r = gpu_result(client->gpu, driver->cuEventRecord(fence->event, client->fences), "cuEventRecord");
    return r;
}

static struct fence *fence_new(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    struct fence *fence;

    if (n > (SIZE_MAX - sizeof(*fence)) / sizeof(pages[0]))
        return NULL;
    fence = calloc(1, sizeof(*fence) + n * sizeof(pages[0]));
    if (!fence)
        return NULL;
    list_init(&fence->link);
    fence->region = region;
    fence->n = n;
    memcpy(fence->pages, pages, n * sizeof(pages[0]));
    return fence;
}

static int make(struct kvc_region *region, const uint64_t *pages, size_t n, CUevent event, struct fence **ret)
{
    struct kvc_client *client = region->client;
    struct fence *fence = fence_new(region, pages, n);
    CUcontext previous;
    int r;

    if (!fence)
        return error_nomem();
    r = gpu_enter(client->gpu, &previous);
    if (r < 0) {
        free(fence);
        return r;
    }
    r = record(client, fence, event);
    if (r < 0)
        fence = fence_free(client, fence);
    gpu_leave(client->gpu, previous);
    if (r == 0)
        *ret = fence;
    return r;
}

static int unmap_after(struct kvc_region *region, const uint64_t *pages, size_t n, CUevent event)
{
    struct fence *fence = NULL;
    int r;

    r = map_set_leaving(region, pages, n);
    if (r < 0)
        return r;
    r = make(region, pages, n, event, &fence);
    if (r < 0) {
        map_set_staying(region, pages, n);
        return r;
    }
    list_append(&region->fences, &fence->link);
    region->client->n_fences++;
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

/* Nothing is left to do for it. In the primary context. */
static void settle(struct kvc_client *client, struct fence *fence)
{
    list_unlink(&fence->link);
    fence->region = NULL;
    client->n_fences--;
    if (fence->n_waiters == 0)
        fence_free(client, fence);
}

/* What the driver didn't unmap goes on leaving; what it broke is nobody's any more. */
static bool keep_leaving(struct fence *fence)
{
    struct page *pages = fence->region->pages;
    size_t n = 0;

    for (size_t i = 0; i < fence->n; i++) {
        if (pages[fence->pages[i]].state != PAGE_MAPPED)
            continue;
        pages[fence->pages[i]].state = PAGE_LEAVING;
        fence->pages[n++] = fence->pages[i];
    }
    fence->n = n;
    return n > 0;
}

/* The event has come: the pages are the library's to unmap, as in any unmap. What the driver refuses stays
 * mapped, and is tried again at the next look. True if the fence is over. */
static bool pass(struct fence *fence)
{
    struct kvc_region *region = fence->region;
    int r;

    map_set_staying(region, fence->pages, fence->n);
    error_hold();
    r = unmap_pages_soon(region, fence->pages, fence->n);
    error_release();
    if ((r == KVC_E_DRIVER || r == KVC_E_NOMEM) && keep_leaving(fence))
        return false;
    settle(region->client, fence);
    return true;
}

static void poll_region(struct kvc_region *region)
{
    const struct cuda_driver *driver = region->client->gpu->driver;
    bool going = true;

    while (going && !list_is_empty(&region->fences)) {
        struct fence *fence = list_first(&region->fences, struct fence, link);

        going = driver->cuEventQuery(fence->event) == CUDA_SUCCESS && pass(fence);
    }
}

void fence_poll(struct kvc_client *client)
{
    CUcontext previous;

    if (client->n_fences == 0)
        return;
    error_hold();
    if (gpu_enter(client->gpu, &previous) == 0) {
        list_for_each (it, &client->regions)
            poll_region(container_of(it, struct kvc_region, link));
        gpu_leave(client->gpu, previous);
    }
    error_release();
}

static struct fence *first_of(struct kvc_client *client, struct kvc_region *region)
{
    if (region)
        return list_is_empty(&region->fences) ? NULL : list_first(&region->fences, struct fence, link);
    list_for_each (it, &client->regions) {
        region = container_of(it, struct kvc_region, link);
        if (!list_is_empty(&region->fences))
            return list_first(&region->fences, struct fence, link);
    }
    return NULL;
}

/* Without the lock. *ret_stands: whether nobody has passed it meanwhile; if not, it may be gone. */
static bool synchronize(struct kvc_client *client, struct fence *fence, bool *ret_stands)
{
    CUresult result;

    fence->n_waiters++;
    pthread_mutex_unlock(&client->conn->lock);
    result = client->gpu->driver->cuEventSynchronize(fence->event);
    pthread_mutex_lock(&client->conn->lock);
    fence->n_waiters--;
    *ret_stands = fence->region != NULL;
    if (!*ret_stands && fence->n_waiters == 0)
        fence_free(client, fence);
    return result == CUDA_SUCCESS;
}

/* True if it is over. */
static bool wait_for(struct kvc_client *client, struct fence *fence)
{
    bool stands, come = synchronize(client, fence, &stands);

    return !stands || (come && pass(fence));
}

static bool wait_many(struct kvc_client *client, struct kvc_region *region, bool only_one)
{
    bool any = false, going = true;
    struct fence *fence;
    CUcontext previous;

    if (client->n_fences == 0)
        return false;
    error_hold();
    if (gpu_enter(client->gpu, &previous) == 0) {
        while (going && (fence = first_of(client, region))) {
            going = wait_for(client, fence);
            any |= going;
            going &= !only_one;
        }
        gpu_leave(client->gpu, previous);
    }
    error_release();
    return any;
}

bool fence_wait(struct kvc_client *client, struct kvc_region *region)
{
    return wait_many(client, region, false);
}

bool fence_wait_next(struct kvc_client *client)
{
    return wait_many(client, NULL, true);
}

/* A driver that cannot tell even at a second try has lost the context, and all that ran in it. */
static void abandon(struct kvc_region *region, struct fence *fence)
{
    struct kvc_client *client = region->client;
    bool stands;

    if (!synchronize(client, fence, &stands) && stands)
        synchronize(client, fence, &stands);
    if (!stands)
        return;
    map_set_staying(region, fence->pages, fence->n);
    settle(client, fence);
}

void fence_abandon(struct kvc_region *region)
{
    struct gpu *gpu = region->client->gpu;
    CUcontext previous;

    if (list_is_empty(&region->fences) || (gpu_enter(gpu, &previous) < 0 && gpu_enter(gpu, &previous) < 0))
        return;
    while (!list_is_empty(&region->fences))
        abandon(region, list_first(&region->fences, struct fence, link));
    gpu_leave(gpu, previous);
}
