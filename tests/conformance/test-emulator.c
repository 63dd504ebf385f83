/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What only the emulator can show, or only it must bear: accounts that come back to zero whatever kills whom.
 * Where a case stands for the driver's own behaviour it names the item of docs/DRIVER.md.
 */

#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cuda/emulator.h"
#include "support.h"

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

TEST(folder_is_gone_after_the_last)
{
    support_begin(NULL);
    check_eq(access(test_folder(), F_OK), 0);
    support_finish();
    cuemuLeave();
    check_eq(access(test_folder(), F_OK), -1);
    expect(CUDA_ERROR_DEINITIALIZED, cuInit(0));
}

static void create_and_hang(void *argument)
{
    int ready = *(int *)argument;
    CUdeviceptr address;

    support_start();
    address = support_reserve(4 * GRANULE);
    support_map(address, 4 * GRANULE, support_create(4 * GRANULE));
    support_create(GRANULE);
    ok(cuMemAlloc(&address, 3 * GRANULE));
    check_eq(write(ready, "x", 1), 1);
    for (;;)
        pause();
}

/* Item 12: a process's references end with it. */
TEST(killed_process_gives_back)
{
    int ready[2];
    size_t all;
    pid_t pid;
    char c;

    support_devices("1G");
    check_eq(pipe(ready), 0);
    pid = support_spawn(create_and_hang, &ready[1]);
    check_eq(read(ready[0], &c, 1), 1);
    support_start();
    all = GIB;
    check_eq(support_free_bytes(), all - 8 * GRANULE);
    support_kill(pid);
    support_expect_free(all);
    check_eq(support_count_files("slot."), 1);
    close(ready[0]);
    close(ready[1]);
    support_finish();
}

static void export_and_die(void *argument)
{
    int socket = *(int *)argument;
    CUmemGenericAllocationHandle handle;

    support_start();
    handle = support_create(8 * GRANULE);
    support_send(socket, support_export(handle));
    raise(SIGKILL);
}

/* Somebody has died, and what it sent is in the queue of these sockets. */
static void leave_in_flight(int pair[2])
{
    int status;
    pid_t pid;

    check_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    pid = support_spawn(export_and_die, &pair[1]);
    check_eq(waitpid(pid, &status, 0), pid);
}

/* Item 12: memory lives while a descriptor waits in a socket's queue, and ends with it. */
TEST(descriptor_in_flight_holds)
{
    struct cuemu_stats stats;
    int pair[2];

    support_devices("1G");
    leave_in_flight(pair);
    support_start();
    check_eq(support_free_bytes(), GIB - 8 * GRANULE);
    check_eq(cuemuGetStats(&stats), 0);
    check_eq(stats.exported, 1);
    close(pair[0]);
    close(pair[1]);
    support_expect_free(GIB);
    check_eq(support_count_files("extent."), 0);
    support_finish();
}

