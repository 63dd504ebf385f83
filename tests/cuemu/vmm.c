/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The virtual memory calls. docs/DRIVER.md lists the behaviour that they follow, item by item.
 *
 * Mapping, unmapping and access are this process's affair: they touch its own books and the host's page
 * tables. Only creating, importing and giving up the last reference go to the registry that all processes
 * share.
 *
 * Everything that is mapped or reserved is kept out of forked children, as device memory is.
 */

#include "internal.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HOST_PAGE 4096
#define POISON 0xa5

static bool is_granular(uint64_t value)
{
    return value % EMU_GRANULE == 0;
}

int map_host(uint64_t address, uint64_t size, const struct handle *handle, int protection)
{
    void *at = (void *)address;
    int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS, r;
    off_t offset = 0;

    if (handle) {
        r = registry_memory(emu.registry, handle->device, &fd);
        if (r < 0)
            return r;
        flags = MAP_SHARED;
        offset = (off_t)registry_offset(handle->id, handle->size);
    }
    if (mmap(at, size, protection, flags | MAP_FIXED | MAP_NORESERVE, fd, offset) == MAP_FAILED ||
        madvise(at, size, MADV_DONTFORK) < 0)
        return -errno;
    return 0;
}

/*
 * At the limit on mappings the host refuses to replace one, although that would not need more of them; then
 * it is removed first. In between, another thread's mapping could take the place, so this is not the first
 * choice.
 */
static int vacate_host(uint64_t address, uint64_t size)
{
    if (map_host(address, size, NULL, PROT_NONE) == 0)
        return 0;
    return munmap((void *)address, size) < 0 ? -errno : map_host(address, size, NULL, PROT_NONE);
}

