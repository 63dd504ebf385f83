/* SPDX-License-Identifier: Apache-2.0 */

/* The contract of docs/DRIVER.md: addresses, the memory that is mapped there, and who may use it. */

#include <string.h>

#include "support.h"

/* Item 2 */
TEST(granularity)
{
    CUmemAllocationProp prop = support_prop(0, false);
    size_t minimum, recommended;

    support_begin("4G");
    ok(cuMemGetAllocationGranularity(&minimum, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    ok(cuMemGetAllocationGranularity(&recommended, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED));
    check_eq(minimum, GRANULE);
    check(recommended >= minimum && recommended % minimum == 0);
    expect(CUDA_ERROR_INVALID_VALUE,
           cuMemGetAllocationGranularity(NULL, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    expect(CUDA_ERROR_INVALID_VALUE,
           cuMemGetAllocationGranularity(&minimum, NULL, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    support_finish();
}

/* Item 1 */
TEST(reserve)
{
    CUdeviceptr a, b, wish;

    support_begin("4G");
    ok(cuMemAddressReserve(&a, 64 * GRANULE, 0, 0, 0));
    check_eq(a % GRANULE, 0);
    ok(cuMemAddressReserve(&b, 4 * GRANULE, 1 * GIB, 0, 0));
    check_eq(b % GIB, 0);
    check(b + 4 * GRANULE <= a || b >= a + 64 * GRANULE);
    ok(cuMemAddressFree(b, 4 * GRANULE));
    ok(cuMemAddressReserve(&wish, 4 * GRANULE, 0, b, 0));
    ok(cuMemAddressFree(wish, 4 * GRANULE));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&b, 0, 0, 0, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&b, GRANULE + 1, 0, 0, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&b, GRANULE, 3 * GRANULE, 0, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(&b, GRANULE, 0, 0, 1));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressReserve(NULL, GRANULE, 0, 0, 0));
    expect(CUDA_ERROR_OUT_OF_MEMORY, cuMemAddressReserve(&b, 1ull << 60, 0, 0, 0));
    ok(cuMemAddressFree(a, 64 * GRANULE));
    support_finish();
}

/* Item 1 */
TEST(address_free_takes_what_was_reserved)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;

    support_begin("4G");
    address = support_reserve(4 * GRANULE);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressFree(address, 2 * GRANULE));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressFree(address + GRANULE, 3 * GRANULE));
    handle = support_create(GRANULE);
    support_map(address, GRANULE, handle);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressFree(address, 4 * GRANULE));
    support_unmap(address, GRANULE);
    ok(cuMemAddressFree(address, 4 * GRANULE));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAddressFree(address, 4 * GRANULE));
    ok(cuMemRelease(handle));
    support_finish();
}

/* Item 2 */
TEST(create_checks_what_it_is_given)
{
    CUmemAllocationProp prop = support_prop(0, true), bad;
    CUmemGenericAllocationHandle handle;
    int n;

    support_begin("4G");
    ok(cuDeviceGetCount(&n));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, GRANULE / 2, &prop, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, GRANULE + 4096, &prop, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, 0, &prop, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, GRANULE, &prop, 1));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, GRANULE, NULL, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(NULL, GRANULE, &prop, 0));
    bad = prop;
    bad.type = CU_MEM_ALLOCATION_TYPE_INVALID;
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, GRANULE, &bad, 0));
    bad = prop;
    bad.location.id = n;
    expect(CUDA_ERROR_INVALID_DEVICE, cuMemCreate(&handle, GRANULE, &bad, 0));
    bad = prop;
    bad.location.type = CU_MEM_LOCATION_TYPE_HOST;
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, GRANULE, &bad, 0));
    bad = prop;
    bad.location.type = CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT;
    expect(CUDA_ERROR_INVALID_VALUE, cuMemCreate(&handle, GRANULE, &bad, 0));
    expect(CUDA_ERROR_OUT_OF_MEMORY, cuMemCreate(&handle, 1ull << 50, &prop, 0));
    support_finish();
}

/* Items 2, 3 and 16 */
TEST(create_counts_and_release_gives_back)
{
    CUmemGenericAllocationHandle small, large;
    size_t before;

    support_begin("4G");
    before = support_free_bytes();
    small = support_create(GRANULE);
    large = support_create(64 * GRANULE);
    check(small != large);
    check_eq(support_free_bytes(), before - 65 * GRANULE);
    ok(cuMemRelease(large));
    check_eq(support_free_bytes(), before - GRANULE);
    ok(cuMemRelease(small));
    check_eq(support_free_bytes(), before);
    support_finish();
}

