/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Device: the one GPU of this daemon, seen through the driver. Opening happens at start; the calls below are
 * for the backing thread, and may be slow.
 */

#include <limits.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "cuda/driver.h"

struct device_info {
    char uuid[CUDA_UUID_MAX];
    char name[96];
    char emulated_folder[PATH_MAX]; /* empty: a real device */
    unsigned index;                 /* in PCI order */
    unsigned n_devices;
    uint64_t total_bytes;
    uint64_t granularity_bytes;
};

struct device;

/* `gpu` is a number or a UUID, NULL the first; `emulate` sizes of emulated devices, NULL the real driver. 0,
 * or negative with one sentence in `error`. */
int device_open(const char *gpu, const char *emulate, struct device **ret,
                char error[static CUDA_DRIVER_ERROR_MAX]);
struct device *device_close(struct device *device);
DEFINE_CLEANUP(struct device *, device_close);

const struct device_info *device_info(const struct device *device);

/* What the driver answered, in its own words. All return 0, or -ENOMEM where the device is full, or -EIO with
 * the driver's name for the failure in *ret_why. */
int device_create(struct device *device, uint64_t bytes, CUmemGenericAllocationHandle *ret,
                  const char **ret_why);
int device_export(struct device *device, CUmemGenericAllocationHandle handle, int *ret_fd,
                  const char **ret_why);
/* *ret_freed_bytes: by how much free memory rose with it, read just before and after, so that little of what
 * others do comes in between; 0 where it didn't or could not be read. */
int device_release(struct device *device, CUmemGenericAllocationHandle handle, uint64_t *ret_freed_bytes,
                   const char **ret_why);
int device_free_bytes(struct device *device, uint64_t *ret, const char **ret_why);
