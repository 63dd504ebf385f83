/* SPDX-License-Identifier: Apache-2.0 */

/* The library in a process that has other things on its mind: time limits, a full descriptor table, signals,
 * forks, contexts of its own. */

#include "support.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE (2 * MIB)

/* ---- Time, descriptors, signals ---- */

TEST(late_answer_goes_back)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;
    struct kvc_region *region;

    options.timeout_ms = 50;
    check_ok(kvc_open(&options, &client));
    region = open_region(client, 1, PAGE, 10);
    fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
    check_error(map_range(region, 0, 2), KVC_E_TIMEOUT);
    check_eq(lent_bytes(fake), 2 * PAGE);
    fake_release(fake);
    dispatch_until(client, lent_bytes(fake) == 0);
    check_ok(map_range(region, 0, 2));
    kvc_close(client);
    fake_stop(fake);
}

/* Closing waits for what it no longer wants, so that the region can be closed at the daemon, too. */
TEST(close_with_an_answer_under_way)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 4, 4, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, 10);

    check_ok(map_range(region, 0, 1));
    check_ok(kvc_dispatch(client));
    kvc_region_close(region);
    check_eq(fake_count(fake).extents, 0);
    check_eq(fake_count(fake).regions, 0);
    kvc_close(client);
    fake_stop(fake);
}

/* poll(), by whichever number. */
static bool sleeps_in_poll(pid_t pid)
{
    char path[64];
    long call = -1;
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
    file = fopen(path, "re");
    check(file != NULL);
    if (fscanf(file, "%ld", &call) != 1)
        call = -1;
    fclose(file);
#ifdef SYS_poll
    if (call == SYS_poll)
        return true;
#endif
    return call == SYS_ppoll;
}

static void stop_for_long(bool in_poll)
{
    struct fake *fake = fake_start(NULL);
    int status;
    pid_t pid;

    fake_lie(fake, FAKE_LATE, MESSAGE_TAKE);
    pid = fork();
    if (pid == 0) {
        struct kvc_options options = plain_options(fake);
        struct kvc_client *client;
        struct kvc_region *region;

        options.timeout_ms = 300;
        check_ok(kvc_open(&options, &client));
        region = open_region(client, 1, PAGE, 10);
        check_ok(map_range(region, 0, 2));
        kvc_close(client);
        exit(0);
    }
    while (fake_count(fake).late == 0 || (in_poll && !sleeps_in_poll(pid)))
        ;
    kill(pid, SIGSTOP);
    check_eq(waitpid(pid, &status, WUNTRACED), pid);
    check(WIFSTOPPED(status));
    fake_release(fake);
    poll(NULL, 0, 500);
    kill(pid, SIGCONT);
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    fake_stop(fake);
}

/* The answers that came while the process was stopped are found, in whichever call it waits for them. */
TEST(stopped_for_long)
{
    stop_for_long(false);
    stop_for_long(true);
}

TEST(full_descriptor_table)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 100);
    struct rlimit limit, tight;
    int lowest = dup(0);

    check(lowest >= 0);
    close(lowest);
    check_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    tight = limit;
    tight.rlim_cur = (rlim_t)lowest + 3;
    check_eq(setrlimit(RLIMIT_NOFILE, &tight), 0);
    check_error(map_range(region, 0, 80), KVC_E_NOFILE);
    check_eq(lent_bytes(fake), 0);
    check_ok(map_range(region, 0, 2));
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    check_ok(map_range(region, 2, 80));
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

TEST(no_descriptor_for_a_connection)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client = NULL;
    struct rlimit limit;
    int lowest = dup(0);

    check(lowest >= 0);
    close(lowest);
    check_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int n = 0; n < 2; n++) {
        struct rlimit tight = {.rlim_cur = (rlim_t)(lowest + n), .rlim_max = limit.rlim_max};

        check_eq(setrlimit(RLIMIT_NOFILE, &tight), 0);
        check_error(kvc_open(&options, &client), KVC_E_NOFILE);
        check(!client);
    }
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    fake_stop(fake);
}

static void on_signal(int signal)
{
    (void)signal;
}

