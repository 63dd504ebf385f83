/* SPDX-License-Identifier: Apache-2.0 */

/* As driver-facts.c, for the management library. */

#include <stddef.h>

#include "cuda/nvml-api.h"
#include "driver-facts.h"

#define SIZE(type)                                                                                           \
    {                                                                                                        \
        "sizeof " #type, (long long)sizeof(type)                                                             \
    }
#define AT(type, member)                                                                                     \
    {                                                                                                        \
#type "." #member, (long long)offsetof(type, member)                                                 \
    }
#define VALUE(name)                                                                                          \
    {                                                                                                        \
#name, (long long)(name)                                                                             \
    }

#ifdef KVCACHED_NVML_H

#define NVML_FUNCTION(name, symbol, parameters)                                                              \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&symbol), nvmlReturn_t(*) parameters), #symbol);
#include "cuda/nvml.def"
#undef NVML_FUNCTION
_Static_assert(__builtin_types_compatible_p(__typeof__(&nvmlErrorString), const char *(*)(nvmlReturn_t)),
               "nvmlErrorString");

const struct fact nvml_facts_vendor[] = {
#else
const struct fact nvml_facts_ours[] = {
#endif
    VALUE(NVML_SUCCESS),
    VALUE(NVML_ERROR_UNINITIALIZED),
    VALUE(NVML_ERROR_INVALID_ARGUMENT),
    VALUE(NVML_ERROR_NOT_SUPPORTED),
    VALUE(NVML_ERROR_NO_PERMISSION),
    VALUE(NVML_ERROR_NOT_FOUND),
    VALUE(NVML_ERROR_INSUFFICIENT_SIZE),
    VALUE(NVML_ERROR_DRIVER_NOT_LOADED),
    VALUE(NVML_ERROR_LIBRARY_NOT_FOUND),
    VALUE(NVML_ERROR_FUNCTION_NOT_FOUND),
    VALUE(NVML_ERROR_GPU_IS_LOST),
    VALUE(NVML_ERROR_OPERATING_SYSTEM),
    VALUE(NVML_ERROR_LIB_RM_VERSION_MISMATCH),
    VALUE(NVML_ERROR_MEMORY),
    VALUE(NVML_ERROR_ARGUMENT_VERSION_MISMATCH),
    VALUE(NVML_ERROR_UNKNOWN),
    VALUE(NVML_DEVICE_PCI_BUS_ID_BUFFER_SIZE),
    VALUE(NVML_DEVICE_PCI_BUS_ID_BUFFER_V2_SIZE),
    VALUE(NVML_DEVICE_UUID_V2_BUFFER_SIZE),
    VALUE(NVML_DEVICE_NAME_V2_BUFFER_SIZE),
    VALUE(NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE),
    VALUE(NVML_VALUE_NOT_AVAILABLE),
    VALUE(nvmlMemory_v2),
    SIZE(nvmlDevice_t),
    SIZE(nvmlPciInfo_t),
    AT(nvmlPciInfo_t, domain),
    AT(nvmlPciInfo_t, bus),
    AT(nvmlPciInfo_t, device),
    AT(nvmlPciInfo_t, pciDeviceId),
    AT(nvmlPciInfo_t, busId),
    SIZE(nvmlMemory_t),
    AT(nvmlMemory_t, free),
    AT(nvmlMemory_t, used),
    SIZE(nvmlMemory_v2_t),
    AT(nvmlMemory_v2_t, total),
    AT(nvmlMemory_v2_t, reserved),
    AT(nvmlMemory_v2_t, free),
    AT(nvmlMemory_v2_t, used),
    SIZE(nvmlProcessInfo_t),
    AT(nvmlProcessInfo_t, usedGpuMemory),
    AT(nvmlProcessInfo_t, gpuInstanceId),
    AT(nvmlProcessInfo_t, computeInstanceId),
    {0},
};
