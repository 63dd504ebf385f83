/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The emulator's settings, the errors it injects, what it says about itself, and its management library;
 * tests/cuemu/README.md describes them.
 */

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cuda/driver.h"
#include "cuda/emulator.h"
#include "support.h"

static uint64_t now_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

TEST(several_devices)
{
    CUmemAccessDesc both[2] = {support_access(0, CU_MEM_ACCESS_FLAGS_PROT_READ),
                               support_access(1, CU_MEM_ACCESS_FLAGS_PROT_READWRITE)};
    CUmemAllocationProp prop = support_prop(1, false);
    CUmemGenericAllocationHandle handle;
    unsigned long long flags;
    CUdeviceptr address;
    CUcontext second;
    CUuuid a, b;
    size_t total, free_bytes;
    int n;

    support_begin("1G,2G");
    ok(cuDeviceGetCount(&n));
    check_eq(n, 2);
    ok(cuDeviceTotalMem(&total, 1));
    check_eq(total, 2 * GIB);
    ok(cuDeviceGetUuid(&a, 0));
    ok(cuDeviceGetUuid(&b, 1));
    check(memcmp(&a, &b, sizeof(a)) != 0);
    ok(cuMemCreate(&handle, 4 * GRANULE, &prop, 0));
    check_eq(support_free_bytes(), GIB);
    address = support_reserve(4 * GRANULE);
    ok(cuMemMap(address, 4 * GRANULE, 0, handle, 0));
    ok(cuMemSetAccess(address, 4 * GRANULE, both, 2));
    ok(cuMemGetAccess(&flags, &both[0].location, address));
    check_eq(flags, CU_MEM_ACCESS_FLAGS_PROT_READ);
    ok(cuDevicePrimaryCtxRetain(&second, 1));
    ok(cuCtxPushCurrent(second));
    ok(cuMemGetInfo(&free_bytes, &total));
    check_eq(free_bytes, 2 * GIB - 4 * GRANULE);
    ok(cuMemsetD8(address, 1, 4 * GRANULE));
    ok(cuCtxPopCurrent(&second));
    ok(cuDevicePrimaryCtxRelease(1));
    support_unmap(address, 4 * GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, 4 * GRANULE);
    support_finish();
}

static void send_from_first(void *argument)
{
    int fd;

    support_start();
    fd = support_export(support_create(GRANULE));
    support_send(*(int *)argument, fd);
    raise(SIGKILL);
}