static void *map_anywhere(uint64_t size, uint64_t hint, int flags)
{
    return mmap((void *)hint, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
}

/* Reserves more than is needed and gives back what sticks out on both sides of an aligned piece. */
static int reserve_aligned(uint64_t size, uint64_t alignment, uint64_t *ret_address)
{
    uint64_t all, base, start;
    void *p;

    if (!u64_add(size, alignment, &all))
        return -ENOMEM;
    p = map_anywhere(all, 0, 0);
    if (p == MAP_FAILED)
        return -errno;
    base = (uint64_t)p;
    start = (base + alignment - 1) & ~(alignment - 1);
    if (start > base)
        munmap(p, start - base);
    if (base + all > start + size)
        munmap((void *)(start + size), base + all - start - size);
    *ret_address = start;
    return 0;
}

int reserve_host(uint64_t size, uint64_t alignment, uint64_t hint, uint64_t *ret_address)
{
    uint64_t address = 0;
    int r = 0;

    alignment = u64_max(alignment, EMU_GRANULE);
    if (hint && hint % alignment == 0 && map_anywhere(size, hint, MAP_FIXED_NOREPLACE) == (void *)hint)
        address = hint;
    else
        r = reserve_aligned(size, alignment, &address);
    if (r < 0)
        return r;
    madvise((void *)address, size, MADV_DONTFORK);
    *ret_address = address;
    return 0;
}

static CUresult reserve(CUdeviceptr *ret_address, size_t size, size_t alignment, CUdeviceptr hint,
                        uint64_t flags)
{
    uint64_t address;

    if (!ret_address || flags != 0 || size == 0 || size % HOST_PAGE || hint % HOST_PAGE ||
        (alignment & (alignment - 1)))
        return CUDA_ERROR_INVALID_VALUE;
    call_charge(COST_RESERVE, size);
    if (reserve_host(size, alignment, hint, &address) < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (!address_add(&emu.addresses, address, size)) {
        munmap((void *)address, size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *ret_address = address;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAddressReserve(CUdeviceptr *address, size_t size, size_t alignment, CUdeviceptr hint,
                                    unsigned long long flags)
{
    return CALL(cuMemAddressReserve, NEEDS_INIT, reserve(address, size, alignment, hint, flags));
}

static CUresult address_free(CUdeviceptr address, size_t size)
{
    struct range *range = address_find(&emu.addresses, address);

    if (!range || range->internal || range->base != address || range->size != size || range->n_mappings > 0)
        return CUDA_ERROR_INVALID_VALUE;
    address_remove(&emu.addresses, range);
    munmap((void *)address, size);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAddressFree(CUdeviceptr address, size_t size)
{
    return CALL(cuMemAddressFree, NEEDS_INIT, address_free(address, size));
}

static CUresult check_location(const CUmemLocation *location)
{
    switch (location->type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
        return valid_device(location->id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    case CU_MEM_LOCATION_TYPE_HOST:
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
        return CUDA_ERROR_NOT_SUPPORTED;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

static CUresult check_handle_types(const CUmemAllocationProp *prop)
{
    unsigned types = prop->requestedHandleTypes;

    if (types != 0 && prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
        return CUDA_ERROR_INVALID_VALUE;
    if (types & ~(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_WIN32 |
                  CU_MEM_HANDLE_TYPE_WIN32_KMT | CU_MEM_HANDLE_TYPE_FABRIC))
        return CUDA_ERROR_INVALID_VALUE;
    if (types & (CU_MEM_HANDLE_TYPE_WIN32 | CU_MEM_HANDLE_TYPE_WIN32_KMT))
        return CUDA_ERROR_NOT_SUPPORTED;
    return types & CU_MEM_HANDLE_TYPE_FABRIC ? CUDA_ERROR_NOT_PERMITTED : CUDA_SUCCESS;
}

static CUresult check_prop(const CUmemAllocationProp *prop)
{
    CUresult result;

    if (!prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || prop->win32HandleMetaData ||
        prop->allocFlags.gpuDirectRDMACapable > 1)
        return CUDA_ERROR_INVALID_VALUE;
    result = check_handle_types(prop);
    return result == CUDA_SUCCESS ? check_location(&prop->location) : result;
}

static CUresult get_granularity(size_t *granularity, const CUmemAllocationProp *prop, unsigned option)
{
    CUresult result = check_prop(prop);

    if (result != CUDA_SUCCESS)
        return result;
    if (!granularity || option > CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)
        return CUDA_ERROR_INVALID_VALUE;
    *granularity = EMU_GRANULE;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                              CUmemAllocationGranularity_flags option)
{
    return CALL(cuMemGetAllocationGranularity, NEEDS_INIT, get_granularity(granularity, prop, option));
}

/* Fresh memory is zero as it comes from the file; to poison it costs as much host memory as it is large. */
static int poison(const struct handle *handle)
{
    static uint8_t pattern[1 << 16];
    uint64_t at = registry_offset(handle->id, handle->size), end = at + handle->size;
    int fd, r;

    r = registry_memory(emu.registry, handle->device, &fd);
    if (r < 0)
        return r;
    memset(pattern, POISON, sizeof(pattern));
    for (; at < end; at += sizeof(pattern))
        if (pwrite(fd, pattern, sizeof(pattern), (off_t)at) != sizeof(pattern))
            return -ENOMEM;
    return 0;
}

void unref_handle(struct handle *handle)
{
    if (handle->refs > 0 || handle->mappings > 0)
        return;
    registry_unref(emu.registry, handle->device, handle->id);
    handle_free(&emu.handles, handle);
}

CUresult create_handle(unsigned physical, uint64_t size, const struct extent_props *props, bool internal,
                       struct handle **ret_handle)
{
    struct handle *handle = handle_new(&emu.handles);
    uint32_t id;

    if (!handle)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (registry_create(emu.registry, physical, size, props, &id) != 0) {
        handle_free(&emu.handles, handle);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    handle->device = physical;
    handle->id = id;
    handle->size = size;
    handle->props = *props;
    handle->internal = internal;
    if (poisons() && poison(handle) < 0) {
        handle->refs = 0;
        unref_handle(handle);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *ret_handle = handle;
    return CUDA_SUCCESS;
}

static CUresult create(CUmemGenericAllocationHandle *ret_value, size_t size, const CUmemAllocationProp *prop,
                       uint64_t flags)
{
    CUresult result = check_prop(prop);
    struct extent_props props;
    struct handle *handle;

    if (result != CUDA_SUCCESS)
        return result;
    if (!ret_value || flags != 0 || size == 0 || !is_granular(size))
        return CUDA_ERROR_INVALID_VALUE;
    props = (struct extent_props){prop->requestedHandleTypes, prop->allocFlags.gpuDirectRDMACapable};
    result = create_handle(emu.physical[prop->location.id], size, &props, false, &handle);
    if (result != CUDA_SUCCESS)
        return result;
    call_charge(COST_CREATE, size);
    *ret_value = handle->value;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size,
                            const CUmemAllocationProp *prop, unsigned long long flags)
{
    return CALL(cuMemCreate, NEEDS_INIT, create(handle, size, prop, flags));
}

static struct handle *find_handle(CUmemGenericAllocationHandle value)
{
    struct handle *handle = handle_find(&emu.handles, value);

    return handle && handle->refs > 0 && !handle->internal ? handle : NULL;
}

static CUresult release(CUmemGenericAllocationHandle value)
{
    struct handle *handle = find_handle(value);

    if (!handle)
        undefined_behaviour("cuMemRelease", "not a handle, or released before", value);
    call_charge(COST_RELEASE, handle->size);
    handle->refs--;
    unref_handle(handle);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
    return CALL(cuMemRelease, NEEDS_INIT, release(handle));
}

static CUresult map(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle value,
                    uint64_t flags)
{
    struct handle *handle = find_handle(value);
    struct mapping *mapping;
    struct range *range;

    if (flags != 0 || offset != 0 || size == 0 || !is_granular(address) || !is_granular(size) || !handle ||
        size > handle->size)
        return CUDA_ERROR_INVALID_VALUE;
    range = address_find_unmapped(&emu.addresses, address, size);
    if (!range || range->internal)
        return CUDA_ERROR_INVALID_VALUE;
    mapping = address_map(&emu.addresses, range, address, size, handle);
    if (!mapping)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (map_host(address, size, handle, PROT_NONE) < 0) {
        address_unmap(&emu.addresses, mapping);
        vacate_host(address, size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    handle->mappings++;
    call_charge(COST_MAP, handle->size);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemMap(CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                         unsigned long long flags)
{
    return CALL(cuMemMap, NEEDS_CONTEXT, map(address, size, offset, handle, flags));
}

/* Nothing waits: a stream that is still at work there writes to what is not mapped any more. */
static void check_idle(const struct mapping *mapping)
{
    if (mapping->busy_until_ns > 0 && mapping->busy_context == context_current() &&
        now_ns() < mapping->busy_until_ns)
        context_break(CUDA_ERROR_ILLEGAL_ADDRESS);
}

static CUresult unmap(CUdeviceptr address, size_t size)
{
    struct range *range = address_find_run(&emu.addresses, address, size);
    struct mapping *mapping;
    uint64_t at = address;

    if (!range || range->internal)
        return CUDA_ERROR_INVALID_VALUE;
    if (vacate_host(address, size) < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    while ((mapping = address_next(&emu.addresses, &at, address + size))) {
        struct handle *handle = mapping->handle;

        call_charge(COST_UNMAP, handle->size);
        check_idle(mapping);
        address_unmap(&emu.addresses, mapping);
        handle->mappings--;
        unref_handle(handle);
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemUnmap(CUdeviceptr address, size_t size)
{
    return CALL(cuMemUnmap, NEEDS_INIT, unmap(address, size));
}

static CUresult check_descs(const CUmemAccessDesc *descs, size_t count)
{
    if (!descs || count == 0)
        return CUDA_ERROR_INVALID_VALUE;
    for (size_t i = 0; i < count; i++) {
        CUresult result = check_location(&descs[i].location);

        if (result != CUDA_SUCCESS)
            return result;
        if (descs[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE &&
            descs[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READ &&
            descs[i].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
            return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

/* The host has one protection where each device has its own: the union. */
static int protection_of(const uint8_t access[static EMU_MAX_DEVICES])
{
    unsigned all = 0;

    for (unsigned i = 0; i < EMU_MAX_DEVICES; i++)
        all |= access[i];
    return (all & 2 ? PROT_WRITE : 0) | (all & 1 ? PROT_READ : 0);
}

static void apply_descs(uint8_t access[static EMU_MAX_DEVICES], const CUmemAccessDesc *descs, size_t count)
{
    for (size_t i = 0; i < count; i++)
        access[descs[i].location.id] = (uint8_t)descs[i].flags;
}

/* A failure (the host's limit on mappings) leaves the run with the protections that its books say. */
static int protect_run(CUdeviceptr address, size_t size, const CUmemAccessDesc *descs, size_t count)
{
    uint64_t end = address + size, at = address;
    struct mapping *mapping;
    int r = 0;

    while (r == 0 && (mapping = address_next(&emu.addresses, &at, end))) {
        uint8_t access[EMU_MAX_DEVICES];
        int old = protection_of(mapping->access), new;

        memcpy(access, mapping->access, sizeof(access));
        apply_descs(access, descs, count);
        new = protection_of(access);
        if (new != old && mprotect((void *)mapping->base, mapping->size, new) < 0)
            r = -errno;
    }
    if (r == 0)
        return 0;
    for (at = address; (mapping = address_next(&emu.addresses, &at, end));)
        mprotect((void *)mapping->base, mapping->size, protection_of(mapping->access));
    return r;
}

static CUresult set_access(CUdeviceptr address, size_t size, const CUmemAccessDesc *descs, size_t count)
{
    CUresult result = check_descs(descs, count);
    struct mapping *mapping;
    struct range *range;
    uint64_t at = address;

    if (result != CUDA_SUCCESS)
        return result;
    range = address_find_run(&emu.addresses, address, size);
    if (!range || range->internal)
        return CUDA_ERROR_INVALID_VALUE;
    if (protect_run(address, size, descs, count) < 0)
        return CUDA_ERROR_OUT_OF_MEMORY;
    while ((mapping = address_next(&emu.addresses, &at, address + size))) {
        apply_descs(mapping->access, descs, count);
        call_charge(COST_ACCESS, mapping->handle->size);
    }
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemSetAccess(CUdeviceptr address, size_t size, const CUmemAccessDesc *descs, size_t count)
{
    return CALL(cuMemSetAccess, NEEDS_CONTEXT, set_access(address, size, descs, count));
}

static CUresult get_access(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address)
{
    const struct mapping *mapping = address_mapping(&emu.addresses, address);
    CUresult result;

    if (!flags || !location)
        return CUDA_ERROR_INVALID_VALUE;
    result = check_location(location);
    if (result != CUDA_SUCCESS)
        return result;
    if (!mapping || mapping->range->internal)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = mapping->access[location->id];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address)
{
    return CALL(cuMemGetAccess, NEEDS_INIT, get_access(flags, location, address));
}

static CUresult get_props(CUmemAllocationProp *prop, CUmemGenericAllocationHandle value)
{
    const struct handle *handle = find_handle(value);

    if (!prop || !handle)
        return CUDA_ERROR_INVALID_VALUE;
    *prop = (CUmemAllocationProp){
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = handle->props.handle_types,
        .location = {CU_MEM_LOCATION_TYPE_DEVICE, device_ordinal(handle->device)},
        .allocFlags.gpuDirectRDMACapable = (unsigned char)handle->props.rdma,
    };
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop,
                                                       CUmemGenericAllocationHandle handle)
{
    return CALL(cuMemGetAllocationPropertiesFromHandle, NEEDS_INIT, get_props(prop, handle));
}

static CUresult retain(CUmemGenericAllocationHandle *ret_value, void *address)
{
    struct mapping *mapping = address_mapping(&emu.addresses, (uint64_t)address);

    if (!ret_value || !mapping || mapping->range->internal)
        return CUDA_ERROR_INVALID_VALUE;
    mapping->handle->refs++;
    *ret_value = mapping->handle->value;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
    return CALL(cuMemRetainAllocationHandle, NEEDS_INIT, retain(handle, address));
}

static CUresult export_handle(void *shareable, CUmemGenericAllocationHandle value, unsigned type,
                              uint64_t flags)
{
    const struct handle *handle = find_handle(value);
    int fd;

    if (!shareable || flags != 0 || !handle || type == 0 || (type & (type - 1)) ||
        !(handle->props.handle_types & type))
        return CUDA_ERROR_INVALID_VALUE;
    if (registry_export(emu.registry, handle->device, handle->id, &fd) < 0)
        return CUDA_ERROR_OPERATING_SYSTEM;
    call_charge(COST_EXPORT, handle->size);
    memcpy(shareable, &fd, sizeof(fd));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
                                             CUmemAllocationHandleType type, unsigned long long flags)
{
    return CALL(cuMemExportToShareableHandle, NEEDS_INIT, export_handle(shareable, handle, type, flags));
}

/* A device that this process may not see: what a container with other GPUs gets. */
static CUresult reject_invisible(const struct extent_ref *ref)
{
    if (device_ordinal(ref->device) >= 0)
        return CUDA_SUCCESS;
    registry_unref(emu.registry, ref->device, ref->id);
    return CUDA_ERROR_INVALID_DEVICE;
}

static CUresult import_fd(CUmemGenericAllocationHandle *ret_value, int fd)
{
    struct extent_ref ref;
    struct handle *handle;
    CUresult result;

    if (registry_import(emu.registry, fd, &ref) != 0)
        return CUDA_ERROR_INVALID_VALUE;
    result = reject_invisible(&ref);
    if (result != CUDA_SUCCESS)
        return result;
    handle = handle_new(&emu.handles);
    if (!handle) {
        registry_unref(emu.registry, ref.device, ref.id);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    handle->device = ref.device;
    handle->id = ref.id;
    handle->size = ref.size;
    handle->props = ref.props;
    call_charge(COST_IMPORT, ref.size);
    *ret_value = handle->value;
    return CUDA_SUCCESS;
}

static CUresult import(CUmemGenericAllocationHandle *ret_value, void *shareable,
                       CUmemAllocationHandleType type)
{
    if (!ret_value)
        return CUDA_ERROR_INVALID_VALUE;
    switch ((unsigned)type) {
    case CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR:
        return import_fd(ret_value, (int)(intptr_t)shareable);
    case CU_MEM_HANDLE_TYPE_WIN32:
    case CU_MEM_HANDLE_TYPE_WIN32_KMT:
        return CUDA_ERROR_NOT_SUPPORTED;
    case CU_MEM_HANDLE_TYPE_FABRIC:
        return CUDA_ERROR_NOT_PERMITTED;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
                                               CUmemAllocationHandleType type)
{
    return CALL(cuMemImportFromShareableHandle, NEEDS_INIT, import(handle, shareable, type));
}
