/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The driver as the daemon needs it: create, export, release, and how much is free. None of the first three
 * wants a context, which would cost hundreds of MiB of GPU memory; free memory comes from the management
 * library. Only where that is missing is the primary context taken, and the log says so.
 *
 * The emulated driver takes the same way. It is loaded when somebody asks for it and never otherwise, from
 * the folder where it is installed; $KVCACHED_EMULATOR_DIR names another, for a tree that isn't installed.
 */

#include "device.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/parse.h"
#include "log.h"

struct device {
    struct device_info info;
    struct cuda_driver *cuda;
    struct nvml_driver *nvml; /* NULL: free memory comes from the context */
    CUdevice ordinal;
    nvmlDevice_t managed;
    CUcontext context;
    CUmemAllocationProp properties;
};

const struct device_info *device_info(const struct device *device)
{
    return &device->info;
}

/* The folder decides which devices these are, for us and for the clients that we tell; so it is absolute. */
static int find_emulated_folder(char ret[static PATH_MAX])
{
    const char *given = getenv("KVCACHED_EMULATE_DIR");
    _cleanup_free_ char *here = NULL;
    int n;

    if (!given || !*given) {
        n = snprintf(ret, PATH_MAX, "/dev/shm/kvcached-emu-%u", (unsigned)geteuid());
    } else if (*given == '/') {
        n = snprintf(ret, PATH_MAX, "%s", given);
    } else {
        here = getcwd(NULL, 0);
        n = here ? snprintf(ret, PATH_MAX, "%s/%s", here, given) : PATH_MAX;
    }
    return n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int load_emulated(struct device *device, const char *sizes, char *error)
{
    const char *given = getenv("KVCACHED_EMULATOR_DIR"), *dir = given && *given ? given : EMULATOR_DIR;
    char *folder = device->info.emulated_folder;
    int r;

    r = find_emulated_folder(folder);
    if (r < 0) {
        snprintf(error, CUDA_DRIVER_ERROR_MAX, "KVCACHED_EMULATE_DIR is longer than %d characters",
                 PATH_MAX - 1);
        return r;
    }
    r = cuda_driver_load_emulated(dir, folder, sizes, &device->cuda, error);
    if (r < 0)
        return r;
    return nvml_driver_load_emulated(dir, folder, sizes, &device->nvml, error);
}

/* A machine whose management library doesn't start is served all the same. */
static int load_real(struct device *device, char *error)
{
    size_t length;
    int r;

    r = cuda_driver_load(NULL, &device->cuda, error);
    if (r == -ENOENT || r == -ENODEV) {
        length = strlen(error);
        snprintf(error + length, CUDA_DRIVER_ERROR_MAX - length, " (--emulate 80G makes do without a GPU)");
    }
    if (r < 0)
        return r;
    if (nvml_driver_load(NULL, &device->nvml, error) < 0)
        log_warning("%s", error);
    return 0;
}

static int find_by_uuid(struct device *device, const CUuuid *uuid)
{
    CUdevice found, candidate;
    int r;

    r = cuda_device_by_uuid(device->cuda, uuid, &found);
    if (r < 0)
        return r;
    for (unsigned i = 0;; i++) {
        r = cuda_device_by_index(device->cuda, i, &candidate);
        if (r < 0)
            return r;
        if (candidate == found) {
            device->ordinal = found;
            device->info.index = i;
            return 0;
        }
    }
}

static int find_by_index(struct device *device, uint64_t index)
{
    if (index >= device->info.n_devices)
        return -ENODEV;
    device->info.index = (unsigned)index;
    return cuda_device_by_index(device->cuda, device->info.index, &device->ordinal);
}

static int find_device(struct device *device, const char *gpu, char *error)
{
    uint64_t index = 0;
    CUuuid uuid;
    int n_devices, r;

    if (device->cuda->cuDeviceGetCount(&n_devices) != CUDA_SUCCESS || n_devices <= 0) {
        snprintf(error, CUDA_DRIVER_ERROR_MAX, "The CUDA driver does not say which GPUs there are");
        return -EIO;
    }
    device->info.n_devices = (unsigned)n_devices;
    if (!gpu || parse_u64(gpu, &index) == 0) {
        r = find_by_index(device, index);
    } else if (cuda_uuid_parse(gpu, &uuid) == 0) {
        r = find_by_uuid(device, &uuid);
    } else {
        snprintf(error, CUDA_DRIVER_ERROR_MAX, "--gpu: \"%s\" is neither a number nor a UUID", gpu);
        return -EINVAL;
    }
    if (r == -ENODEV)
        snprintf(error, CUDA_DRIVER_ERROR_MAX, "There is no GPU %s; the driver sees %d", gpu ?: "0",
                 n_devices);
    else if (r < 0)
        snprintf(error, CUDA_DRIVER_ERROR_MAX, "The CUDA driver does not tell about GPU %s", gpu ?: "0");
    return r;
}

static int describe(struct device *device, char *error)
{
    const struct cuda_driver *cuda = device->cuda;
    struct device_info *info = &device->info;
    size_t total, granularity;
    int shareable = 0;
    CUuuid uuid;
    CUresult result;

    result = cuda->cuDeviceGetUuid(&uuid, device->ordinal);
    if (result == CUDA_SUCCESS)
        result = cuda->cuDeviceGetName(info->name, sizeof(info->name), device->ordinal);
    if (result == CUDA_SUCCESS)
        result = cuda->cuDeviceTotalMem(&total, device->ordinal);
    if (result == CUDA_SUCCESS)
        result = cuda->cuDeviceGetAttribute(
            &shareable, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device->ordinal);
    if (result == CUDA_SUCCESS && !shareable) {
        snprintf(error, CUDA_DRIVER_ERROR_MAX, "%s cannot share memory between processes by descriptor",
                 info->name);
        return -ENODEV;
    }
    device->properties = (CUmemAllocationProp){
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device->ordinal},
    };
    if (result == CUDA_SUCCESS)
        result = cuda->cuMemGetAllocationGranularity(&granularity, &device->properties,
                                                     CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (result != CUDA_SUCCESS) {
        snprintf(error, CUDA_DRIVER_ERROR_MAX, "The CUDA driver does not describe GPU %u: %s", info->index,
                 cuda_error_name(cuda, result));
        return -EIO;
    }
    cuda_uuid_format(info->uuid, &uuid);
    info->total_bytes = total;
    info->granularity_bytes = granularity;
    return 0;
}

static int use_context(struct device *device, char *error)
{
    CUresult result = device->cuda->cuDevicePrimaryCtxRetain(&device->context, device->ordinal);

    if (result != CUDA_SUCCESS) {
        snprintf(error, CUDA_DRIVER_ERROR_MAX, "GPU %u gives no context to ask it for free memory: %s",
                 device->info.index, cuda_error_name(device->cuda, result));
        return -EIO;
    }
    log_notice("The management library doesn't serve this GPU; a context was taken to ask for free memory");
    return 0;
}

static int find_free_memory(struct device *device, char *error)
{
    nvmlReturn_t result;

    if (!device->nvml)
        return use_context(device, error);
    result = device->nvml->nvmlDeviceGetHandleByUUID(device->info.uuid, &device->managed);
    if (result == NVML_SUCCESS)
        return 0;
    device->nvml = nvml_driver_unload(device->nvml);
    return use_context(device, error);
}

int device_open(const char *gpu, const char *emulate, struct device **ret,
                char error[static CUDA_DRIVER_ERROR_MAX])
{
    _cleanup_(device_closep) struct device *device = calloc(1, sizeof(*device));
    int r;

    snprintf(error, CUDA_DRIVER_ERROR_MAX, "Out of memory");
    if (!device)
        return -ENOMEM;
    unsetenv("CUDA_VISIBLE_DEVICES"); /* it is about the engines; our numbers are the machine's */
    r = emulate ? load_emulated(device, emulate, error) : load_real(device, error);
    if (r == 0)
        r = find_device(device, gpu, error);
    if (r == 0)
        r = describe(device, error);
    if (r == 0)
        r = find_free_memory(device, error);
    if (r < 0)
        return r;
    *ret = steal_pointer(device);
    return 0;
}

struct device *device_close(struct device *device)
{
    if (!device)
        return NULL;
    if (device->context)
        device->cuda->cuDevicePrimaryCtxRelease(device->ordinal);
    nvml_driver_unload(device->nvml);
    cuda_driver_unload(device->cuda);
    free(device);
    return NULL;
}

static int judge(struct device *device, CUresult result, const char **ret_why)
{
    if (result == CUDA_SUCCESS)
        return 0;
    *ret_why = cuda_error_name(device->cuda, result);
    return result == CUDA_ERROR_OUT_OF_MEMORY ? -ENOMEM : -EIO;
}

int device_create(struct device *device, uint64_t bytes, CUmemGenericAllocationHandle *ret,
                  const char **ret_why)
{
    return judge(device, device->cuda->cuMemCreate(ret, bytes, &device->properties, 0), ret_why);
}

/* Whether the driver sets close-on-exec doesn't matter: the daemon never runs another program. */
int device_export(struct device *device, CUmemGenericAllocationHandle handle, int *ret_fd,
                  const char **ret_why)
{
    int fd = -1, r;

    r = judge(
        device,
        device->cuda->cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
        ret_why);
    if (r == 0)
        *ret_fd = fd;
    return r;
}

int device_release(struct device *device, CUmemGenericAllocationHandle handle, uint64_t *ret_freed_bytes,
                   const char **ret_why)
{
    uint64_t before, after;
    const char *unread;
    bool has_before = device_free_bytes(device, &before, &unread) == 0;
    int r;

    r = judge(device, device->cuda->cuMemRelease(handle), ret_why);
    if (r < 0)
        return r;
    if (has_before && device_free_bytes(device, &after, &unread) == 0)
        *ret_freed_bytes = u64_sub_floor(after, before);
    else
        *ret_freed_bytes = 0;
    return 0;
}

static int free_by_context(struct device *device, uint64_t *ret, const char **ret_why)
{
    size_t free_bytes, total_bytes;
    CUresult result = device->cuda->cuCtxSetCurrent(device->context);

    if (result == CUDA_SUCCESS)
        result = device->cuda->cuMemGetInfo(&free_bytes, &total_bytes);
    if (result == CUDA_SUCCESS)
        *ret = free_bytes;
    return judge(device, result, ret_why);
}

int device_free_bytes(struct device *device, uint64_t *ret, const char **ret_why)
{
    nvmlMemory_t memory;
    nvmlReturn_t result;

    if (!device->nvml)
        return free_by_context(device, ret, ret_why);
    result = device->nvml->nvmlDeviceGetMemoryInfo(device->managed, &memory);
    if (result != NVML_SUCCESS) {
        *ret_why = device->nvml->nvmlErrorString(result);
        return -EIO;
    }
    *ret = memory.free;
    return 0;
}
