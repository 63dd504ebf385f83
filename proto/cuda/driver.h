/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The CUDA driver and the management library as tables of function pointers, found at run time. A table
 * exists only for a library that is initialised: loading calls cuInit (nvmlInit).
 *
 * Loading returns 0, or a negative errno and one sentence without newline in `error`:
 *     -ENOENT   no such library
 *     -ELIBACC  the toolkit's stub library, which links but does nothing
 *     -ENOSYS   an entry point is missing: too old a driver, or no driver at all
 *     -ENODEV   the driver sees no GPU
 *     -EINVAL   the emulator refused its configuration
 *     -EIO      initialisation failed otherwise
 */

#include <stdbool.h>

#include "base/cleanup.h"
#include "cuda/api.h"
#include "cuda/nvml-api.h"

#define CUDA_DRIVER_ERROR_MAX 256

struct cuda_driver {
#define CUDA_FUNCTION(name, symbol, parameters) CUresult(*name) parameters;
#include "cuda/driver.def"
#undef CUDA_FUNCTION
};

struct nvml_driver {
    const char *(*nvmlErrorString)(nvmlReturn_t result);
#define NVML_FUNCTION(name, symbol, parameters) nvmlReturn_t(*name) parameters;
#include "cuda/nvml.def"
#undef NVML_FUNCTION
};

/* `path` NULL: the system's library, by the dynamic linker's search. */
int cuda_driver_load(const char *path, struct cuda_driver **ret_driver,
                     char error[static CUDA_DRIVER_ERROR_MAX]);
int nvml_driver_load(const char *path, struct nvml_driver **ret_driver,
                     char error[static CUDA_DRIVER_ERROR_MAX]);

/*
 * The emulated libraries in `emulator_dir`, on the devices that live in `folder` and have the given `sizes`
 * ("80G,80G"); NULL means as the environment or the folder itself says. The environment is not changed.
 */
int cuda_driver_load_emulated(const char *emulator_dir, const char *folder, const char *sizes,
                              struct cuda_driver **ret_driver, char error[static CUDA_DRIVER_ERROR_MAX]);
int nvml_driver_load_emulated(const char *emulator_dir, const char *folder, const char *sizes,
                              struct nvml_driver **ret_driver, char error[static CUDA_DRIVER_ERROR_MAX]);

/*
 * Frees the table (and shuts the management library down). The libraries stay in the process: a driver runs
 * threads of its own, and code must not vanish beneath them.
 */
struct cuda_driver *cuda_driver_unload(struct cuda_driver *driver);
struct nvml_driver *nvml_driver_unload(struct nvml_driver *driver);

DEFINE_CLEANUP(struct cuda_driver *, cuda_driver_unload);
DEFINE_CLEANUP(struct nvml_driver *, nvml_driver_unload);

/* "CUDA_ERROR_OUT_OF_MEMORY"; never NULL. */
const char *cuda_error_name(const struct cuda_driver *driver, CUresult result);

#define CUDA_UUID_MAX 41 /* "GPU-", 32 digits, 4 dashes, NUL */

/* "GPU-8a6e0b7c-…", as nvidia-smi and CUDA_VISIBLE_DEVICES have it. */
const char *cuda_uuid_format(char buf[static CUDA_UUID_MAX], const CUuuid *uuid);

/* Accepts "GPU-" and "MIG-" in front of the digits, of either case. 0, or -EINVAL with *ret_uuid untouched.
 */
int cuda_uuid_parse(const char *text, CUuuid *ret_uuid);

/*
 * The n-th device in the order of PCI addresses, which does not depend on CUDA_DEVICE_ORDER, among those that
 * the process may see; or the one with a UUID. 0, -ENODEV where there is none, -EIO where the driver fails.
 */
int cuda_device_by_index(const struct cuda_driver *driver, unsigned index, CUdevice *ret_device);
int cuda_device_by_uuid(const struct cuda_driver *driver, const CUuuid *uuid, CUdevice *ret_device);
