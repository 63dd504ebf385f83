/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The driver comes from the system, or, when the daemon says that its device is emulated, from the folder
 * beside this library's own file. The daemon says only in which folder the devices live: no path to code is
 * ever taken from the wire. A process that runs on the emulator already (through the dynamic linker's search
 * path) keeps that copy, so that the library and its host see the same addresses.
 *
 * Contexts: the device's primary one, as every framework uses it. It is retained once, pushed around a batch
 * of calls where the thread has another, and popped after.
 */

#include "gpu.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

#define EMULATOR_FOLDER "kvcached/cuemu"

int gpu_result(struct gpu *gpu, CUresult result, const char *call)
{
    if (result == CUDA_SUCCESS)
        return 0;
    return error_set(KVC_E_DRIVER, "%s failed: %s", call, cuda_error_name(gpu->driver, result));
}

static int explain_load(int r, const char *sentence)
{
    if (r == -ENOMEM)
        return error_nomem();
    return error_set(KVC_E_DRIVER, "%s", sentence);
}

/* The folder part of a path, or "." */
static void folder_of(const char *file, char *buf, size_t size)
{
    const char *slash = strrchr(file, '/');

    if (slash)
        snprintf(buf, size, "%.*s", (int)(slash - file), file);
    else
        snprintf(buf, size, ".");
}

/* Where an emulator that the process has loaded already lies. */
static bool find_loaded_emulator(char *buf, size_t size)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD | RTLD_LOCAL);
    struct link_map *map;
    bool found;

    if (!library)
        return false;
    found = dlsym(library, "cuemuConfigure") && dlinfo(library, RTLD_DI_LINKMAP, &map) == 0;
    if (found)
        folder_of(map->l_name, buf, size);
    dlclose(library);
    return found;
}

static int find_own_emulator(char *buf, size_t size)
{
    char file[PATH_MAX], own[PATH_MAX];
    Dl_info info;

    if (!dladdr((void *)find_own_emulator, &info) || !realpath(info.dli_fname, file))
        return error_set(KVC_E_DRIVER, "Cannot tell where libkvclient lies, hence not where its emulator is");
    folder_of(file, own, sizeof(own));
    if ((size_t)snprintf(buf, size, "%s/" EMULATOR_FOLDER, own) >= size)
        return error_set(KVC_E_DRIVER, "The path of the emulated driver is too long");
    return 0;
}

static int load_emulated(const char *folder, const char *given_dir, struct cuda_driver **ret)
{
    char error[CUDA_DRIVER_ERROR_MAX] = "", dir[PATH_MAX];
    int r;

    if (!find_loaded_emulator(dir, sizeof(dir))) {
        r = given_dir ? 0 : find_own_emulator(dir, sizeof(dir));
        if (r < 0)
            return r;
        if (given_dir)
            snprintf(dir, sizeof(dir), "%s", given_dir);
    }
    r = cuda_driver_load_emulated(dir, folder, NULL, ret, error);
    return r < 0 ? explain_load(r, error) : 0;
}

static int load_real(struct cuda_driver **ret)
{
    char error[CUDA_DRIVER_ERROR_MAX] = "";
    int r;

    r = cuda_driver_load(NULL, ret, error);
    return r < 0 ? explain_load(r, error) : 0;
}

static int find_device(struct gpu *gpu, const char *text)
{
    CUuuid uuid;
    int r;

    if (cuda_uuid_parse(text, &uuid) < 0)
        return error_set(KVC_E_PROTOCOL, "kvcachedd calls its GPU \"%.64s\", which is no UUID", text);
    r = cuda_device_by_uuid(gpu->driver, &uuid, &gpu->device);
    if (r == -ENODEV)
        return error_set(KVC_E_DRIVER, "This process does not see %.64s (CUDA_VISIBLE_DEVICES?)", text);
    return r < 0 ? error_set(KVC_E_DRIVER, "The driver cannot list its devices") : 0;
}

static int find_path(struct gpu *gpu)
{
    Dl_info info;

    if (!dladdr((void *)gpu->driver->cuInit, &info) || !info.dli_fname)
        return error_set(KVC_E_DRIVER, "Cannot tell where the driver library lies");
    gpu->path = strdup(info.dli_fname);
    return gpu->path ? 0 : error_nomem();
}

int gpu_open(const char *uuid, const char *emulated_folder, const char *emulator_dir, struct gpu **ret)
{
    _cleanup_(gpu_closep) struct gpu *gpu = calloc(1, sizeof(*gpu));
    CUcontext context;
    int r;

    if (!gpu)
        return error_nomem();
    atomic_init(&gpu->n_refs, 1);
    r = emulated_folder ? load_emulated(emulated_folder, emulator_dir, &gpu->driver)
                        : load_real(&gpu->driver);
    if (r == 0)
        r = find_device(gpu, uuid);
    if (r == 0)
        r = find_path(gpu);
    if (r == 0)
        r = gpu_result(gpu, gpu->driver->cuDevicePrimaryCtxRetain(&context, gpu->device),
                       "cuDevicePrimaryCtxRetain");
    if (r < 0)
        return r;
    gpu->context = context;
    *ret = steal_pointer(gpu);
    return 0;
}

struct gpu *gpu_ref(struct gpu *gpu)
{
    atomic_fetch_add(&gpu->n_refs, 1);
    return gpu;
}

struct gpu *gpu_close(struct gpu *gpu)
{
    if (!gpu || atomic_fetch_sub(&gpu->n_refs, 1) > 1)
        return NULL;
    if (gpu->context)
        gpu->driver->cuDevicePrimaryCtxRelease(gpu->device);
    return gpu_forget(gpu);
}

struct gpu *gpu_forget(struct gpu *gpu)
{
    if (!gpu)
        return NULL;
    cuda_driver_unload(gpu->driver);
    free(gpu->path);
    free(gpu);
    return NULL;
}

int gpu_enter(struct gpu *gpu, CUcontext *ret_previous)
{
    CUcontext previous;
    int r;

    r = gpu_result(gpu, gpu->driver->cuCtxGetCurrent(&previous), "cuCtxGetCurrent");
    if (r < 0)
        return r;
    if (previous != gpu->context) {
        r = gpu_result(gpu, gpu->driver->cuCtxPushCurrent(gpu->context), "cuCtxPushCurrent");
        if (r < 0)
            return r;
    }
    *ret_previous = previous;
    return 0;
}

void gpu_leave(struct gpu *gpu, CUcontext previous)
{
    CUcontext popped;

    if (previous == gpu->context)
        return;
    /* A pop that fails must not leave the caller in our context. */
    if (gpu->driver->cuCtxPopCurrent(&popped) != CUDA_SUCCESS)
        gpu->driver->cuCtxSetCurrent(previous);
}

int gpu_enter_again(struct gpu *gpu, CUcontext *ret_previous)
{
    return gpu_enter(gpu, ret_previous) == 0 ? 0 : gpu_enter(gpu, ret_previous);
}

CUresult gpu_free_addresses(struct gpu *gpu, CUdeviceptr address, uint64_t bytes)
{
    CUcontext previous;
    CUresult result;

    if (gpu_enter_again(gpu, &previous) < 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    result = gpu->driver->cuMemAddressFree(address, bytes);
    if (result != CUDA_SUCCESS)
        result = gpu->driver->cuMemAddressFree(address, bytes);
    gpu_leave(gpu, previous);
    return result;
}