/* Item 3 */
TEST(release_while_mapped)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    unsigned char byte;
    size_t before;

    support_begin("4G");
    before = support_free_bytes();
    address = support_reserve(GRANULE);
    handle = support_create(GRANULE);
    support_map(address, GRANULE, handle);
    ok(cuMemRelease(handle));
    check_eq(support_free_bytes(), before - GRANULE);
    ok(cuMemsetD8(address, 9, GRANULE));
    ok(cuMemcpyDtoH(&byte, address + GRANULE - 1, 1));
    check_eq(byte, 9);
    support_unmap(address, GRANULE);
    check_eq(support_free_bytes(), before);
    support_free(address, GRANULE);
    support_finish();
}

/* Item 4 */
TEST(map_checks_what_it_is_given)
{
    CUmemGenericAllocationHandle handle, other;
    CUdeviceptr address;

    support_begin("4G");
    address = support_reserve(4 * GRANULE);
    handle = support_create(2 * GRANULE);
    other = support_create(GRANULE);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemMap(address, 0, 0, handle, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemMap(address, GRANULE / 2, 0, handle, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemMap(address + 4096, 2 * GRANULE, 0, handle, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemMap(address, 4 * GRANULE, 0, handle, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemMap(address, 2 * GRANULE, 0, handle, 1));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemMap(address + 3 * GRANULE, 2 * GRANULE, 0, handle, 0));
    ok(cuMemMap(address, 2 * GRANULE, 0, handle, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemMap(address + GRANULE, GRANULE, 0, other, 0));
    support_unmap(address, 2 * GRANULE);
    ok(cuMemRelease(handle));
    ok(cuMemRelease(other));
    support_free(address, 4 * GRANULE);
    support_finish();
}

/* Item 4: "currently must be zero" */
TEST(map_takes_no_offset)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    CUresult result;

    support_begin("4G");
    address = support_reserve(2 * GRANULE);
    handle = support_create(2 * GRANULE);
    result = cuMemMap(address, GRANULE, GRANULE, handle, 0);
    check(result == CUDA_ERROR_INVALID_VALUE || result == CUDA_ERROR_NOT_SUPPORTED);
    ok(cuMemRelease(handle));
    support_free(address, 2 * GRANULE);
    support_finish();
}

/* Items 4 and 11 */
TEST(one_handle_in_two_places)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    unsigned value;
    size_t before;

    support_begin("4G");
    before = support_free_bytes();
    address = support_reserve(2 * GRANULE);
    handle = support_create(GRANULE);
    support_map(address, GRANULE, handle);
    support_map(address + GRANULE, GRANULE, handle);
    check_eq(support_free_bytes(), before - GRANULE);
    ok(cuMemsetD32(address, 0x12345678, 16));
    ok(cuCtxSynchronize());
    ok(cuMemcpyDtoH(&value, address + GRANULE + 60, sizeof(value)));
    check_eq(value, 0x12345678);
    support_unmap(address, 2 * GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, 2 * GRANULE);
    support_finish();
}

/* Item 5 */
TEST(unmap_takes_whole_mappings)
{
    CUmemGenericAllocationHandle a, b;
    CUdeviceptr address;

    support_begin("4G");
    address = support_reserve(6 * GRANULE);
    a = support_create(2 * GRANULE);
    b = support_create(GRANULE);
    support_map(address, 2 * GRANULE, a);
    support_map(address + 2 * GRANULE, GRANULE, b);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(address, GRANULE));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(address + GRANULE, GRANULE));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(address + 4 * GRANULE, GRANULE));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(address, 0));
    support_unmap(address, 3 * GRANULE);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(address, 3 * GRANULE));
    ok(cuMemRelease(a));
    ok(cuMemRelease(b));
    support_free(address, 6 * GRANULE);
    support_finish();
}

/* Item 5: a failed unmap unmaps nothing */
TEST(unmap_refuses_a_hole)
{
    CUmemGenericAllocationHandle a, b;
    CUdeviceptr address;

    support_begin("4G");
    address = support_reserve(3 * GRANULE);
    a = support_create(GRANULE);
    b = support_create(GRANULE);
    support_map(address, GRANULE, a);
    support_map(address + 2 * GRANULE, GRANULE, b);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemUnmap(address, 3 * GRANULE));
    ok(cuMemsetD8(address, 1, GRANULE));
    ok(cuMemsetD8(address + 2 * GRANULE, 1, GRANULE));
    support_unmap(address, GRANULE);
    support_unmap(address + 2 * GRANULE, GRANULE);
    ok(cuMemRelease(a));
    ok(cuMemRelease(b));
    support_free(address, 3 * GRANULE);
    support_finish();
}

static unsigned long long access_at(CUdeviceptr address)
{
    CUmemLocation location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
    unsigned long long flags = 99;

    ok(cuMemGetAccess(&flags, &location, address));
    return flags;
}

