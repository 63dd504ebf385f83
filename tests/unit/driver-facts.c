/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a compiler makes of proto/cuda/api.h, or with KVCACHED_CUDA_H of the vendor's header in its place.
 * Built once with each; test-driver-abi.c compares. The prototypes are compared here, by the compiler, where
 * the vendor declares the functions.
 */

#include "driver-facts.h"

#include <stddef.h>

#include "cuda/api.h"

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

#ifdef KVCACHED_CUDA_H

#define CUDA_FUNCTION(name, symbol, parameters)                                                              \
    _Static_assert(__builtin_types_compatible_p(__typeof__(&symbol), CUresult(*) parameters), #symbol);
#include "cuda/driver.def"
#undef CUDA_FUNCTION

const struct fact facts_vendor[] = {
#else
const struct fact facts_ours[] = {
#endif
#define CUDA_RESULT(name, value, text) VALUE(name),
#include "cuda/errors.def"
#undef CUDA_RESULT

    SIZE(CUdevice),
    SIZE(CUdeviceptr),
    SIZE(CUcontext),
    SIZE(CUstream),
    SIZE(CUevent),
    SIZE(CUresult),
    SIZE(CUuuid),
    SIZE(CUmemGenericAllocationHandle),
    SIZE(CUmemLocation),
    AT(CUmemLocation, type),
    AT(CUmemLocation, id),
    SIZE(CUmemAllocationProp),
    AT(CUmemAllocationProp, type),
    AT(CUmemAllocationProp, requestedHandleTypes),
    AT(CUmemAllocationProp, location),
    AT(CUmemAllocationProp, win32HandleMetaData),
    AT(CUmemAllocationProp, allocFlags.compressionType),
    AT(CUmemAllocationProp, allocFlags.gpuDirectRDMACapable),
    AT(CUmemAllocationProp, allocFlags.usage),
    AT(CUmemAllocationProp, allocFlags.reserved),
    SIZE(CUmemAccessDesc),
    AT(CUmemAccessDesc, location),
    AT(CUmemAccessDesc, flags),

    VALUE(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
    VALUE(CU_DEVICE_ATTRIBUTE_WARP_SIZE),
    VALUE(CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
    VALUE(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
    VALUE(CU_DEVICE_ATTRIBUTE_INTEGRATED),
    VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_MODE),
    VALUE(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID),
    VALUE(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID),
    VALUE(CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING),
    VALUE(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID),
    VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
    VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
    VALUE(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED),
    VALUE(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED),
    VALUE(CU_DEVICE_ATTRIBUTE_GENERIC_COMPRESSION_SUPPORTED),
    VALUE(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED),
    VALUE(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED),
    VALUE(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED),
    VALUE(CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED),
    VALUE(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED),
    VALUE(CU_DEVICE_ATTRIBUTE_MULTICAST_SUPPORTED),

    VALUE(CU_MEM_HANDLE_TYPE_NONE),
    VALUE(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
    VALUE(CU_MEM_HANDLE_TYPE_WIN32),
    VALUE(CU_MEM_HANDLE_TYPE_WIN32_KMT),
    VALUE(CU_MEM_HANDLE_TYPE_FABRIC),
    VALUE(CU_MEM_ACCESS_FLAGS_PROT_NONE),
    VALUE(CU_MEM_ACCESS_FLAGS_PROT_READ),
    VALUE(CU_MEM_ACCESS_FLAGS_PROT_READWRITE),
    VALUE(CU_MEM_LOCATION_TYPE_INVALID),
    VALUE(CU_MEM_LOCATION_TYPE_DEVICE),
    VALUE(CU_MEM_LOCATION_TYPE_HOST),
    VALUE(CU_MEM_LOCATION_TYPE_HOST_NUMA),
    VALUE(CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT),
    VALUE(CU_MEM_ALLOCATION_TYPE_INVALID),
    VALUE(CU_MEM_ALLOCATION_TYPE_PINNED),
    VALUE(CU_MEM_ALLOC_GRANULARITY_MINIMUM),
    VALUE(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
    VALUE(CU_MEM_ALLOCATION_COMP_NONE),
    VALUE(CU_MEM_ALLOCATION_COMP_GENERIC),

    VALUE(CU_MEMORYTYPE_HOST),
    VALUE(CU_MEMORYTYPE_DEVICE),
    VALUE(CU_MEMORYTYPE_ARRAY),
    VALUE(CU_MEMORYTYPE_UNIFIED),
    VALUE(CU_POINTER_ATTRIBUTE_CONTEXT),
    VALUE(CU_POINTER_ATTRIBUTE_MEMORY_TYPE),
    VALUE(CU_POINTER_ATTRIBUTE_DEVICE_POINTER),
    VALUE(CU_POINTER_ATTRIBUTE_HOST_POINTER),
    VALUE(CU_POINTER_ATTRIBUTE_SYNC_MEMOPS),
    VALUE(CU_POINTER_ATTRIBUTE_BUFFER_ID),
    VALUE(CU_POINTER_ATTRIBUTE_IS_MANAGED),
    VALUE(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL),
    VALUE(CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE),
    VALUE(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR),
    VALUE(CU_POINTER_ATTRIBUTE_RANGE_SIZE),
    VALUE(CU_POINTER_ATTRIBUTE_MAPPED),
    VALUE(CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES),
    VALUE(CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE),
    VALUE(CU_POINTER_ATTRIBUTE_ACCESS_FLAGS),
    VALUE(CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE),
    VALUE(CU_POINTER_ATTRIBUTE_MAPPING_SIZE),
    VALUE(CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR),

    VALUE(CU_STREAM_DEFAULT),
    VALUE(CU_STREAM_NON_BLOCKING),
    VALUE(CU_STREAM_LEGACY),
    VALUE(CU_STREAM_PER_THREAD),
    VALUE(CU_EVENT_DEFAULT),
    VALUE(CU_EVENT_BLOCKING_SYNC),
    VALUE(CU_EVENT_DISABLE_TIMING),
    VALUE(CU_EVENT_INTERPROCESS),
    VALUE(CU_CTX_SCHED_AUTO),
    VALUE(CU_CTX_SCHED_SPIN),
    VALUE(CU_CTX_SCHED_YIELD),
    VALUE(CU_CTX_SCHED_BLOCKING_SYNC),
    VALUE(CU_CTX_SCHED_MASK),
    VALUE(CU_CTX_MAP_HOST),
    VALUE(CU_CTX_LMEM_RESIZE_TO_MAX),
    VALUE(CU_CTX_FLAGS_MASK),
    VALUE(CU_GET_PROC_ADDRESS_DEFAULT),
    VALUE(CU_GET_PROC_ADDRESS_LEGACY_STREAM),
    VALUE(CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM),
    VALUE(CU_GET_PROC_ADDRESS_SUCCESS),
    VALUE(CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND),
    VALUE(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT),
    {0},
};