/* Items 7 and 10 */
TEST(visible_devices)
{
    CUmemGenericAllocationHandle handle;
    int pair[2], status, n, fd;
    size_t total;
    pid_t pid;

    support_devices("1G,2G");
    check_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    pid = support_spawn(send_from_first, &pair[1]);
    check_eq(waitpid(pid, &status, 0), pid);
    setenv("CUDA_VISIBLE_DEVICES", "1", 1);
    support_start();
    ok(cuDeviceGetCount(&n));
    check_eq(n, 1);
    ok(cuDeviceTotalMem(&total, 0));
    check_eq(total, 2 * GIB);
    fd = support_receive(pair[0]);
    expect(CUDA_ERROR_INVALID_DEVICE,
           cuMemImportFromShareableHandle(&handle, (void *)(uintptr_t)fd,
                                          CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    close(pair[0]);
    close(pair[1]);
    support_finish();
}

TEST(no_visible_device)
{
    support_devices("1G");
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    expect(CUDA_ERROR_NO_DEVICE, cuInit(0));
}

static void hold(void *argument)
{
    const int *fds = argument;
    char c;

    close(fds[3]);
    support_start();
    check_eq(write(fds[1], "x", 1), 1);
    check_eq(read(fds[2], &c, 1), 0);
    support_finish();
}

/* Two processes that want different devices in one folder: the second is told so. */
TEST(other_sizes)
{
    char error[CUDA_DRIVER_ERROR_MAX] = "";
    int fds[4];
    pid_t pid;
    char c;

    support_devices("1G");
    check_eq(pipe(fds), 0);
    check_eq(pipe(fds + 2), 0);
    pid = support_spawn(hold, fds);
    check_eq(read(fds[0], &c, 1), 1);
    check_eq(cuemuConfigure(NULL, "2G", error, sizeof(error)), -EBUSY);
    check(strstr(error, "1024 MiB"));
    setenv("KVCACHED_EMULATE", "1G,1G", 1);
    expect(CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, cuInit(0));
    unsetenv("KVCACHED_EMULATE");
    check_eq(cuemuConfigure(NULL, NULL, error, sizeof(error)), 0);
    support_start();
    check_eq(support_free_bytes(), GIB);
    check_eq(cuemuConfigure(NULL, "7G", error, sizeof(error)), -EBUSY);
    for (int i = 3; i >= 0; i--)
        close(fds[i]);
    support_wait(pid);
    support_finish();
}

/* A folder that a library of another format uses is left alone, and the reason said. */
TEST(other_format)
{
    char error[CUDA_DRIVER_ERROR_MAX] = "", path[128];
    int fds[4], fd;
    unsigned format;
    pid_t pid;
    char c;

    support_devices("1G");
    check_eq(pipe(fds), 0);
    check_eq(pipe(fds + 2), 0);
    pid = support_spawn(hold, fds);
    check_eq(read(fds[0], &c, 1), 1);
    snprintf(path, sizeof(path), "%s/registry", test_folder());
    fd = open(path, O_RDWR | O_CLOEXEC);
    check_eq(pread(fd, &format, sizeof(format), 8), sizeof(format));
    format += 41;
    check_eq(pwrite(fd, &format, sizeof(format), 8), sizeof(format));
    check_eq(cuemuConfigure(NULL, NULL, error, sizeof(error)), -EPROTO);
    check(strstr(error, "format"));
    format -= 41;
    check_eq(pwrite(fd, &format, sizeof(format), 8), sizeof(format));
    close(fd);
    for (int i = 3; i >= 0; i--)
        close(fds[i]);
    support_wait(pid);
}

static void expect_bad_setting(const char *name, const char *value)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        setenv(name, value, 1);
        _exit(cuInit(0) == CUDA_ERROR_INVALID_VALUE ? 0 : 1);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    if (status != 0)
        test_fail(__FILE__, __LINE__, "%s=%s is taken", name, value);
}

TEST(bad_settings)
{
    support_devices(NULL);
    expect_bad_setting("KVCACHED_EMULATE", "many");
    expect_bad_setting("KVCACHED_EMULATE", "80G,");
    expect_bad_setting("KVCACHED_EMULATE_FAULTS", "cuMemCreate");
    expect_bad_setting("KVCACHED_EMULATE_COSTS", "/nonexistent");
    expect_bad_setting("KVCACHED_EMULATE_POISON", "maybe");
}

TEST(folder_must_be_on_tmpfs)
{
    char error[CUDA_DRIVER_ERROR_MAX] = "";

    support_devices(NULL);
    check_eq(cuemuConfigure("/proc", NULL, error, sizeof(error)), -ENOTSUP);
    check(strstr(error, "tmpfs"));
    check(cuemuConfigure("/nonexistent/folder", NULL, error, sizeof(error)) == -ENOENT);
    check(strstr(error, "/nonexistent/folder"));
}

/* The same library, found by its folder and told its devices without the environment. */
TEST(load_emulated)
{
    const char *emulator = getenv("LD_LIBRARY_PATH");
    struct cuda_driver *driver = NULL;
    struct nvml_driver *nvml = NULL;
    char error[CUDA_DRIVER_ERROR_MAX] = "", folder[256];
    nvmlDevice_t handle;
    nvmlMemory_t memory;
    CUdevice device;

    check(emulator);
    support_devices(NULL);
    snprintf(folder, sizeof(folder), "%.*s", (int)strcspn(emulator, ":"), emulator);
    setenv("KVCACHED_EMULATE_DIR", "/nonexistent", 1);
    check_eq(cuda_driver_load_emulated("/nonexistent", NULL, NULL, &driver, error), -ENOENT);
    check_eq(cuda_driver_load_emulated(folder, "/nonexistent/folder", NULL, &driver, error), -ENOENT);
    check_eq(cuda_driver_load_emulated(folder, test_folder(), "3G", &driver, error), 0);
    check_eq(nvml_driver_load_emulated(folder, test_folder(), NULL, &nvml, error), 0);
    /* Asked for again, by another name of the same: there is one set of devices in a process. */
    check_eq(cuemuConfigure(test_folder(), "3072M", error, sizeof(error)), 0);
    check_eq(cuemuConfigure("/dev/shm", NULL, error, sizeof(error)), -EBUSY);
    check_eq(cuda_device_by_index(driver, 0, &device), 0);
    check_eq(device, 0);
    check_eq(nvml->nvmlDeviceGetHandleByIndex(0, &handle), NVML_SUCCESS);
    check_eq(nvml->nvmlDeviceGetMemoryInfo(handle, &memory), NVML_SUCCESS);
    check_eq(memory.total, 3 * GIB);
    check_str(cuda_error_name(driver, CUDA_ERROR_NOT_SUPPORTED), "CUDA_ERROR_NOT_SUPPORTED");
    check_str(cuda_error_name(driver, (CUresult)4242), "an unknown CUDA error");
    nvml = nvml_driver_unload(nvml);
    driver = cuda_driver_unload(driver);
}

/* Item 11, made visible: whoever relies on clearing that nobody promises is caught. */
TEST(poison)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address, block;

    support_devices("1G");
    setenv("KVCACHED_EMULATE_POISON", "1", 1);
    support_start();
    address = support_reserve(GRANULE);
    handle = support_create(GRANULE);
    support_map(address, GRANULE, handle);
    check(*(volatile char *)address && *(volatile char *)(address + GRANULE - 1));
    ok(cuMemsetD8(address, 0, GRANULE));
    check_eq(*(volatile char *)(address + 4096), 0);
    ok(cuMemAlloc(&block, GRANULE));
    check(*(volatile char *)block);
    ok(cuMemFree(block));
    support_unmap(address, GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, GRANULE);
    support_finish();
}