/* Items 5 and 6 */
TEST(access_is_forgotten)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;

    support_begin("4G");
    address = support_reserve(GRANULE);
    handle = support_create(GRANULE);
    ok(cuMemMap(address, GRANULE, 0, handle, 0));
    check_eq(access_at(address), CU_MEM_ACCESS_FLAGS_PROT_NONE);
    support_unmap(address, GRANULE);
    support_map(address, GRANULE, handle);
    check_eq(access_at(address), CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    support_unmap(address, GRANULE);
    ok(cuMemMap(address, GRANULE, 0, handle, 0));
    check_eq(access_at(address), CU_MEM_ACCESS_FLAGS_PROT_NONE);
    support_unmap(address, GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, GRANULE);
    support_finish();
}

/* Item 6 */
TEST(set_access_checks_what_it_is_given)
{
    CUmemAccessDesc access = support_access(0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE), bad;
    CUmemLocation location = access.location;
    CUmemGenericAllocationHandle handle;
    unsigned long long flags;
    CUdeviceptr address;
    int n;

    support_begin("4G");
    ok(cuDeviceGetCount(&n));
    address = support_reserve(4 * GRANULE);
    handle = support_create(2 * GRANULE);
    ok(cuMemMap(address, 2 * GRANULE, 0, handle, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(address, 4 * GRANULE, &access, 1));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(address + 2 * GRANULE, GRANULE, &access, 1));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(address, 2 * GRANULE, NULL, 1));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemSetAccess(address, 2 * GRANULE, &access, 0));
    bad = support_access(n, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    expect(CUDA_ERROR_INVALID_DEVICE, cuMemSetAccess(address, 2 * GRANULE, &bad, 1));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemGetAccess(&flags, &location, address + 2 * GRANULE));
    check_eq(access_at(address), CU_MEM_ACCESS_FLAGS_PROT_NONE);
    ok(cuMemSetAccess(address, 2 * GRANULE, &access, 1));
    check_eq(access_at(address + GRANULE), CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    support_unmap(address, 2 * GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, 4 * GRANULE);
    support_finish();
}

/* Item 6: over several mappings at once, and down again */
TEST(access_over_a_run)
{
    CUmemAccessDesc access = support_access(0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    CUmemGenericAllocationHandle handles[4];
    CUdeviceptr address;

    support_begin("4G");
    address = support_reserve(4 * GRANULE);
    for (unsigned i = 0; i < 4; i++) {
        handles[i] = support_create(GRANULE);
        ok(cuMemMap(address + i * GRANULE, GRANULE, 0, handles[i], 0));
        ok(cuMemRelease(handles[i]));
    }
    ok(cuMemSetAccess(address, 4 * GRANULE, &access, 1));
    ok(cuMemsetD8(address, 5, 4 * GRANULE));
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READ;
    ok(cuMemSetAccess(address + GRANULE, 2 * GRANULE, &access, 1));
    check_eq(access_at(address), CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    check_eq(access_at(address + 2 * GRANULE), CU_MEM_ACCESS_FLAGS_PROT_READ);
    support_unmap(address, 4 * GRANULE);
    support_free(address, 4 * GRANULE);
    support_finish();
}

/* Item 11 */
TEST(fresh_memory_is_zero)
{
    static unsigned char back[GRANULE], zero[GRANULE];
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;

    support_begin("4G");
    address = support_reserve(GRANULE);
    for (unsigned i = 0; i < 8; i++) {
        handle = support_create(GRANULE);
        support_map(address, GRANULE, handle);
        ok(cuMemcpyDtoH(back, address, GRANULE));
        check(memcmp(back, zero, GRANULE) == 0);
        ok(cuMemsetD8(address, 0xff, GRANULE));
        ok(cuCtxSynchronize());
        support_unmap(address, GRANULE);
        ok(cuMemRelease(handle));
    }
    support_free(address, GRANULE);
    support_finish();
}

/* Item 11 */
TEST(mapping_again_shows_what_was_there)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    unsigned value = 0;

    support_begin("4G");
    address = support_reserve(2 * GRANULE);
    handle = support_create(GRANULE);
    support_map(address, GRANULE, handle);
    ok(cuMemsetD32(address + GRANULE - 4, 0xfeedf00d, 1));
    ok(cuCtxSynchronize());
    support_unmap(address, GRANULE);
    support_map(address + GRANULE, GRANULE, handle);
    ok(cuMemcpyDtoH(&value, address + 2 * GRANULE - 4, 4));
    check_eq(value, 0xfeedf00d);
    support_unmap(address + GRANULE, GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, 2 * GRANULE);
    support_finish();
}
