/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The driver's calls, written as well as we can: address space is reserved once; neighbours get their access
 * in one call and are unmapped in one call; extents that nobody else will see are not made shareable. The
 * reservation is as large as the borrower's: a page in a larger one is more work to map, for a kernel that
 * has to split it, than one that fills its own.
 */

#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "side.h"

struct driver_side {
    struct cuda_driver *cuda;
    CUdevice device;
    CUcontext context;
    CUdeviceptr address;
    const int *fds;
    CUmemGenericAllocationHandle handles[PAGES_MAX];
};

void driver_check(const struct cuda_driver *driver, CUresult result, const char *call)
{
    if (result != CUDA_SUCCESS)
        die("%s: %s", call, cuda_error_name(driver, result));
}

#define DO(cuda, function, ...) driver_check(cuda, (cuda)->function(__VA_ARGS__), #function)

void driver_open(const char *path, const char *uuid, struct cuda_driver **ret_driver, CUdevice *ret_device)
{
    char error[CUDA_DRIVER_ERROR_MAX];
    CUuuid wanted;

    if (cuda_driver_load(path, ret_driver, error) < 0)
        die("%s", error);
    if (cuda_uuid_parse(uuid, &wanted) < 0 || cuda_device_by_uuid(*ret_driver, &wanted, ret_device) < 0)
        die("the driver doesn't know %s", uuid);
}

struct driver_side *driver_side_new(const char *driver_path, const char *uuid)
{
    struct driver_side *driver = calloc(1, sizeof(*driver));

    if (!driver)
        die("out of memory");
    driver_open(driver_path, uuid, &driver->cuda, &driver->device);
    DO(driver->cuda, cuDevicePrimaryCtxRetain, &driver->context, driver->device);
    DO(driver->cuda, cuCtxSetCurrent, driver->context);
    DO(driver->cuda, cuMemAddressReserve, &driver->address, PAGES_MAX * PAGE_BYTES, 0, 0, 0);
    return driver;
}

void driver_side_free(struct driver_side *driver)
{
    DO(driver->cuda, cuMemAddressFree, driver->address, PAGES_MAX * PAGE_BYTES);
    DO(driver->cuda, cuCtxSetCurrent, NULL);
    DO(driver->cuda, cuDevicePrimaryCtxRelease, driver->device);
    cuda_driver_unload(driver->cuda);
    free(driver);
}

static void map_handle(struct driver_side *driver, unsigned i)
{
    DO(driver->cuda, cuMemMap, driver->address + i * PAGE_BYTES, PAGE_BYTES, 0, driver->handles[i], 0);
}

static void allow_access(struct driver_side *driver, unsigned n_pages)
{
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = driver->device},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };

    DO(driver->cuda, cuMemSetAccess, driver->address, n_pages * PAGE_BYTES, &access, 1);
}

static void create(void *state, unsigned n_pages)
{
    struct driver_side *driver = state;
    const CUmemAllocationProp prop = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = driver->device},
    };

    for (unsigned i = 0; i < n_pages; i++) {
        DO(driver->cuda, cuMemCreate, &driver->handles[i], PAGE_BYTES, &prop, 0);
        map_handle(driver, i);
    }
    allow_access(driver, n_pages);
}

static void import(void *state, unsigned n_pages)
{
    struct driver_side *driver = state;

    for (unsigned i = 0; i < n_pages; i++) {
        DO(driver->cuda, cuMemImportFromShareableHandle, &driver->handles[i],
           (void *)(intptr_t)driver->fds[i], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
        map_handle(driver, i);
    }
    allow_access(driver, n_pages);
}

static void release(void *state, unsigned n_pages)
{
    struct driver_side *driver = state;

    DO(driver->cuda, cuMemUnmap, driver->address, n_pages * PAGE_BYTES);
    for (unsigned i = 0; i < n_pages; i++)
        DO(driver->cuda, cuMemRelease, driver->handles[i]);
}

struct side driver_side_create(struct driver_side *driver)
{
    return (struct side){.name = "in-process", .map = create, .unmap = release, .state = driver};
}

struct side driver_side_import(struct driver_side *driver)
{
    return (struct side){.name = "driver", .map = import, .unmap = release, .state = driver};
}

void driver_side_offer(struct driver_side *driver, const int *fds)
{
    driver->fds = fds;
}
