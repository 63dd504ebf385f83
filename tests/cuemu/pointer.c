/* SPDX-License-Identifier: Apache-2.0 */

/* What a device address is: cuPointerGetAttribute and its plural. */

#include "internal.h"

static void put(void *value, size_t size, uint64_t number)
{
    __builtin_memcpy(value, &number, size);
}

/* Of an address that is reserved but not mapped, only the range is known. */
static CUresult get_range_attribute(void *value, CUpointer_attribute attribute, const struct range *range,
                                    CUdeviceptr address)
{
    switch ((unsigned)attribute) {
    case CU_POINTER_ATTRIBUTE_MAPPED:
        put(value, 1, range->granules[(address - range->base) / EMU_GRANULE] != NULL);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        put(value, sizeof(CUdeviceptr), range->base);
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        put(value, sizeof(size_t), range->internal ? range->asked : range->size);
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

static uint64_t access_flags(const struct mapping *mapping)
{
    const struct CUctx_st *context = context_current();
    int ordinal = context ? context->device : device_ordinal(mapping->handle->device);

    return ordinal < 0 ? 0 : mapping->access[ordinal];
}

static CUresult get_mapping_attribute(void *value, CUpointer_attribute attribute,
                                      const struct mapping *mapping, CUdeviceptr address)
{
    const struct handle *handle = mapping->handle;

    switch ((unsigned)attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        put(value, sizeof(CUcontext), 0);
        break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        put(value, sizeof(unsigned), CU_MEMORYTYPE_DEVICE);
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        put(value, sizeof(CUdeviceptr), address);
        break;
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        put(value, 1, 0);
        break;
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
        put(value, sizeof(unsigned long long), handle->value);
        break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        put(value, sizeof(int), (uint64_t)device_ordinal(handle->device));
        break;
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
        put(value, sizeof(unsigned), handle->props.handle_types);
        break;
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
        put(value, 1, handle->props.rdma);
        break;
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS:
        put(value, sizeof(unsigned), access_flags(mapping));
        break;
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE:
        put(value, sizeof(void *), 0);
        break;
    case CU_POINTER_ATTRIBUTE_MAPPING_SIZE:
        put(value, sizeof(size_t), mapping->size);
        break;
    case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR:
        put(value, sizeof(CUdeviceptr), mapping->base);
        break;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static CUresult get_attribute(void *value, CUpointer_attribute attribute, CUdeviceptr address)
{
    const struct range *range = address_find(&emu.addresses, address);
    const struct mapping *mapping = address_mapping(&emu.addresses, address);
    CUresult result;

    if (!value || !range)
        return CUDA_ERROR_INVALID_VALUE;
    result = get_range_attribute(value, attribute, range, address);
    return result != CUDA_SUCCESS && mapping ? get_mapping_attribute(value, attribute, mapping, address)
                                             : result;
}

EXPORT CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address)
{
    return CALL(cuPointerGetAttribute, NEEDS_INIT, get_attribute(value, attribute, address));
}

/* What an address has not is given as zero; the call as a whole succeeds. */
static CUresult get_attributes(unsigned count, const CUpointer_attribute *attributes, void **values,
                               CUdeviceptr address)
{
    if (count == 0 || !attributes || !values)
        return CUDA_ERROR_INVALID_VALUE;
    for (unsigned i = 0; i < count; i++)
        if (get_attribute(values[i], attributes[i], address) != CUDA_SUCCESS && values[i])
            put(values[i], 1, 0);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute *attributes, void **values,
                                       CUdeviceptr address)
{
    return CALL(cuPointerGetAttributes, NEEDS_INIT, get_attributes(count, attributes, values, address));
}

/* A descriptor of the DMA-BUF kind needs a kernel driver behind it. */
EXPORT CUresult cuMemGetHandleForAddressRange(void *handle, CUdeviceptr address, size_t size, int type,
                                              unsigned long long flags)
{
    return CALL(cuMemGetHandleForAddressRange, NEEDS_INIT, CUDA_ERROR_NOT_SUPPORTED);
}
