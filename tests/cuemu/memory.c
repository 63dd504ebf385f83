/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Ordinary device memory, and reading and writing either kind of it.
 *
 * An allocation is an extent of its own, rounded up to the granule, in a range of its own; what is accounted
 * is therefore exact for large blocks and generous for small ones.
 *
 * Clearing whole pages gives them back to the host instead of writing to them, so that clearing an extent
 * costs no memory, whatever its size.
 */

#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HOST_PAGE 4096
#define PUNCH_FROM (64 * KIB)

static CUresult get_info(size_t *free_bytes, size_t *total_bytes)
{
    unsigned physical = emu.physical[context_current()->device];
    uint64_t total = registry_total(emu.registry, physical);

    if (!free_bytes || !total_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    registry_sweep(emu.registry);
    *free_bytes = u64_sub_floor(total, registry_used(emu.registry, physical));
    *total_bytes = total;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
    return CALL(cuMemGetInfo_v2, NEEDS_CONTEXT, get_info(free_bytes, total_bytes));
}

static CUresult place(struct handle *handle, uint64_t asked, uint64_t *ret_address)
{
    struct mapping *mapping;
    struct range *range;
    uint64_t address;

    if (reserve_host(handle->size, 0, 0, &address) < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    range = address_add(&emu.addresses, address, handle->size);
    mapping = range ? address_map(&emu.addresses, range, address, handle->size, handle) : NULL;
    if (!mapping || map_host(address, handle->size, handle, PROT_READ | PROT_WRITE) < 0) {
        address_unmap(&emu.addresses, mapping);
        address_remove(&emu.addresses, range);
        munmap((void *)address, handle->size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    range->internal = true;
    range->asked = asked;
    emu.addresses.n_internal++;
    memset(mapping->access, CU_MEM_ACCESS_FLAGS_PROT_READWRITE, sizeof(mapping->access));
    handle->refs = 0;
    handle->mappings = 1;
    *ret_address = address;
    return CUDA_SUCCESS;
}

static CUresult allocate(CUdeviceptr *ret_address, size_t size)
{
    const struct extent_props props = {0};
    uint64_t address, rounded;
    struct handle *handle;
    CUresult result;

    if (!ret_address || size == 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!u64_add(size, EMU_GRANULE - 1, &rounded))
        return CUDA_ERROR_OUT_OF_MEMORY;
    rounded -= rounded % EMU_GRANULE;
    result = create_handle(emu.physical[context_current()->device], rounded, &props, true, &handle);
    if (result != CUDA_SUCCESS)
        return result;
    result = place(handle, size, &address);
    if (result != CUDA_SUCCESS) {
        handle->refs = 0;
        unref_handle(handle);
        return result;
    }
    *ret_address = address;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size)
{
    return CALL(cuMemAlloc_v2, NEEDS_CONTEXT, allocate(address, size));
}

static CUresult free_allocation(CUdeviceptr address)
{
    struct range *range = address_find(&emu.addresses, address);
    struct mapping *mapping;
    struct handle *handle;

    if (!range || !range->internal || range->base != address)
        return CUDA_ERROR_INVALID_VALUE;
    mapping = range->granules[0];
    handle = mapping->handle;
    munmap((void *)range->base, range->size);
    address_unmap(&emu.addresses, mapping);
    address_remove(&emu.addresses, range);
    emu.addresses.n_internal--;
    handle->mappings = 0;
    unref_handle(handle);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address)
{
    return CALL(cuMemFree_v2, NEEDS_CONTEXT, free_allocation(address));
}

/* Of virtual memory: the one mapping, not the reservation. */
static CUresult get_address_range(CUdeviceptr *base, size_t *size, CUdeviceptr address)
{
    const struct mapping *mapping = address_mapping(&emu.addresses, address);

    if (!mapping)
        return CUDA_ERROR_NOT_FOUND;
    if (base)
        *base = mapping->base;
    if (size)
        *size = mapping->range->internal ? mapping->range->asked : mapping->size;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr address)
{
    return CALL(cuMemGetAddressRange_v2, NEEDS_CONTEXT, get_address_range(base, size, address));
}

/*
 * May the current device do this there? Memory that does not exist is the caller's mistake and is reported;
 * memory without access is a fault on the device, which ends the context.
 */
static CUresult check_access(CUdeviceptr address, size_t size, unsigned wanted)
{
    CUdevice device = context_current()->device;
    uint64_t end, at = address;

    if (!u64_add(address, size, &end))
        return CUDA_ERROR_INVALID_VALUE;
    while (at < end) {
        const struct mapping *mapping = address_mapping(&emu.addresses, at);

        if (!mapping)
            return CUDA_ERROR_INVALID_VALUE;
        at = mapping->base + mapping->size;
    }
    for (at = address; at < end;) {
        const struct mapping *mapping = address_mapping(&emu.addresses, at);

        if ((mapping->access[device] & wanted) != wanted) {
            context_break(CUDA_ERROR_ILLEGAL_ADDRESS);
            return CUDA_ERROR_ILLEGAL_ADDRESS;
        }
        at = mapping->base + mapping->size;
    }
    return CUDA_SUCCESS;
}

static CUresult check_read(CUdeviceptr address, size_t size)
{
    return check_access(address, size, CU_MEM_ACCESS_FLAGS_PROT_READ);
}

static CUresult check_write(CUdeviceptr address, size_t size)
{
    return check_access(address, size, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
}

static void clear(uint64_t address, uint64_t size)
{
    uint64_t end = address + size, first = (address + HOST_PAGE - 1) & ~(uint64_t)(HOST_PAGE - 1),
             last = end & ~(uint64_t)(HOST_PAGE - 1);

    if (size < PUNCH_FROM || madvise((void *)first, last - first, MADV_REMOVE) < 0) {
        memset((void *)address, 0, size);
        return;
    }
    memset((void *)address, 0, first - address);
    memset((void *)last, 0, end - last);
}

static void fill(uint64_t address, uint32_t value, unsigned width, uint64_t count)
{
    if (value == 0) {
        clear(address, count * width);
    } else if (width == 1) {
        memset((void *)address, (int)value, count);
    } else {
        uint8_t *at = (uint8_t *)address;

        for (uint64_t i = 0; i < count; i++, at += width)
            memcpy(at, &value, width);
    }
}

/* Until when the stream is at work there. */
static void keep_busy(CUdeviceptr address, uint64_t size, CUstream stream)
{
    uint64_t at = address, until_ns = *stream_busy(stream);
    struct mapping *mapping;

    while ((mapping = address_next(&emu.addresses, &at, address + size))) {
        mapping->busy_until_ns = u64_max(mapping->busy_until_ns, until_ns);
        mapping->busy_context = context_current();
    }
}

static CUresult set(CUdeviceptr address, uint32_t value, unsigned width, size_t count, CUstream stream)
{
    CUresult result;
    uint64_t size;

    if (!stream_busy(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    if (address % width || !u64_mul(count, width, &size))
        return CUDA_ERROR_INVALID_VALUE;
    result = check_write(address, size);
    if (result != CUDA_SUCCESS)
        return result;
    fill(address, value, width, count);
    streams_extend(stream, memset_ns(size));
    keep_busy(address, size, stream);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr address, unsigned char value, size_t count)
{
    return CALL(cuMemsetD8_v2, NEEDS_CONTEXT, set(address, value, 1, count, NULL));
}

EXPORT CUresult cuMemsetD16_v2(CUdeviceptr address, unsigned short value, size_t count)
{
    return CALL(cuMemsetD16_v2, NEEDS_CONTEXT, set(address, value, 2, count, NULL));
}

EXPORT CUresult cuMemsetD32_v2(CUdeviceptr address, unsigned int value, size_t count)
{
    return CALL(cuMemsetD32_v2, NEEDS_CONTEXT, set(address, value, 4, count, NULL));
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t count, CUstream stream)
{
    return CALL(cuMemsetD8Async, NEEDS_CONTEXT, set(address, value, 1, count, stream));
}

EXPORT CUresult cuMemsetD16Async(CUdeviceptr address, unsigned short value, size_t count, CUstream stream)
{
    return CALL(cuMemsetD16Async, NEEDS_CONTEXT, set(address, value, 2, count, stream));
}

EXPORT CUresult cuMemsetD32Async(CUdeviceptr address, unsigned int value, size_t count, CUstream stream)
{
    return CALL(cuMemsetD32Async, NEEDS_CONTEXT, set(address, value, 4, count, stream));
}

/* Copies that are not asynchronous return when their stream has come to them. */
static CUresult copied(CUstream stream, bool asynchronous)
{
    if (!asynchronous)
        call_wait_until(*stream_busy(stream));
    return CUDA_SUCCESS;
}

static CUresult copy_to_device(CUdeviceptr to, const void *from, size_t size, CUstream stream,
                               bool asynchronous)
{
    CUresult result;

    if (!stream_busy(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!from && size > 0)
        return CUDA_ERROR_INVALID_VALUE;
    result = check_write(to, size);
    if (result != CUDA_SUCCESS)
        return result;
    if (size > 0)
        memcpy((void *)to, from, size);
    return copied(stream, asynchronous);
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size)
{
    return CALL(cuMemcpyHtoD_v2, NEEDS_CONTEXT, copy_to_device(to, from, size, NULL, false));
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream)
{
    return CALL(cuMemcpyHtoDAsync_v2, NEEDS_CONTEXT, copy_to_device(to, from, size, stream, true));
}

static CUresult copy_to_host(void *to, CUdeviceptr from, size_t size, CUstream stream, bool asynchronous)
{
    CUresult result;

    if (!stream_busy(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    if (!to && size > 0)
        return CUDA_ERROR_INVALID_VALUE;
    result = check_read(from, size);
    if (result != CUDA_SUCCESS)
        return result;
    if (size > 0)
        memcpy(to, (void *)from, size);
    return copied(stream, asynchronous);
}

EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size)
{
    return CALL(cuMemcpyDtoH_v2, NEEDS_CONTEXT, copy_to_host(to, from, size, NULL, false));
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream)
{
    return CALL(cuMemcpyDtoHAsync_v2, NEEDS_CONTEXT, copy_to_host(to, from, size, stream, true));
}

static CUresult copy_on_device(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    CUresult result;

    if (!stream_busy(stream))
        return CUDA_ERROR_INVALID_HANDLE;
    result = check_read(from, size);
    if (result == CUDA_SUCCESS)
        result = check_write(to, size);
    if (result == CUDA_SUCCESS)
        memmove((void *)to, (void *)from, size);
    return result;
}

EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t size)
{
    return CALL(cuMemcpyDtoD_v2, NEEDS_CONTEXT, copy_on_device(to, from, size, NULL));
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    return CALL(cuMemcpyDtoDAsync_v2, NEEDS_CONTEXT, copy_on_device(to, from, size, stream));
}

/* Either side may be the host's: what no range holds is taken to be. */
static CUresult copy_any(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream, bool asynchronous)
{
    bool to_device = address_find(&emu.addresses, to), from_device = address_find(&emu.addresses, from);

    if (to_device && from_device)
        return copy_on_device(to, from, size, stream);
    if (to_device)
        return copy_to_device(to, (const void *)from, size, stream, asynchronous);
    return from_device ? copy_to_host((void *)to, from, size, stream, asynchronous)
                       : CUDA_ERROR_INVALID_VALUE;
}

EXPORT CUresult cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t size)
{
    return CALL(cuMemcpy, NEEDS_CONTEXT, copy_any(to, from, size, NULL, false));
}

EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream)
{
    return CALL(cuMemcpyAsync, NEEDS_CONTEXT, copy_any(to, from, size, stream, true));
}

/* Pinned host memory is host memory: every page here is as good as pinned. */
static CUresult host_alloc(void **ret_pointer, size_t size)
{
    if (!ret_pointer || size == 0)
        return CUDA_ERROR_INVALID_VALUE;
    return posix_memalign(ret_pointer, HOST_PAGE, size) == 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

EXPORT CUresult cuMemAllocHost_v2(void **pointer, size_t size)
{
    return CALL(cuMemAllocHost_v2, NEEDS_CONTEXT, host_alloc(pointer, size));
}

EXPORT CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned int flags)
{
    return CALL(cuMemHostAlloc, NEEDS_CONTEXT,
                flags > 7 ? CUDA_ERROR_INVALID_VALUE : host_alloc(pointer, size));
}

static CUresult host_device_pointer(CUdeviceptr *address, void *pointer, unsigned flags)
{
    if (!address || !pointer || flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    *address = (CUdeviceptr)pointer;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *pointer, unsigned int flags)
{
    return CALL(cuMemHostGetDevicePointer_v2, NEEDS_CONTEXT, host_device_pointer(address, pointer, flags));
}

static CUresult host_free(void *pointer)
{
    if (!pointer)
        return CUDA_ERROR_INVALID_VALUE;
    free(pointer);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemFreeHost(void *pointer)
{
    return CALL(cuMemFreeHost, NEEDS_CONTEXT, host_free(pointer));
}
