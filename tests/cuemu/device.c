/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Devices: what they are called and what they can do. They claim what a memory program asks about (virtual
 * memory management, POSIX descriptors, GPUDirect RDMA) and say in their name that they are emulated.
 */

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "config.h"
#include "internal.h"

#define DRIVER_VERSION 13000

int device_ordinal(unsigned physical)
{
    for (unsigned i = 0; i < emu.n_devices; i++)
        if (emu.physical[i] == physical)
            return (int)i;
    return -1;
}

static CUresult get_version(int *version)
{
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    *version = DRIVER_VERSION;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int *version)
{
    return CALL_ANYWHERE(cuDriverGetVersion, get_version(version));
}

static const struct {
    CUresult value;
    const char *name, *text;
} results[] = {
#define CUDA_RESULT(name, value, text) {name, #name, text},
#include "cuda/errors.def"
#undef CUDA_RESULT
};

static CUresult describe(CUresult error, const char **ret, bool name)
{
    if (!ret)
        return CUDA_ERROR_INVALID_VALUE;
    *ret = NULL;
    for (size_t i = 0; i < ARRAY_SIZE(results); i++)
        if (results[i].value == error)
            *ret = name ? results[i].name : results[i].text;
    return *ret ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuGetErrorName(CUresult error, const char **name)
{
    return CALL_ANYWHERE(cuGetErrorName, describe(error, name, true));
}

EXPORT CUresult cuGetErrorString(CUresult error, const char **text)
{
    return CALL_ANYWHERE(cuGetErrorString, describe(error, text, false));
}

static CUresult get_count(int *count)
{
    if (!count)
        return CUDA_ERROR_INVALID_VALUE;
    *count = (int)emu.n_devices;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int *count)
{
    return CALL(cuDeviceGetCount, NEEDS_INIT, get_count(count));
}

static CUresult get_device(CUdevice *device, int ordinal)
{
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(ordinal))
        return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
    return CALL(cuDeviceGet, NEEDS_INIT, get_device(device, ordinal));
}

static CUresult get_name(char *name, int length, CUdevice device)
{
    if (!name || length <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, (size_t)length, CONFIG_NAME,
             (unsigned)(registry_total(emu.registry, emu.physical[device]) / GIB));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetName(char *name, int length, CUdevice device)
{
    return CALL(cuDeviceGetName, NEEDS_INIT, get_name(name, length, device));
}

static CUresult get_uuid(CUuuid *uuid, CUdevice device)
{
    if (!uuid)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *uuid = emu.uuids[emu.physical[device]];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    return CALL(cuDeviceGetUuid_v2, NEEDS_INIT, get_uuid(uuid, device));
}

EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
    return CALL(cuDeviceGetUuid, NEEDS_INIT, get_uuid(uuid, device));
}

static CUresult get_total(size_t *bytes, CUdevice device)
{
    if (!bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *bytes = registry_total(emu.registry, emu.physical[device]);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
    return CALL(cuDeviceTotalMem_v2, NEEDS_INIT, get_total(bytes, device));
}

static const struct {
    CUdevice_attribute attribute;
    int value;
} attributes[] = {
    {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
    {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32},
    {CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 1410000},
    {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 108},
    {CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, 1},
    {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 8},
    {CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, 1},
    {CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED, 1},
};

static CUresult get_attribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    if (!value || (int)attribute <= 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *value = attribute == CU_DEVICE_ATTRIBUTE_PCI_BUS_ID ? (int)CONFIG_PCI_BUS(emu.physical[device]) : 0;
    for (size_t i = 0; i < ARRAY_SIZE(attributes); i++)
        if (attributes[i].attribute == attribute)
            *value = attributes[i].value;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
    return CALL(cuDeviceGetAttribute, NEEDS_INIT, get_attribute(value, attribute, device));
}

static CUresult get_capability(int *major, int *minor, CUdevice device)
{
    CUresult result = get_attribute(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);

    return result == CUDA_SUCCESS ? get_attribute(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
                                  : result;
}

EXPORT CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device)
{
    return CALL(cuDeviceComputeCapability, NEEDS_INIT, get_capability(major, minor, device));
}

static CUresult get_pci_id(char *id, int length, CUdevice device)
{
    if (!id || length < 13)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    snprintf(id, (size_t)length, "0000:%02X:00.0", CONFIG_PCI_BUS(emu.physical[device]));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device)
{
    return CALL(cuDeviceGetPCIBusId, NEEDS_INIT, get_pci_id(id, length, device));
}

/* "[domain]:[bus]:[device].[function]", each part but bus and device optional. */
static CUresult find_by_pci_id(CUdevice *device, const char *id)
{
    unsigned domain = 0, bus, slot, function = 0;

    if (!device || !id)
        return CUDA_ERROR_INVALID_VALUE;
    if (sscanf(id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3 &&
        (domain = 0, sscanf(id, "%x:%x.%x", &bus, &slot, &function) < 2))
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < emu.n_devices; i++)
        if (domain == 0 && bus == CONFIG_PCI_BUS(emu.physical[i]) && slot == 0 && function == 0) {
            *device = (CUdevice)i;
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetByPCIBusId(CUdevice *device, const char *id)
{
    return CALL(cuDeviceGetByPCIBusId, NEEDS_INIT, find_by_pci_id(device, id));
}

static CUresult can_access_peer(int *can, CUdevice device, CUdevice peer)
{
    if (!can)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device) || !valid_device(peer))
        return CUDA_ERROR_INVALID_DEVICE;
    *can = device != peer;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
    return CALL(cuDeviceCanAccessPeer, NEEDS_INIT, can_access_peer(can, device, peer));
}