/* Item 12: and it can be taken out of the queue after the exporter's death, and used. */
TEST(descriptor_outlives_exporter)
{
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    int pair[2], fd;

    support_devices("1G");
    leave_in_flight(pair);
    support_start();
    fd = support_receive(pair[0]);
    ok(cuMemImportFromShareableHandle(&handle, (void *)(uintptr_t)fd,
                                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    address = support_reserve(8 * GRANULE);
    support_map(address, 8 * GRANULE, handle);
    ok(cuMemRelease(handle));
    ok(cuMemsetD8(address, 1, 8 * GRANULE));
    check_eq(support_free_bytes(), GIB - 8 * GRANULE);
    support_unmap(address, 8 * GRANULE);
    check_eq(support_free_bytes(), GIB);
    support_free(address, 8 * GRANULE);
    close(pair[0]);
    close(pair[1]);
    support_finish();
}

static void fork_and_die(void *argument)
{
    const int *fds = argument;
    char c;

    support_start();
    support_create(8 * GRANULE);
    if (fork() == 0) {
        /* Item 13: nothing works here, and nothing must be harmed. */
        CUmemAllocationProp prop = support_prop(0, false);
        CUmemGenericAllocationHandle handle;

        expect(CUDA_ERROR_NOT_INITIALIZED, cuMemCreate(&handle, GRANULE, &prop, 0));
        expect(CUDA_ERROR_NOT_INITIALIZED, cuInit(0));
        close(fds[3]);
        check_eq(write(fds[1], "x", 1), 1);
        check_eq(read(fds[2], &c, 1), 0);
        exit(0);
    }
    for (;;)
        pause();
}

/* Item 13: a forked child has no driver, and keeps its parent's memory while it lives. */
TEST(forked_child_holds)
{
    int fds[4];
    pid_t pid;
    char c;

    support_devices("1G");
    check_eq(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    check_eq(pipe(fds), 0);
    check_eq(pipe(fds + 2), 0);
    pid = support_spawn(fork_and_die, fds);
    check_eq(read(fds[0], &c, 1), 1);
    support_start();
    check_eq(support_free_bytes(), GIB - 8 * GRANULE);
    support_kill(pid);
    check_eq(support_free_bytes(), GIB - 8 * GRANULE);
    for (int i = 0; i < 4; i++)
        close(fds[i]);
    support_wait(-1);
    check_eq(support_free_bytes(), GIB);
    support_finish();
}

/* One of the storm: everything that changes the registry, as fast as it goes, until killed. */
static void rage(void *argument)
{
    int socket = *(int *)argument;
    uint64_t random = (uint64_t)getpid() * 2654435761u + 1;
    CUmemGenericAllocationHandle handles[16] = {0};
    CUdeviceptr address;

    support_start();
    address = support_reserve(16 * GRANULE);
    for (;;) {
        unsigned i = test_random(&random) % 16;

        if (!handles[i]) {
            handles[i] = support_create(GRANULE);
            support_map(address + i * GRANULE, GRANULE, handles[i]);
            *(volatile char *)(address + i * GRANULE) = 1;
            continue;
        }
        if (test_random(&random) % 2) {
            CUmemGenericAllocationHandle imported;
            int fd = support_export(handles[i]);

            ok(cuMemImportFromShareableHandle(&imported, (void *)(uintptr_t)fd,
                                              CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
            if (test_random(&random) % 8 == 0)
                support_try_send(socket, fd);
            close(fd);
            ok(cuMemRelease(imported));
        }
        support_unmap(address + i * GRANULE, GRANULE);
        ok(cuMemRelease(handles[i]));
        handles[i] = 0;
    }
}

#define RAGERS 6

/* Item 12, at any instruction: hundreds are killed, and the account is exact and the folder flat after each.
 */
TEST_LIMIT(sigkill_storm, 60)
{
    uint64_t seed = test_seed(), started = now_ms();
    pid_t pids[RAGERS] = {0};
    unsigned killed = 0;
    int pair[2];

    support_devices("1G");
    check_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    while (killed < 300 && now_ms() - started < 12000) {
        unsigned i = test_random(&seed) % RAGERS;
        struct timespec pause = {.tv_nsec = (long)(test_random(&seed) % 10000000)};

        if (pids[i] == 0) {
            pids[i] = support_spawn(rage, &pair[1]);
            continue;
        }
        nanosleep(&pause, NULL);
        support_kill(pids[i]);
        pids[i] = 0;
        killed++;
    }
    check(killed > 50);
    for (unsigned i = 0; i < RAGERS; i++)
        if (pids[i])
            support_kill(pids[i]);
    close(pair[0]);
    close(pair[1]);
    support_start();
    support_expect_free(GIB);
    check_eq(support_count_files("slot."), 1);
    check_eq(support_count_files("extent."), 0);
    check_eq(support_host_bytes(), 0);
    support_finish();
}

/* Comes, does everything that changes the registry, and leaves. */
static void live_a_life(void)
{
    CUmemGenericAllocationHandle handle, imported;
    CUdeviceptr address;
    int fd;

    support_start();
    handle = support_create(2 * GRANULE);
    address = support_reserve(2 * GRANULE);
    support_map(address, 2 * GRANULE, handle);
    *(volatile char *)address = 1;
    fd = support_export(handle);
    ok(cuMemImportFromShareableHandle(&imported, (void *)(uintptr_t)fd,
                                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    ok(cuMemRelease(handle));
    support_unmap(address, 2 * GRANULE);
    ok(cuMemRelease(imported));
    support_free_bytes();
    close(fd);
    support_free_bytes();
    support_create(GRANULE);
    cuemuLeave();
}

/* Runs a process up to its n-th step into or out of the kernel, and kills it. False: it ended before. */
static bool kill_at(unsigned n)
{
    pid_t pid = fork();
    int status;

    check(pid >= 0);
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        live_a_life();
        _exit(0);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFSTOPPED(status));
    for (unsigned i = 0; i < n; i++) {
        check_eq(ptrace(PTRACE_SYSCALL, pid, 0, 0), 0);
        check_eq(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status))
            return false;
    }
    support_kill(pid);
    return true;
}

/* A process of its own, since one that has used the driver cannot fork another that uses it. */
static void kill_on_demand(void *argument)
{
    const int *fds = argument;
    unsigned n;

    close(fds[3]);
    while (read(fds[2], &n, sizeof(n)) == sizeof(n)) {
        bool killed = kill_at(n);

        check_eq(write(fds[1], &killed, sizeof(killed)), sizeof(killed));
    }
}

/* Item 12, step by step: from joining to leaving, there is no system call at which death does harm. */
TEST_LIMIT(killed_at_every_system_call, 60)
{
    bool killed = true;
    int fds[4];
    pid_t pid;

    support_devices("1G");
    check_eq(pipe(fds), 0);
    check_eq(pipe(fds + 2), 0);
    pid = support_spawn(kill_on_demand, fds);
    close(fds[1]);
    close(fds[2]);
    support_start();
    for (unsigned n = 0; killed; n++) {
        check_eq(write(fds[3], &n, sizeof(n)), sizeof(n));
        check_eq(read(fds[0], &killed, sizeof(killed)), sizeof(killed));
        check_eq(support_free_bytes(), GIB);
        check_eq(support_count_files("slot."), 1);
        check_eq(support_count_files("extent."), 0);
        check_eq(support_host_bytes(), 0);
    }
    close(fds[3]);
    close(fds[0]);
    support_wait(pid);
    support_finish();
}

static void come_and_go(void *argument)
{
    support_start();
    check_eq(support_free_bytes(), GIB);
    live_a_life();
}

/* The same where the dead one was alone: the next makes the folder anew, and takes it away. */
TEST_LIMIT(killed_alone_at_every_system_call, 60)
{
    bool killed = true;

    support_devices("1G");
    for (unsigned n = 0; killed; n++) {
        killed = kill_at(n);
        support_wait(support_spawn(come_and_go, NULL));
        check_eq(access(test_folder(), F_OK), -1);
    }
}

static void hold_one(void *argument)
{
    const int *fds = argument;
    char c;

    close(fds[3]);
    ok(cuInit(0));
    support_create(GRANULE);
    check_eq(write(fds[1], "x", 1), 1);
    check_eq(read(fds[2], &c, 1), 0);
    raise(SIGKILL);
}

#define CROWD 1000

/* Many processes on one device; a look at free memory finds all of their deaths. */
TEST_LIMIT(a_thousand_processes, 60)
{
    int fds[4], status;
    char c;

    support_devices("80G");
    check_eq(pipe(fds), 0);
    check_eq(pipe(fds + 2), 0);
    for (unsigned i = 0; i < CROWD; i++)
        support_spawn(hold_one, fds);
    for (unsigned i = 0; i < CROWD; i++)
        check_eq(read(fds[0], &c, 1), 1);
    support_start();
    check_eq(support_free_bytes(), 80 * GIB - CROWD * GRANULE);
    close(fds[3]);
    for (unsigned i = 0; i < CROWD; i++)
        check(wait(&status) > 0);
    check_eq(support_free_bytes(), 80 * GIB);
    check_eq(support_count_files("slot."), 1);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    support_finish();
}

static void hold_until_closed(const int *fds, pid_t *ret_pid)
{
    char c;

    *ret_pid = support_spawn(hold_one, (void *)fds);
    check_eq(read(fds[0], &c, 1), 1);
}

/* Nobody asks for free memory, and yet the dead do not pile up. */
TEST(dead_slots_do_not_pile_up)
{
    int fds[4], status;
    pid_t first, pid;

    support_devices("1G");
    check_eq(pipe(fds), 0);
    check_eq(pipe(fds + 2), 0);
    hold_until_closed(fds, &first);
    for (unsigned i = 0; i < 300; i++) {
        hold_until_closed(fds, &pid);
        support_kill(pid);
        check(support_count_files("slot.") <= 8);
    }
    for (int i = 0; i < 4; i++)
        close(fds[i]);
    check_eq(waitpid(first, &status, 0), first);
    support_start();
    check_eq(support_free_bytes(), GIB);
    support_finish();
}

/* A device is full only when the dead have been looked at. */
TEST(out_of_memory_sweeps_first)
{
    CUmemAllocationProp prop = support_prop(0, false);
    CUmemGenericAllocationHandle handle;
    int pair[2];

    support_devices("16M");
    leave_in_flight(pair);
    support_start();
    expect(CUDA_ERROR_OUT_OF_MEMORY, cuMemCreate(&handle, 8 * GRANULE, &prop, 0));
    close(pair[0]);
    close(pair[1]);
    ok(cuMemCreate(&handle, 8 * GRANULE, &prop, 0));
    ok(cuMemRelease(handle));
    support_finish();
}

/* What nobody alive refers to is gone for the next who comes, whatever devices it wants. */
TEST(next_user_cleans_up)
{
    int pair[2];

    support_devices("1G");
    leave_in_flight(pair);
    check_eq(support_count_files("slot."), 1);
    check_eq(support_count_files("extent."), 1);
    close(pair[0]);
    close(pair[1]);
    setenv("KVCACHED_EMULATE", "2G", 1);
    support_start();
    check_eq(support_free_bytes(), 2 * GIB);
    check_eq(support_count_files("extent."), 0);
    support_finish();
}

static void as_nobody(void *argument)
{
    const int *pair = argument;
    CUmemGenericAllocationHandle handle;
    CUdeviceptr address;
    char c;
    int fd;

    close(pair[0]);
    check_eq(setgid(65534), 0);
    check_eq(setuid(65534), 0);
    umask(077);
    support_start();
    fd = support_receive(pair[1]);
    ok(cuMemImportFromShareableHandle(&handle, (void *)(uintptr_t)fd,
                                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    address = support_reserve(GRANULE);
    support_map(address, GRANULE, handle);
    ok(cuMemsetD8(address, 3, GRANULE));
    fd = support_export(support_create(GRANULE));
    support_send(pair[1], fd);
    check_eq(read(pair[1], &c, 1), 0);
    raise(SIGKILL);
}

/* Users share a folder if they want to, whatever their umask, and clean up after each other. */
TEST(two_users)
{
    CUmemGenericAllocationHandle handle, theirs;
    int pair[2], status, fd;
    CUdeviceptr address;
    pid_t pid;

    if (geteuid() != 0)
        test_skip("only root can become somebody else");
    support_devices("1G");
    check_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    pid = support_spawn(as_nobody, pair);
    umask(077);
    support_start();
    handle = support_create(GRANULE);
    fd = support_export(handle);
    support_send(pair[0], fd);
    close(fd);
    fd = support_receive(pair[0]);
    ok(cuMemImportFromShareableHandle(&theirs, (void *)(uintptr_t)fd,
                                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
    close(fd);
    address = support_reserve(GRANULE);
    support_map(address, GRANULE, handle);
    check_eq(*(volatile char *)address, 3);
    support_unmap(address, GRANULE);
    check_eq(support_free_bytes(), GIB - 2 * GRANULE);
    close(pair[0]);
    close(pair[1]);
    check_eq(waitpid(pid, &status, 0), pid);
    ok(cuMemRelease(theirs));
    ok(cuMemRelease(handle));
    check_eq(support_free_bytes(), GIB);
    check_eq(support_count_files("slot."), 1);
    check_eq(support_count_files("extent."), 0);
    support_free(address, GRANULE);
    support_finish();
}
