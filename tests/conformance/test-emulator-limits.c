/* SPDX-License-Identifier: Apache-2.0 */

/* How much the emulator bears: devices larger than the machine, and the host's own limits. */

#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cuda/emulator.h"
#include "support.h"

#define MANY 30000

/* Handles that are not exported cost no descriptor, and mapped ones two of the host's mappings at most. */
TEST_LIMIT(thirty_thousand_extents, 60)
{
    CUmemGenericAllocationHandle *handles = calloc(MANY, sizeof(*handles));
    const struct rlimit limit = {20000, 20000};
    struct cuemu_stats stats;
    CUdeviceptr address;

    check(handles);
    support_devices("80G");
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    support_start();
    address = support_reserve(2 * MANY * GRANULE);
    for (unsigned i = 0; i < MANY; i++) {
        handles[i] = support_create(GRANULE);
        support_map(address + 2 * i * GRANULE, GRANULE, handles[i]);
    }
    check_eq(support_free_bytes(), 80 * GIB - MANY * GRANULE);
    check(support_host_bytes() < 64 * MIB);
    for (unsigned i = 0; i < MANY; i++)
        close(support_export(handles[i]));
    check_eq(cuemuGetStats(&stats), 0);
    check_eq(stats.exported, 0);
    for (unsigned i = 0; i < MANY; i++) {
        support_unmap(address + 2 * i * GRANULE, GRANULE);
        ok(cuMemRelease(handles[i]));
    }
    support_free(address, 2 * MANY * GRANULE);
    check_eq(support_free_bytes(), 80 * GIB);
    check_eq(support_count_files("extent."), 0);
    support_finish();
    free(handles);
}

/* Devices larger than the machine: memory that nobody writes to costs nothing, clearing included. */
TEST(device_of_192_gib)
{
    CUmemGenericAllocationHandle handles[8];
    CUdeviceptr address;

    support_begin("192G");
    address = support_reserve(192 * GIB);
    for (unsigned i = 0; i < 8; i++) {
        handles[i] = support_create(24 * GIB);
        support_map(address + i * 24 * GIB, 24 * GIB, handles[i]);
    }
    check_eq(support_free_bytes(), 0);
    ok(cuMemsetD8(address, 0, 192 * GIB));
    check(support_host_bytes() < 16 * MIB);
    ok(cuMemsetD8(address + 192 * GIB - 1, 7, 1));
    check_eq(*(volatile char *)(address + 192 * GIB - 1), 7);
    ok(cuMemsetD8(address + 168 * GIB, 0, 24 * GIB));
    check_eq(support_host_bytes(), 0);
    support_unmap(address, 192 * GIB);
    for (unsigned i = 0; i < 8; i++)
        ok(cuMemRelease(handles[i]));
    support_free(address, 192 * GIB);
    support_finish();
}

/* Item 6: the host's limit on mappings shows as the driver's does, and leaves everything usable. */
TEST_LIMIT(mapping_ceiling, 60)
{
    CUmemAccessDesc access = support_access(0, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
    CUmemGenericAllocationHandle handle;
    CUresult result = CUDA_SUCCESS;
    CUdeviceptr address;
    size_t n = 0, max = 70000;

    support_begin("1G");
    handle = support_create(GRANULE);
    address = support_reserve(2 * max * GRANULE);
    while (n < max) {
        result = cuMemMap(address + 2 * n * GRANULE, GRANULE, 0, handle, 0);
        if (result != CUDA_SUCCESS)
            break;
        result = cuMemSetAccess(address + 2 * n * GRANULE, GRANULE, &access, 1);
        n++;
        if (result != CUDA_SUCCESS)
            break;
    }
    expect(CUDA_ERROR_OUT_OF_MEMORY, result);
    check(n > 30000);
    for (size_t i = 0; i < n; i++)
        support_unmap(address + 2 * i * GRANULE, GRANULE);
    support_map(address, GRANULE, handle);
    support_unmap(address, GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, 2 * max * GRANULE);
    support_finish();
}

/* A process that has no descriptor left: errors, not wrong accounts. */
TEST(no_descriptors_left)
{
    const struct rlimit limit = {64, 64};
    CUmemGenericAllocationHandle handle, other;
    int fds[64], n = 0, fd;

    support_devices("1G");
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    support_start();
    handle = support_create(GRANULE);
    while (n < 64 && (fds[n] = dup(0)) >= 0)
        n++;
    expect(CUDA_ERROR_OPERATING_SYSTEM,
           cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    other = support_create(GRANULE);
    check_eq(support_free_bytes(), GIB - 2 * GRANULE);
    ok(cuMemRelease(other));
    while (n > 0)
        close(fds[--n]);
    ok(cuMemRelease(handle));
    check_eq(support_free_bytes(), GIB);
    support_finish();
}
