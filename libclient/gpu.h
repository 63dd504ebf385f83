/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The GPU as the library uses it: the driver's table, one device, its primary context.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "cuda/driver.h"

struct gpu {
    atomic_uint n_refs;
    struct cuda_driver *driver;
    CUdevice device;
    CUcontext context; /* retained */
    char *path;        /* of the driver library */
};

/* `emulated_folder` not NULL: the emulated driver, on the devices in that folder. 0 or KVC_E_*. */
int gpu_open(const char *uuid, const char *emulated_folder, const char *emulator_dir, struct gpu **ret);
struct gpu *gpu_ref(struct gpu *gpu);
struct gpu *gpu_close(struct gpu *gpu); /* when it was the last one's */
DEFINE_CLEANUP(struct gpu *, gpu_close);

/* Frees host memory only: for a forked child, in which no driver call is allowed. */
struct gpu *gpu_forget(struct gpu *gpu);

/* Between the two, the primary context is the thread's; afterwards it has its own again. */
int gpu_enter(struct gpu *gpu, CUcontext *ret_previous);
void gpu_leave(struct gpu *gpu, CUcontext previous);

/* The same for what is being closed: that has no second chance later, so it takes one at once. */
int gpu_enter_again(struct gpu *gpu, CUcontext *ret_previous);
CUresult gpu_free_addresses(struct gpu *gpu, CUdeviceptr address, uint64_t bytes);

/* 0, or KVC_E_DRIVER with a sentence that names the call. */
int gpu_result(struct gpu *gpu, CUresult result, const char *call);