TEST(costs)
{
    CUmemGenericAllocationHandle handles[20];
    uint64_t start;

    support_devices("1G");
    setenv("KVCACHED_EMULATE_COSTS", "a100", 1);
    support_start();
    start = now_us();
    for (unsigned i = 0; i < 20; i++)
        handles[i] = support_create(GRANULE);
    check(now_us() - start >= 20 * 193);
    start = now_us();
    for (unsigned i = 0; i < 20; i++)
        ok(cuMemRelease(handles[i]));
    check(now_us() - start >= 20 * 23);
    start = now_us();
    handles[0] = support_create(64 * GRANULE);
    check(now_us() - start >= 64 * 205);
    ok(cuMemRelease(handles[0]));
    support_finish();
}

/* Item 18: with costs, clearing keeps a stream busy, and others can tell. */
TEST(streams_take_time)
{
    CUstream stream, other;
    CUdeviceptr address;
    uint64_t start;
    CUevent event;

    support_devices("2G");
    setenv("KVCACHED_EMULATE_COSTS", "a100", 1);
    support_start();
    ok(cuMemAlloc(&address, GIB));
    ok(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
    ok(cuStreamCreate(&other, CU_STREAM_NON_BLOCKING));
    ok(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
    start = now_us();
    for (unsigned i = 0; i < 10; i++)
        ok(cuMemsetD8Async(address, 0, GIB, stream));
    ok(cuEventRecord(event, stream));
    expect(CUDA_ERROR_NOT_READY, cuStreamQuery(stream));
    expect(CUDA_ERROR_NOT_READY, cuEventQuery(event));
    ok(cuStreamQuery(other));
    ok(cuStreamWaitEvent(other, event, 0));
    expect(CUDA_ERROR_NOT_READY, cuStreamQuery(other));
    ok(cuEventRecord(event, CU_STREAM_PER_THREAD)); /* which is idle; `other` still waits for what it was */
    ok(cuEventQuery(event));
    expect(CUDA_ERROR_NOT_READY, cuStreamQuery(other));
    ok(cuStreamSynchronize(other));
    check(now_us() - start >= 10 * 512 * 7.7);
    ok(cuStreamQuery(stream));
    ok(cuEventQuery(event));
    ok(cuEventDestroy(event));
    ok(cuStreamDestroy(stream));
    ok(cuStreamDestroy(other));
    ok(cuMemFree(address));
    support_finish();
}

static void set_costs(const char *text)
{
    char path[256];
    FILE *file;

    snprintf(path, sizeof(path), "%s/costs", test_folder());
    file = fopen(path, "we");
    check(file && fputs(text, file) >= 0 && fclose(file) == 0);
    setenv("KVCACHED_EMULATE_COSTS", path, 1);
}

/* Items 5 and 6: with costs, it shows that unmapping doesn't wait for what a stream sets. */
TEST(unmapping_waits_for_no_stream)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;

    support_devices("1G");
    set_costs("cuMemset call:300000\n");
    support_start();
    handle = support_create(GRANULE);
    address = support_reserve(GRANULE);
    support_map(address, GRANULE, handle);
    ok(cuMemsetD8(address, 0, GRANULE));
    ok(cuCtxSynchronize());
    ok(cuMemUnmap(address, GRANULE));
    support_map(address, GRANULE, handle);
    ok(cuMemsetD8(address, 0, GRANULE));
    ok(cuMemUnmap(address, GRANULE));
    expect(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
    ok(cuMemRelease(handle));
    support_free(address, GRANULE);
    support_finish();
}

TEST(faults)
{
    CUmemAllocationProp prop = support_prop(0, false);
    CUmemGenericAllocationHandle handle;
    size_t a, b;

    support_devices("1G");
    setenv("KVCACHED_EMULATE_FAULTS", "cuMemCreate:2=OUT_OF_MEMORY;cuMemGetInfo:3+=UNKNOWN", 1);
    support_start();
    ok(cuMemCreate(&handle, GRANULE, &prop, 0));
    ok(cuMemRelease(handle));
    expect(CUDA_ERROR_OUT_OF_MEMORY, cuMemCreate(&handle, GRANULE, &prop, 0));
    check_eq(support_free_bytes(), GIB);
    ok(cuMemCreate(&handle, GRANULE, &prop, 0));
    ok(cuMemRelease(handle));
    ok(cuMemGetInfo(&a, &b));
    expect(CUDA_ERROR_UNKNOWN, cuMemGetInfo(&a, &b));
    expect(CUDA_ERROR_UNKNOWN, cuMemGetInfo(&a, &b));
    check_eq(cuemuGetCalls("cuMemCreate"), 3);
    check_eq(cuemuGetCalls("cuMemGetInfo"), 4);
    check_eq(cuemuGetCalls("cuNoSuchThing"), 0);
    support_finish();
}

/* Every call can be made to fail, by its place among all calls. */
TEST(fault_at_every_index)
{
    support_devices("1G");
    for (unsigned i = 1;; i++) {
        char rule[32];
        int status;
        pid_t pid = fork();

        if (pid == 0) {
            CUcontext context;
            CUdevice device;
            size_t total;

            snprintf(rule, sizeof(rule), "*:%u=999", i);
            setenv("KVCACHED_EMULATE_FAULTS", rule, 1);
            _exit(cuInit(0) == CUDA_ERROR_UNKNOWN                               ? 1
                  : cuDeviceGet(&device, 0) == CUDA_ERROR_UNKNOWN               ? 2
                  : cuDevicePrimaryCtxRetain(&context, 0) == CUDA_ERROR_UNKNOWN ? 3
                  : cuDeviceTotalMem(&total, 0) == CUDA_ERROR_UNKNOWN           ? 4
                                                                                : 0);
        }
        check_eq(waitpid(pid, &status, 0), pid);
        check_eq(WEXITSTATUS(status), i > 4 ? 0 : i);
        if (i > 4)
            break;
    }
    support_start();
    check_eq(support_free_bytes(), GIB);
    support_finish();
}

static const struct {
    const char *name, *symbol;
} entry_points[] = {
#define CUDA_FUNCTION(name, symbol, parameters) {#name, #symbol},
#include "cuda/driver.def"
#undef CUDA_FUNCTION
};

/* None of them looks at its arguments before it fails, so any will do. */
TEST(every_entry_point_can_fail)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);

    support_devices(NULL);
    setenv("KVCACHED_EMULATE_FAULTS", "*:1+=UNKNOWN", 1);
    check(library);
    for (size_t i = 0; i < ARRAY_SIZE(entry_points); i++) {
        CUresult (*call)(long, long, long, long, long, long) =
            (__typeof__(call))dlsym(library, entry_points[i].symbol);

        if (!call || call(0, 0, 0, 0, 0, 0) != CUDA_ERROR_UNKNOWN || cuemuGetCalls(entry_points[i].name) != 1)
            test_fail(__FILE__, __LINE__, "%s does not fail", entry_points[i].name);
    }
    dlclose(library);
}