TEST(signals_interrupt_nothing)
{
    struct sigaction action = {.sa_handler = on_signal};
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 100);
    pid_t parent = getpid(), pid;

    sigaction(SIGUSR1, &action, NULL);
    pid = fork();
    if (pid == 0) {
        while (kill(parent, SIGUSR1) == 0)
            poll(NULL, 0, 1);
        _exit(0);
    }
    for (int i = 0; i < 50; i++) {
        check_ok(map_range(region, 0, 60));
        check_ok(unmap_range(region, 0, 60));
    }
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0)
        check_eq(errno, EINTR);
    kvc_close(client);
    fake_stop(fake);
}

/* ---- The host ---- */

TEST(idle_costs_nothing)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_status status = {.size = sizeof(status)};
    struct kvc_client *client;
    struct kvc_region *region;
    unsigned long before;

    options.own_thread = 1;
    options.min_reserved_pages = 2;
    options.max_reserved_pages = 4;
    check_ok(kvc_open(&options, &client));
    region = open_region(client, 1, PAGE, 10);
    check_ok(map_range(region, 0, 2));
    while (status.cached_bytes < 2 * PAGE) {
        check_ok(kvc_status(client, &status));
        poll(NULL, 0, 1);
    }
    /* A call that gives it nothing to do leaves it there. */
    before = own_thread_at_rest();
    for (int i = 0; i < 10; i++) {
        check_ok(unmap_range(region, 0, 2));
        check_ok(map_range(region, 0, 2));
        poll(NULL, 0, 100);
    }
    check_eq(own_thread_switches(), before);
    kvc_close(client);
    fake_stop(fake);
}

TEST(fork_makes_handles_useless)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;
    struct kvc_region *region;
    struct kvc_status kept = {.size = sizeof(kept)};
    struct kvc_device device = {.size = sizeof(device)};
    struct kvc_region_options more = {.size = sizeof(more), .segments = 1, .page_bytes = PAGE, .pages = 1};
    struct kvc_region *none = NULL;
    int status;
    pid_t pid;

    options.own_thread = 1;
    options.min_reserved_pages = 2;
    options.max_reserved_pages = 4;
    check_ok(kvc_open(&options, &client));
    region = open_region(client, 1, PAGE, 10);
    check_ok(map_range(region, 0, 4));
    pid = fork();
    if (pid == 0) {
        check_error(kvc_region_open(client, &more, &none), KVC_E_FORKED);
        check(!none);
        check_error(map_range(region, 4, 1), KVC_E_FORKED);
        check_error(unmap_range(region, 0, 1), KVC_E_FORKED);
        check_error(kvc_trim(client), KVC_E_FORKED);
        check_error(kvc_status(client, &kept), KVC_E_FORKED);
        check_error(kvc_dispatch(client), KVC_E_FORKED);
        check_error(kvc_get_events(client), KVC_E_FORKED);
        check_error(kvc_get_timeout(client), KVC_E_FORKED);
        check_error(kvc_get_fd(client), KVC_E_FORKED);
        check_error(kvc_device(client, &device), KVC_E_FORKED);
        check(!kvc_region_close(region));
        check(!kvc_close(client));
        /* Leak checkers don't survive a fork beside other threads. */
        _exit(0);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check_ok(map_range(region, 4, 1));
    check_ok(unmap_range(region, 0, 5));
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

TEST(callers_context_is_untouched)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct emulator *emulator = emulator_open(client);
    struct kvc_region *region;
    CUcontext current;

    check_eq(emulator->driver->cuCtxSetCurrent(NULL), CUDA_SUCCESS);
    region = open_region(client, 1, PAGE, 10);
    check_ok(map_range(region, 0, 4));
    check_ok(unmap_range(region, 0, 4));
    kvc_region_close(region);
    check_eq(emulator->driver->cuCtxGetCurrent(&current), CUDA_SUCCESS);
    check(!current);
    check_eq(emulator->driver->cuCtxSetCurrent(emulator->context), CUDA_SUCCESS);
    emulator_close(emulator);
    kvc_close(client);
    fake_stop(fake);
}
