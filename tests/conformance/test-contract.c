/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The contract of docs/DRIVER.md, item by item: what the product relies on in the vendor's driver and in the
 * emulated one. On a GPU it wants an idle one with 1 GiB free. Here is what surrounds memory that is mapped:
 * devices, contexts, streams and ordinary memory.
 */

#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

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

    support_begin("4G");
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

/* Item 13 */
TEST(child_has_no_driver)
{
    CUmemGenericAllocationHandle handle;
    int status;
    pid_t pid;

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
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

    support_begin("4G");
    before = support_free_bytes();
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
        check_eq(pthread_create(&threads[i], NULL, churn, NULL), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
        check_eq(pthread_join(threads[i], NULL), 0);
    check_eq(support_free_bytes(), before);
    support_finish();
}
