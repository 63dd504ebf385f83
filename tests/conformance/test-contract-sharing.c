/* SPDX-License-Identifier: Apache-2.0 */

/* The contract of docs/DRIVER.md: descriptors of memory, in the same process and in others. */

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "support.h"

/* Item 7 */
TEST(export_checks_what_it_is_given)
{
    CUmemAllocationProp prop = support_prop(0, false);
    CUmemGenericAllocationHandle handle, plain;
    int fd = -1;

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
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
