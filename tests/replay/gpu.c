/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An engine's own driver calls. It owns the table, the reference to the primary context and the weights. It
 * knows nothing of the broker: it uses the driver that libkvclient names, as any engine would.
 */

#include "gpu.h"

#include <errno.h>
#include <stdio.h>

#include "cuda/driver.h"

struct gpu {
    struct cuda_driver *driver;
    CUdevice device;
    CUcontext context;
    CUdeviceptr weights;
    uint64_t retries;
    char error[GPU_ERROR_MAX];
};

/* The result of the last attempt. */
#define gpu_try(g, call)                                                                                     \
    ({                                                                                                       \
        CUresult gpu_result = (call);                                                                        \
        for (int gpu_n = 1; gpu_result != CUDA_SUCCESS && gpu_n < GPU_ATTEMPTS; gpu_n++) {                   \
            (g)->retries++;                                                                                  \
            gpu_result = (call);                                                                             \
        }                                                                                                    \
        gpu_result;                                                                                          \
    })

static int check(struct gpu *g, const char *what, CUresult result)
{
    if (result == CUDA_SUCCESS)
        return 0;
    snprintf(g->error, sizeof(g->error), "%s failed: %s", what, cuda_error_name(g->driver, result));
    return -EIO;
}

static int load(struct gpu *g, const char *path)
{
    char error[CUDA_DRIVER_ERROR_MAX];
    int r = -EIO;

    for (int n = 0; n < GPU_ATTEMPTS; n++) {
        r = cuda_driver_load(path, &g->driver, error);
        if (r == 0)
            return 0;
        g->retries++;
    }
    snprintf(g->error, sizeof(g->error), "%s", error);
    return -EIO;
}

static int enter_context(struct gpu *g, int ordinal)
{
    int r;

    r = check(g, "cuDeviceGet", gpu_try(g, g->driver->cuDeviceGet(&g->device, ordinal)));
    if (r < 0)
        return r;
    r = check(g, "cuDevicePrimaryCtxRetain",
              gpu_try(g, g->driver->cuDevicePrimaryCtxRetain(&g->context, g->device)));
    if (r < 0)
        return r;
    return check(g, "cuCtxSetCurrent", gpu_try(g, g->driver->cuCtxSetCurrent(g->context)));
}

int gpu_new(const char *path, int ordinal, struct gpu **ret_gpu, char error[static GPU_ERROR_MAX])
{
    _cleanup_(gpu_freep) struct gpu *g = calloc(1, sizeof(*g));
    int r;

    if (!g)
        return -ENOMEM;
    r = load(g, path);
    if (r == 0)
        r = enter_context(g, ordinal);
    if (r < 0) {
        snprintf(error, GPU_ERROR_MAX, "%s", g->error);
        return r;
    }
    *ret_gpu = steal_pointer(g);
    return 0;
}

struct gpu *gpu_free(struct gpu *g)
{
    if (!g)
        return NULL;
    if (g->weights)
        gpu_try(g, g->driver->cuMemFree(g->weights));
    if (g->context)
        gpu_try(g, g->driver->cuDevicePrimaryCtxRelease(g->device));
    cuda_driver_unload(g->driver);
    free(g);
    return NULL;
}

int gpu_load_weights(struct gpu *g, uint64_t bytes)
{
    if (bytes == 0)
        return 0;
    return check(g, "cuMemAlloc of the weights", gpu_try(g, g->driver->cuMemAlloc(&g->weights, bytes)));
}

int gpu_write(struct gpu *g, uint64_t address, const void *from, size_t size)
{
    return check(g, "cuMemcpyHtoD", gpu_try(g, g->driver->cuMemcpyHtoD(address, from, size)));
}

int gpu_read(struct gpu *g, void *to, uint64_t address, size_t size)
{
    return check(g, "cuMemcpyDtoH", gpu_try(g, g->driver->cuMemcpyDtoH(to, address, size)));
}

const char *gpu_error(const struct gpu *g)
{
    return g->error;
}

uint64_t gpu_retries(const struct gpu *g)
{
    return g->retries;
}