/* Item 20: which of several functions of one name, by the caller's toolkit. */
TEST(entry_points_by_version)
{
    static const struct {
        const char *name;
        int toolkit;
        const char *symbol;
        CUdriverProcAddressQueryResult status;
    } cases[] = {
        {"cuCtxCreate", 11040, "cuCtxCreate_v2", CU_GET_PROC_ADDRESS_SUCCESS},
        {"cuCtxCreate", 13000, "cuCtxCreate_v4", CU_GET_PROC_ADDRESS_SUCCESS},
        {"cuDeviceGetUuid", 11030, "cuDeviceGetUuid", CU_GET_PROC_ADDRESS_SUCCESS},
        {"cuDeviceGetUuid", 12000, "cuDeviceGetUuid_v2", CU_GET_PROC_ADDRESS_SUCCESS},
        {"cuGetProcAddress", 12000, "cuGetProcAddress_v2", CU_GET_PROC_ADDRESS_SUCCESS},
        {"cuMemAlloc", 12000, "cuMemAlloc_v2", CU_GET_PROC_ADDRESS_SUCCESS},
        {"cuMemAlloc_v2", 12000, "cuMemAlloc_v2", CU_GET_PROC_ADDRESS_SUCCESS},
        {"cuCtxGetId", 11040, NULL, CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT},
        {"cuMemAll", 12000, NULL, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND},
        {"cuemuLeave", 12000, NULL, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND},
        {"", 12000, NULL, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND},
    };
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);

    support_devices(NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CUdriverProcAddressQueryResult status;
        void *function;

        expect(cases[i].symbol ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND,
               cuGetProcAddress(cases[i].name, &function, cases[i].toolkit, CU_GET_PROC_ADDRESS_DEFAULT,
                                &status));
        if (status != cases[i].status ||
            function != (cases[i].symbol ? dlsym(library, cases[i].symbol) : NULL))
            test_fail(__FILE__, __LINE__, "%s for %d: status %d", cases[i].name, cases[i].toolkit, status);
    }
    dlclose(library);
}

