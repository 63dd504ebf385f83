/* SPDX-License-Identifier: Apache-2.0 */

/* What the conformance suites share; see support.h. */

#include "support.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static CUdevice device;

void support_expect(const char *file, int line, const char *text, CUresult want, CUresult got)
{
    const char *got_name = NULL, *want_name = NULL;

    if (want == got)
        return;
    cuGetErrorName(got, &got_name);
    cuGetErrorName(want, &want_name);
    test_fail(file, line, "%s gave %s (%d), not %s", text, got_name ? got_name : "?", got, want_name);
}

void support_devices(const char *sizes)
{
    setenv("KVCACHED_EMULATE_DIR", test_folder(), 1);
    if (sizes)
        setenv("KVCACHED_EMULATE", sizes, 1);
    else
        unsetenv("KVCACHED_EMULATE");
}

void support_start(void)
{
    CUcontext context;

    ok(cuInit(0));
    ok(cuDeviceGet(&device, 0));
    ok(cuDevicePrimaryCtxRetain(&context, device));
    ok(cuCtxSetCurrent(context));
}

void support_begin(const char *sizes)
{
    support_devices(sizes);
    support_start();
}

void support_finish(void)
{
    ok(cuCtxSetCurrent(NULL));
    ok(cuDevicePrimaryCtxRelease(device));
}

CUmemAllocationProp support_prop(CUdevice of, bool shareable)
{
    CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                .location = {CU_MEM_LOCATION_TYPE_DEVICE, of}};

    if (shareable)
        prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    return prop;
}

CUmemAccessDesc support_access(CUdevice of, CUmemAccess_flags flags)
{
    return (CUmemAccessDesc){.location = {CU_MEM_LOCATION_TYPE_DEVICE, of}, .flags = flags};
}

CUmemGenericAllocationHandle support_create(size_t size)
{
    CUmemAllocationProp prop = support_prop(device, true);
    CUmemGenericAllocationHandle handle;

    ok(cuMemCreate(&handle, size, &prop, 0));
    return handle;
}

int support_export(CUmemGenericAllocationHandle handle)
{
    int fd = -1;

    ok(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
    check(fd >= 0);
    return fd;
}

CUdeviceptr support_reserve(size_t size)
{
    CUdeviceptr address;

    ok(cuMemAddressReserve(&address, size, 0, 0, 0));
    return address;
}

void support_map(CUdeviceptr address, size_t size, CUmemGenericAllocationHandle handle)
{
    CUmemAccessDesc access = support_access(device, CU_MEM_ACCESS_FLAGS_PROT_READWRITE);

    ok(cuMemMap(address, size, 0, handle, 0));
    ok(cuMemSetAccess(address, size, &access, 1));
}

void support_unmap(CUdeviceptr address, size_t size)
{
    ok(cuMemUnmap(address, size));
}

void support_free(CUdeviceptr address, size_t size)
{
    ok(cuMemAddressFree(address, size));
}

size_t support_free_bytes(void)
{
    size_t free_bytes, total;

    ok(cuMemGetInfo(&free_bytes, &total));
    return free_bytes;
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void support_expect_free(size_t bytes)
{
    uint64_t deadline = now_ms() + 1000;
    struct timespec pause = {.tv_nsec = 1000000};

    while (support_free_bytes() != bytes && now_ms() < deadline)
        nanosleep(&pause, NULL);
    check_eq(support_free_bytes(), bytes);
}

unsigned support_count_files(const char *prefix)
{
    DIR *dir = opendir(test_folder());
    struct dirent *entry;
    unsigned n = 0;

    check(dir);
    while ((entry = readdir(dir)))
        n += strncmp(entry->d_name, prefix, strlen(prefix)) == 0;
    closedir(dir);
    return n;
}

uint64_t support_host_bytes(void)
{
    char path[128];
    struct stat st;

    snprintf(path, sizeof(path), "%s/memory.0", test_folder());
    check_eq(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

union control {
    struct cmsghdr header;
    char buf[CMSG_SPACE(sizeof(int))];
};

bool support_try_send(int socket, int fd)
{
    char byte = 0;
    union control control = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof(control.buf)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);

    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(fd));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    return sendmsg(socket, &message, MSG_DONTWAIT) == 1;
}

void support_send(int socket, int fd)
{
    check(support_try_send(socket, fd));
}

int support_receive(int socket)
{
    union control control = {0};
    char byte;
    struct iovec data = {&byte, 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof(control.buf)};
    int fd;

    check_eq(recvmsg(socket, &message, MSG_CMSG_CLOEXEC), 1);
    check(CMSG_FIRSTHDR(&message) && CMSG_FIRSTHDR(&message)->cmsg_type == SCM_RIGHTS);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    return fd;
}

pid_t support_spawn(void (*run)(void *), void *argument)
{
    pid_t pid = fork();

    check(pid >= 0);
    if (pid == 0) {
        run(argument);
        exit(0);
    }
    return pid;
}

void support_wait(pid_t pid)
{
    int status;

    while (waitpid(pid, &status, 0) < 0)
        check_eq(errno, EINTR);
    check_eq(status, 0);
}

void support_kill(pid_t pid)
{
    int status;

    check_eq(kill(pid, SIGKILL), 0);
    while (waitpid(pid, &status, 0) < 0)
        check_eq(errno, EINTR);
    check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}
