/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The contract of docs/DRIVER.md, item by item: what the product relies on in the vendor's driver and in the
 * emulated one. On a GPU it wants an idle one with 1 GiB free.
 */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

static void start(void)
{
    support_devices("4G");
    support_start();
}

/* Item 15 */
TEST(nothing_works_before_init)
{
    CUmemAllocationProp prop = support_prop(0, false);
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    CUcontext context;
    int n;

    support_devices(NULL);
    expect(CUDA_ERROR_NOT_INITIALIZED, cuDeviceGetCount(&n));
    expect(CUDA_ERROR_NOT_INITIALIZED, cuDevicePrimaryCtxRetain(&context, 0));
    expect(CUDA_ERROR_NOT_INITIALIZED, cuMemCreate(&handle, GRANULE, &prop, 0));
    expect(CUDA_ERROR_NOT_INITIALIZED, cuMemAddressReserve(&address, GRANULE, 0, 0, 0));
    expect(CUDA_ERROR_NOT_INITIALIZED, cuMemAlloc(&address, 1));
    ok(cuDriverGetVersion(&n));
    check(n >= 12000);
    expect(CUDA_ERROR_INVALID_VALUE, cuInit(1));
    ok(cuInit(0));
    ok(cuInit(0));
    ok(cuDeviceGetCount(&n));
    check(n >= 1);
}

/* Item 15 */
TEST(errors_have_names)
{
    const char *text;

    support_devices(NULL);
    ok(cuGetErrorName(CUDA_ERROR_OUT_OF_MEMORY, &text));
    check_str(text, "CUDA_ERROR_OUT_OF_MEMORY");
    ok(cuGetErrorString(CUDA_ERROR_OUT_OF_MEMORY, &text));
    check_str(text, "out of memory");
    expect(CUDA_ERROR_INVALID_VALUE, cuGetErrorName((CUresult)123456, &text));
}

/* Item 10 */
TEST(devices_are_described)
{
    char name[128], id[32];
    CUdevice device, same;
    size_t total;
    CUuuid uuid;
    int n, value;

    start();
    ok(cuDeviceGetCount(&n));
    expect(CUDA_ERROR_INVALID_DEVICE, cuDeviceGet(&device, n));
    expect(CUDA_ERROR_INVALID_DEVICE, cuDeviceGet(&device, -1));
    ok(cuDeviceGet(&device, 0));
    ok(cuDeviceGetName(name, sizeof(name), device));
    check(*name);
    ok(cuDeviceTotalMem(&total, device));
    check(total >= GIB);
    ok(cuDeviceGetUuid(&uuid, device));
    ok(cuDeviceGetPCIBusId(id, sizeof(id), device));
    ok(cuDeviceGetByPCIBusId(&same, id));
    check_eq(same, device);
    ok(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device));
    check_eq(value, 1);
    ok(cuDeviceGetAttribute(&value, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device));
    check_eq(value, 1);
    expect(CUDA_ERROR_INVALID_DEVICE, cuDeviceTotalMem(&total, n));
    expect(CUDA_ERROR_INVALID_VALUE, cuDeviceTotalMem(NULL, device));
    support_finish();
}

/* Item 2 */
TEST(granularity)
{
    CUmemAllocationProp prop = support_prop(0, false);
    size_t minimum, recommended;

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

    start();
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

/* Item 7 */
TEST(export_checks_what_it_is_given)
{
    CUmemAllocationProp prop = support_prop(0, false);
    CUmemGenericAllocationHandle handle, plain;
    int fd = -1;

    start();
    handle = support_create(GRANULE);
    ok(cuMemCreate(&plain, GRANULE, &prop, 0));
    expect(CUDA_ERROR_INVALID_VALUE,
           cuMemExportToShareableHandle(&fd, plain, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_NONE, 0));
    expect(CUDA_ERROR_INVALID_VALUE,
           cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 1));
    check_eq(fd, -1);
    ok(cuMemRelease(plain));
    ok(cuMemRelease(handle));
    support_finish();
}

