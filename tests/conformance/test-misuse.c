/* SPDX-License-Identifier: Apache-2.0 */

/* What the emulator does with mistakes that a driver leaves undefined, or answers late: the program stops. */

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/emulator.h"
#include "support.h"

/* Runs in a child with its stderr in a pipe, and gives back how it ended. */
static int run_dying(void (*run)(void), char *said, size_t size)
{
    int fds[2], status;
    ssize_t n, at = 0;
    pid_t pid;

    check_eq(pipe(fds), 0);
    pid = fork();
    if (pid == 0) {
        signal(SIGABRT, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        dup2(fds[1], 2);
        support_start();
        run();
        _exit(0);
    }
    close(fds[1]);
    while ((n = read(fds[0], said + at, size - 1 - (size_t)at)) > 0)
        at += n;
    said[at] = '\0';
    close(fds[0]);
    check_eq(waitpid(pid, &status, 0), pid);
    return status;
}

static void release_twice(void)
{
    CUmemGenericAllocationHandle handle = support_create(GRANULE);

    cuMemRelease(handle);
    cuMemRelease(handle);
}

static void release_twice_while_mapped(void)
{
    CUmemGenericAllocationHandle handle = support_create(GRANULE);

    support_map(support_reserve(GRANULE), GRANULE, handle);
    cuMemRelease(handle);
    cuMemRelease(handle);
}

static void release_garbage(void)
{
    cuMemRelease(4711);
}

/* Item 3 */
TEST(undefined_behaviour_aborts)
{
    void (*const cases[])(void) = {release_twice, release_twice_while_mapped, release_garbage};

    support_devices("1G");
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char said[4096];
        int status = run_dying(cases[i], said, sizeof(said));

        check(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
        check(strstr(said, "cuMemRelease"));
    }
    support_start();
    check_eq(support_free_bytes(), GIB);
    support_finish();
}

static void touch_without_access(void)
{
    CUdeviceptr address = support_reserve(GRANULE);

    ok(cuMemMap(address, GRANULE, 0, support_create(GRANULE), 0));
    *(volatile char *)address = 1;
}

static void touch_reserved(void)
{
    *(volatile char *)support_reserve(GRANULE) = 1;
}

static void touch_unmapped(void)
{
    CUdeviceptr address = support_reserve(GRANULE);

    support_map(address, GRANULE, support_create(GRANULE));
    support_unmap(address, GRANULE);
    *(volatile char *)address = 1;
}

/* Items 4 to 6: a program that touches what is not there stops at that place. */
TEST(missing_map_faults)
{
    void (*const cases[])(void) = {touch_without_access, touch_reserved, touch_unmapped};

    support_devices("1G");
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char said[16384];
        int status = run_dying(cases[i], said, sizeof(said));

        check(status != 0);
        check(strstr(said, "SEGV") || (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV));
    }
    support_start();
    check_eq(support_free_bytes(), GIB);
    support_finish();
}

/* Item 6: on the device's side a fault ends the context. */
TEST(write_without_access_breaks_the_context)
{
    CUmemAccessDesc access = support_access(0, CU_MEM_ACCESS_FLAGS_PROT_READ);
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    size_t a, b;
    char byte;

    support_begin("1G");
    address = support_reserve(GRANULE);
    handle = support_create(GRANULE);
    ok(cuMemMap(address, GRANULE, 0, handle, 0));
    ok(cuMemSetAccess(address, GRANULE, &access, 1));
    ok(cuMemcpyDtoH(&byte, address, 1));
    expect(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemsetD8(address, 1, 1));
    expect(CUDA_ERROR_ILLEGAL_ADDRESS, cuMemGetInfo(&a, &b));
    expect(CUDA_ERROR_ILLEGAL_ADDRESS, cuCtxSynchronize());
    support_unmap(address, GRANULE);
    ok(cuMemRelease(handle));
    support_free(address, GRANULE);
    support_finish();
}

static void end_badly(void *argument)
{
    CUdeviceptr address;

    support_start();
    cuemuLeave();
    expect(CUDA_ERROR_DEINITIALIZED, cuMemAddressReserve(&address, GRANULE, 0, 0, 0));
    expect(CUDA_ERROR_DEINITIALIZED, cuMemAlloc(&address, GRANULE));
}

/* Item 15 */
TEST(after_the_end)
{
    support_devices("1G");
    support_wait(support_spawn(end_badly, NULL));
}