static void allocate_and_leave(void *argument)
{
    support_start();
    support_create(GRANULE);
    ok(cuMemRelease(support_create(GRANULE)));
}

TEST(stats_file)
{
    char path[] = "/tmp/kvc-stats-XXXXXX", line[4096] = "";
    int fd = mkstemp(path);
    pid_t pid;

    check(fd >= 0);
    support_devices("1G");
    setenv("KVCACHED_EMULATE_STATS", path, 1);
    pid = support_spawn(allocate_and_leave, NULL);
    support_wait(pid);
    check(read(fd, line, sizeof(line) - 1) > 0);
    check(strstr(line, "\"handles\": 1,"));
    check(strstr(line, "\"cuMemCreate\": 2"));
    check(strstr(line, "\"cuMemRelease\": 1"));
    check(line[strlen(line) - 1] == '\n');
    unsetenv("KVCACHED_EMULATE_STATS");
    close(fd);
    unlink(path);
}

static void export_and_wait(void *argument)
{
    const int *fds = argument;
    char c;

    close(fds[3]);
    support_start();
    support_create(8 * GRANULE);
    check_eq(write(fds[1], "x", 1), 1);
    check_eq(read(fds[2], &c, 1), 0);
    raise(SIGKILL);
}

/* The management library sees all devices, and what every process holds, without a driver in the process. */
TEST(management_library)
{
    char error[CUDA_DRIVER_ERROR_MAX], uuid[96], own[CUDA_UUID_MAX];
    struct nvml_driver *nvml = NULL;
    nvmlProcessInfo_t processes[4];
    nvmlMemory_v2_t memory_v2 = {.version = nvmlMemory_v2};
    nvmlDevice_t device, same;
    nvmlMemory_t memory;
    unsigned n;
    int fds[4], status;
    CUuuid id;
    pid_t pid;
    char c;

    support_devices("1G,2G");
    setenv("CUDA_VISIBLE_DEVICES", "1", 1);
    setenv("KVCACHED_EMULATE_FAULTS", "nvmlDeviceGetCount:2=999", 1);
    check_eq(pipe(fds), 0);
    check_eq(pipe(fds + 2), 0);
    pid = support_spawn(export_and_wait, fds);
    check_eq(read(fds[0], &c, 1), 1);
    check_eq(nvml_driver_load(NULL, &nvml, error), 0);
    check_eq(nvml->nvmlDeviceGetCount(&n), NVML_SUCCESS);
    check_eq(n, 2);
    check_eq(nvml->nvmlDeviceGetCount(&n), NVML_ERROR_UNKNOWN);
    check_eq(nvml->nvmlDeviceGetHandleByIndex(2, &device), NVML_ERROR_INVALID_ARGUMENT);
    check_eq(nvml->nvmlDeviceGetHandleByIndex(1, &device), NVML_SUCCESS);
    check_eq(nvml->nvmlDeviceGetUUID(device, uuid, sizeof(uuid)), NVML_SUCCESS);
    check_eq(nvml->nvmlDeviceGetHandleByUUID(uuid, &same), NVML_SUCCESS);
    check(same == device);
    check_eq(nvml->nvmlDeviceGetMemoryInfo(device, &memory), NVML_SUCCESS);
    check_eq(memory.total, 2 * GIB);
    check_eq(memory.used, 8 * GRANULE);
    check_eq(nvml->nvmlDeviceGetMemoryInfo_v2(device, &memory_v2), NVML_SUCCESS);
    check_eq(memory_v2.free, 2 * GIB - 8 * GRANULE);
    n = ARRAY_SIZE(processes);
    check_eq(nvml->nvmlDeviceGetComputeRunningProcesses(device, &n, processes), NVML_SUCCESS);
    check_eq(n, 1);
    check_eq(processes[0].pid, pid);
    check_eq(processes[0].usedGpuMemory, 8 * GRANULE);
    n = 0;
    check_eq(nvml->nvmlDeviceGetComputeRunningProcesses(device, &n, NULL), NVML_ERROR_INSUFFICIENT_SIZE);
    check_eq(n, 1);
    close(fds[3]);
    check_eq(waitpid(pid, &status, 0), pid);
    check_eq(nvml->nvmlDeviceGetMemoryInfo(device, &memory), NVML_SUCCESS);
    check_eq(memory.used, 0);
    support_start();
    ok(cuDeviceGetUuid(&id, 0));
    check_str(cuda_uuid_format(own, &id), uuid);
    support_finish();
    nvml = nvml_driver_unload(nvml);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
}