/* Item 7: a new descriptor each time, each of which holds the memory */
TEST(descriptors_hold)
{
    CUmemGenericAllocationHandle handle;
    int first, second, copy;
    size_t before;

    start();
    before = support_free_bytes();
    handle = support_create(GRANULE);
    first = support_export(handle);
    second = support_export(handle);
    check(first != second);
    check(fcntl(first, F_GETFD) & FD_CLOEXEC);
    copy = dup(first);
    ok(cuMemRelease(handle));
    close(first);
    check_eq(support_free_bytes(), before - GRANULE);
    close(second);
    check_eq(support_free_bytes(), before - GRANULE);
    close(copy);
    check_eq(support_free_bytes(), before);
    support_finish();
}

static CUmemGenericAllocationHandle import_and_close(int fd)
{
    CUmemGenericAllocationHandle handle;

    ok(cuMemImportFromShareableHandle(&handle, (void *)(uintptr_t)fd,
                                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    return handle;
}

/* Item 7: the importer's mapping outlives descriptor and source */
TEST(import_in_the_same_process)
{
    CUmemGenericAllocationHandle handle, imported;
    CUdeviceptr address;
    unsigned char byte;
    size_t before;
    int fd;

    start();
    before = support_free_bytes();
    address = support_reserve(2 * GRANULE);
    handle = support_create(GRANULE);
    support_map(address, GRANULE, handle);
    ok(cuMemsetD8(address, 77, GRANULE));
    fd = support_export(handle);
    imported = import_and_close(dup(fd));
    close(fd);
    support_unmap(address, GRANULE);
    ok(cuMemRelease(handle));
    support_map(address + GRANULE, GRANULE, imported);
    ok(cuMemRelease(imported));
    ok(cuMemcpyDtoH(&byte, address + GRANULE, 1));
    check_eq(byte, 77);
    support_unmap(address + GRANULE, GRANULE);
    support_free(address, 2 * GRANULE);
    check_eq(support_free_bytes(), before);
    support_finish();
}

/* Item 7 */
TEST(import_refuses_what_is_foreign)
{
    CUmemGenericAllocationHandle handle;
    int fds[2], file;

    start();
    check_eq(pipe(fds), 0);
    file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    expect(CUDA_ERROR_INVALID_VALUE,
           cuMemImportFromShareableHandle(&handle, (void *)(uintptr_t)fds[0],
                                          CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    expect(CUDA_ERROR_INVALID_VALUE,
           cuMemImportFromShareableHandle(&handle, (void *)(uintptr_t)file,
                                          CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    expect(CUDA_ERROR_INVALID_VALUE,
           cuMemImportFromShareableHandle(&handle, (void *)(uintptr_t)9999,
                                          CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fds[0]);
    close(fds[1]);
    close(file);
    support_finish();
}

struct exchange {
    int sockets[2];
    int done[2];
};

/* Maps what it is sent, changes it, and waits until it may leave. */
static void borrow(void *argument)
{
    const struct exchange *exchange = argument;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    unsigned char byte;

    close(exchange->done[1]);
    support_start();
    handle = import_and_close(support_receive(exchange->sockets[1]));
    address = support_reserve(2 * GRANULE);
    support_map(address, 2 * GRANULE, handle);
    ok(cuMemRelease(handle));
    ok(cuMemcpyDtoH(&byte, address + 5, 1));
    check_eq(byte, 42);
    ok(cuMemsetD8(address + GRANULE, 43, 1));
    ok(cuCtxSynchronize());
    check_eq(send(exchange->sockets[1], "x", 1, 0), 1);
    check_eq(read(exchange->done[0], &byte, 1), 0);
    support_unmap(address, 2 * GRANULE);
    support_free(address, 2 * GRANULE);
    support_finish();
}

/* Items 3, 7 and 12: lent to another process, it lives as long as that uses it */
TEST(share_between_processes)
{
    struct exchange exchange;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    size_t before;
    pid_t pid;
    char byte;
    int fd;

    support_devices("4G");
    check_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, exchange.sockets), 0);
    check_eq(pipe(exchange.done), 0);
    pid = support_spawn(borrow, &exchange);
    close(exchange.done[0]);
    support_start();
    before = support_free_bytes();
    address = support_reserve(2 * GRANULE);
    handle = support_create(2 * GRANULE);
    support_map(address, 2 * GRANULE, handle);
    ok(cuMemsetD8(address, 42, 2 * GRANULE));
    ok(cuCtxSynchronize());
    fd = support_export(handle);
    support_send(exchange.sockets[0], fd);
    close(fd);
    check_eq(recv(exchange.sockets[0], &byte, 1, 0), 1);
    ok(cuMemcpyDtoH(&byte, address + GRANULE, 1));
    check_eq(byte, 43);
    support_unmap(address, 2 * GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, 2 * GRANULE);
    check(support_free_bytes() < before);
    close(exchange.done[1]);
    support_wait(pid);
    check(support_free_bytes() >= before);
    close(exchange.sockets[0]);
    close(exchange.sockets[1]);
    support_finish();
}

/* Item 8 */
TEST(retain_from_an_address)
{
    CUmemGenericAllocationHandle handle, same;
    CUdeviceptr address;
    size_t before;

    start();
    before = support_free_bytes();
    address = support_reserve(4 * GRANULE);
    handle = support_create(2 * GRANULE);
    support_map(address, 2 * GRANULE, handle);
    ok(cuMemRelease(handle));
    ok(cuMemRetainAllocationHandle(&same, (void *)(address + GRANULE + 17)));
    check(same == handle);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemRetainAllocationHandle(&same, (void *)(address + 3 * GRANULE)));
    support_unmap(address, 2 * GRANULE);
    check_eq(support_free_bytes(), before - 2 * GRANULE);
    support_map(address + 2 * GRANULE, 2 * GRANULE, handle);
    support_unmap(address + 2 * GRANULE, 2 * GRANULE);
    ok(cuMemRelease(handle));
    check_eq(support_free_bytes(), before);
    support_free(address, 4 * GRANULE);
    support_finish();
}

/* Item 8 */
TEST(properties_travel)
{
    CUmemGenericAllocationHandle handle, imported;
    CUmemAllocationProp prop = {0};

    start();
    handle = support_create(GRANULE);
    imported = import_and_close(support_export(handle));
    ok(cuMemGetAllocationPropertiesFromHandle(&prop, imported));
    check_eq(prop.type, CU_MEM_ALLOCATION_TYPE_PINNED);
    check_eq(prop.requestedHandleTypes, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    check_eq(prop.location.type, CU_MEM_LOCATION_TYPE_DEVICE);
    check_eq(prop.location.id, 0);
    ok(cuMemRelease(imported));
    ok(cuMemRelease(handle));
    support_finish();
}

/* Item 9 */
TEST(handles_need_no_context)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    size_t a, b;

    support_devices("4G");
    ok(cuInit(0));
    handle = support_create(GRANULE);
    ok(cuMemRelease(import_and_close(support_export(handle))));
    ok(cuMemAddressReserve(&address, GRANULE, 0, 0, 0));
    ok(cuMemAddressFree(address, GRANULE));
    expect(CUDA_ERROR_INVALID_CONTEXT, cuMemGetInfo(&a, &b));
    expect(CUDA_ERROR_INVALID_CONTEXT, cuMemAlloc(&address, GRANULE));
    ok(cuMemRelease(handle));
}

/* Item 11 */
TEST(fresh_memory_is_zero)
{
    static unsigned char back[GRANULE], zero[GRANULE];
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;

    start();
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

    start();
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

/* Item 13 */
TEST(child_has_no_driver)
{
    CUmemGenericAllocationHandle handle;
    int status;
    pid_t pid;

    start();
    handle = support_create(GRANULE);
    pid = fork();
    if (pid == 0) {
        size_t a, b;
        int n;

        _exit(cuInit(0) != CUDA_SUCCESS && cuMemGetInfo(&a, &b) != CUDA_SUCCESS &&
                      cuDeviceGetCount(&n) != CUDA_SUCCESS
                  ? 0
                  : 1);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check_eq(status, 0);
    ok(cuMemRelease(handle));
    support_finish();
}

/* Item 16 */
TEST(ordinary_memory)
{
    CUdeviceptr address, base;
    size_t before, size;

    start();
    before = support_free_bytes();
    ok(cuMemAlloc(&address, 100 * GRANULE));
    check(support_free_bytes() <= before - 100 * GRANULE);
    ok(cuMemGetAddressRange(&base, &size, address + 12345));
    check(base == address);
    check_eq(size, 100 * GRANULE);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemFree(address + 256));
    ok(cuMemFree(address));
    check_eq(support_free_bytes(), before);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAlloc(&address, 0));
    expect(CUDA_ERROR_INVALID_VALUE, cuMemAlloc(NULL, 1));
    expect(CUDA_ERROR_OUT_OF_MEMORY, cuMemAlloc(&address, (size_t)1 << 50));
    support_finish();
}

/* Item 17 */
TEST(set_and_copy)
{
    unsigned char host[4096];
    CUdeviceptr a, b;
    unsigned words[4];

    start();
    ok(cuMemAlloc(&a, 4 * MIB));
    ok(cuMemAlloc(&b, 4 * MIB));
    memset(host, 3, sizeof(host));
    ok(cuMemcpyHtoD(a + 100, host, sizeof(host)));
    ok(cuMemsetD8(a + 200, 4, 10));
    ok(cuMemcpyDtoD(b, a + 100, sizeof(host)));
    memset(host, 0, sizeof(host));
    ok(cuMemcpyDtoH(host, b, sizeof(host)));
    for (unsigned i = 0; i < sizeof(host); i++)
        check_eq(host[i], i >= 100 && i < 110 ? 4 : 3);
    ok(cuMemsetD32(b, 0xcafe, 4));
    ok(cuMemcpyDtoH(words, b, sizeof(words)));
    check_eq(words[3], 0xcafe);
    expect(CUDA_ERROR_INVALID_VALUE, cuMemsetD32(b + 2, 1, 1));
    /* Clearing has its own way for whole pages; its edges are what can go wrong. */
    ok(cuMemsetD8(a, 9, 2 * MIB));
    ok(cuMemsetD8(a + 100, 0, MIB));
    ok(cuMemcpyDtoH(host, a, sizeof(host)));
    check(host[99] == 9 && host[100] == 0 && host[4095] == 0);
    ok(cuMemcpyDtoH(host, a + MIB, sizeof(host)));
    check(host[99] == 0 && host[100] == 9);
    ok(cuMemFree(a));
    ok(cuMemFree(b));
    support_finish();
}

/* Item 18 */
TEST(streams_keep_order)
{
    CUstream first, second;
    unsigned words[64];
    CUdeviceptr address;
    CUevent event;

    start();
    ok(cuMemAlloc(&address, sizeof(words)));
    ok(cuStreamCreate(&first, CU_STREAM_NON_BLOCKING));
    ok(cuStreamCreate(&second, CU_STREAM_NON_BLOCKING));
    ok(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    ok(cuEventQuery(event));
    for (unsigned i = 0; i < 100; i++)
        ok(cuMemsetD32Async(address, i, 64, first));
    ok(cuEventRecord(event, first));
    ok(cuStreamWaitEvent(second, event, 0));
    ok(cuMemsetD32Async(address + 128, 1000, 32, second));
    ok(cuMemcpyDtoHAsync(words, address, sizeof(words), second));
    ok(cuStreamSynchronize(second));
    ok(cuEventSynchronize(event));
    ok(cuEventQuery(event));
    ok(cuStreamQuery(second));
    check_eq(words[0], 99);
    check_eq(words[31], 99);
    check_eq(words[32], 1000);
    ok(cuEventDestroy(event));
    ok(cuStreamDestroy(first));
    ok(cuStreamDestroy(second));
    ok(cuMemFree(address));
    support_finish();
}

static void *use_other_thread(void *context)
{
    CUcontext current = context;
    CUdevice device;

    ok(cuCtxGetCurrent(&current));
    check(current == NULL);
    expect(CUDA_ERROR_INVALID_CONTEXT, cuCtxGetDevice(&device));
    ok(cuCtxSetCurrent(context));
    ok(cuCtxGetDevice(&device));
    check_eq(device, 0);
    return NULL;
}

/* Item 19 */
TEST(contexts)
{
    CUcontext first, second, current;
    unsigned flags;
    pthread_t thread;
    int active;

    support_devices(NULL);
    ok(cuInit(0));
    ok(cuDevicePrimaryCtxGetState(0, &flags, &active));
    check_eq(active, 0);
    ok(cuDevicePrimaryCtxRetain(&first, 0));
    ok(cuDevicePrimaryCtxRetain(&second, 0));
    check(first == second);
    ok(cuCtxPushCurrent(first));
    ok(cuCtxGetCurrent(&current));
    check(current == first);
    check_eq(pthread_create(&thread, NULL, use_other_thread, first), 0);
    pthread_join(thread, NULL);
    ok(cuCtxPopCurrent(&current));
    check(current == first);
    ok(cuCtxGetCurrent(&current));
    check(current == NULL);
    ok(cuDevicePrimaryCtxRelease(0));
    ok(cuDevicePrimaryCtxGetState(0, &flags, &active));
    check_eq(active, 1);
    ok(cuDevicePrimaryCtxRelease(0));
    ok(cuDevicePrimaryCtxGetState(0, &flags, &active));
    check_eq(active, 0);
    expect(CUDA_ERROR_INVALID_CONTEXT, cuDevicePrimaryCtxRelease(0));
}

/* Item 20 */
TEST(entry_points_by_name)
{
    CUresult (*alloc)(CUdeviceptr *, size_t);
    CUdriverProcAddressQueryResult status;
    CUdeviceptr address;
    void *function;

    start();
    ok(cuGetProcAddress("cuMemAlloc", &function, 12000, CU_GET_PROC_ADDRESS_DEFAULT, &status));
    check_eq(status, CU_GET_PROC_ADDRESS_SUCCESS);
    memcpy(&alloc, &function, sizeof(alloc));
    ok(alloc(&address, MIB));
    ok(cuMemFree(address));
    check(cuGetProcAddress("cuNoSuchThing", &function, 12000, CU_GET_PROC_ADDRESS_DEFAULT, &status) !=
              CUDA_SUCCESS ||
          status == CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
    support_finish();
}

/* Item 21 */
TEST(pointers_are_described)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address, start_address;
    unsigned type;
    int ordinal;

    start();
    address = support_reserve(4 * GRANULE);
    handle = support_create(2 * GRANULE);
    support_map(address + GRANULE, 2 * GRANULE, handle);
    ok(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address + GRANULE + 9));
    check_eq(type, CU_MEMORYTYPE_DEVICE);
    ok(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address + GRANULE));
    check_eq(ordinal, 0);
    ok(cuPointerGetAttribute(&start_address, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, address + GRANULE));
    check(start_address == address || start_address == address + GRANULE);
    expect(CUDA_ERROR_INVALID_VALUE, cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, 4096));
    support_unmap(address + GRANULE, 2 * GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, 4 * GRANULE);
    support_finish();
}

static void *churn(void *argument)
{
    CUcontext context;
    CUdeviceptr address;

    ok(cuDevicePrimaryCtxRetain(&context, 0));
    ok(cuCtxSetCurrent(context));
    address = support_reserve(8 * GRANULE);
    for (unsigned i = 0; i < 100; i++) {
        CUmemGenericAllocationHandle handle = support_create(GRANULE);

        support_map(address + i % 8 * GRANULE, GRANULE, handle);
        ok(cuMemRelease(handle));
        ok(cuMemsetD32(address + i % 8 * GRANULE, i, 4));
        support_unmap(address + i % 8 * GRANULE, GRANULE);
    }
    support_free(address, 8 * GRANULE);
    ok(cuCtxSetCurrent(NULL));
    ok(cuDevicePrimaryCtxRelease(0));
    return NULL;
}

/* Any thread may call. */
TEST(threads)
{
    pthread_t threads[4];
    size_t before;

    start();
    before = support_free_bytes();
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
        check_eq(pthread_create(&threads[i], NULL, churn, NULL), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
        check_eq(pthread_join(threads[i], NULL), 0);
    check_eq(support_free_bytes(), before);
    support_finish();
}
