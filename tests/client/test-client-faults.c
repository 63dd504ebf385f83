/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Each driver call of a short life fails once, at every index. The call of the library that it belongs to
 * must fail as a whole: what was mapped is mapped, what was not is not, and doing the same again succeeds. At
 * the end the driver holds nothing of ours, and the daemon has everything back.
 */

#include "support.h"

#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE (10 * MIB)
#define SEGMENTS 2

struct life {
    struct kvc_client *client;
    struct kvc_region *region;
    unsigned failures;
};

static uint64_t mapped(struct kvc_client *client)
{
    struct kvc_status status = {.size = sizeof(status)};

    check_ok(kvc_status(client, &status));
    return status.mapped_bytes;
}

/* Once more after a failure of the driver; any other failure is one of ours. */
static bool failed(struct life *life, int r)
{
    if (r == 0)
        return false;
    if (r != KVC_E_NOSPACE)
        check_error(r, KVC_E_DRIVER);
    check(strlen(kvc_last_error()) > 10);
    check(++life->failures == 1);
    return true;
}

static void change(struct life *life, int (*call)(struct kvc_region *, uint64_t, size_t), uint64_t first,
                   size_t n)
{
    uint64_t before = mapped(life->client), difference = n * PAGE * SEGMENTS;

    if (failed(life, call(life->region, first, n))) {
        check_eq(mapped(life->client), before);
        check_ok(call(life->region, first, n));
    }
    check_eq(mapped(life->client), call == map_range ? before + difference : before - difference);
}

static void open_both(struct life *life, struct fake *fake)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_region_options region = {
        .size = sizeof(region), .segments = SEGMENTS, .page_bytes = PAGE, .pages = 12};

    options.max_reserved_pages = 2;
    if (failed(life, kvc_open(&options, &life->client)))
        check_ok(kvc_open(&options, &life->client));
    if (failed(life, kvc_region_open(life->client, &region, &life->region)))
        check_ok(kvc_region_open(life->client, &region, &life->region));
}

/* What a life tells its parent. */
struct report {
    uint64_t calls;
    unsigned failures; /* that the library reported */
};

static void take_stock(const char *driver_path, struct report *report)
{
    void *library = dlopen(driver_path, RTLD_NOW | RTLD_NOLOAD);
    __typeof__(&cuemuGetStats) get_stats = (__typeof__(get_stats))dlsym(library, "cuemuGetStats");
    __typeof__(&cuemuGetCalls) get_calls = (__typeof__(get_calls))dlsym(library, "cuemuGetCalls");
    struct cuemu_stats stats;

#define CUDA_FUNCTION(name, symbol, parameters) report->calls += get_calls(#name);
#include "cuda/driver.def"
#undef CUDA_FUNCTION
    check_eq(get_stats(&stats), 0);
    check_eq(stats.handles, 0);
    check_eq(stats.mappings, 0);
    check_eq(stats.reservations, 0);
    dlclose(library);
}

/* Fresh pages, cached ones, stolen ones; eviction, trimming, closing with pages mapped and cached. */
static struct report live(struct fake *fake)
{
    struct report report = {0};
    struct life life = {0};
    char path[256];

    open_both(&life, fake);
    snprintf(path, sizeof(path), "%s", kvc_driver_path(life.client));
    change(&life, map_range, 0, 4);
    change(&life, unmap_range, 1, 1);
    change(&life, map_range, 1, 1);
    change(&life, map_range, 6, 2);
    change(&life, unmap_range, 0, 4);
    change(&life, map_range, 8, 3);
    change(&life, unmap_range, 6, 2);
    if (failed(&life, kvc_trim(life.client)))
        check_ok(kvc_trim(life.client));
    change(&life, unmap_range, 9, 1);
    kvc_region_close(life.region);
    kvc_close(life.client);
    take_stock(path, &report);
    report.failures = life.failures;
    return report;
}

/* In a child of its own, since the plan of faults is read when the driver starts. */
static struct report live_with(struct fake *fake, const char *plan)
{
    struct report report = {0};
    int status, fds[2];
    pid_t pid;

    check_eq(pipe(fds), 0);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        if (plan)
            setenv("KVCACHED_EMULATE_FAULTS", plan, 1);
        report = live(fake);
        check_eq(write(fds[1], &report, sizeof(report)), sizeof(report));
        exit(0);
    }
    close(fds[1]);
    check_eq(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        test_fail(__FILE__, __LINE__, "with the fault %s", plan);
    check_eq(read(fds[0], &report, sizeof(report)), sizeof(report));
    close(fds[0]);
    check_eq(lent_bytes(fake), 0);
    return report;
}

static void every_call_fails(const char *error)
{
    struct fake *fake = fake_start(NULL);
    struct report whole = live_with(fake, NULL);
    uint64_t noticed = 0;

    check_eq(whole.failures, 0);
    for (uint64_t nth = 1; nth <= whole.calls; nth++) {
        char plan[64];

        snprintf(plan, sizeof(plan), "*:%" PRIu64 "=%s", nth, error);
        noticed += live_with(fake, plan).failures;
    }
    /* The rest are calls of closing, which has nobody to tell, and tries again. */
    check(noticed > whole.calls / 2);
    fake_stop(fake);
}

TEST_LIMIT(every_call_is_refused, 180)
{
    every_call_fails("INVALID_VALUE");
}

TEST_LIMIT(every_call_is_out_of_memory, 180)
{
    every_call_fails("OUT_OF_MEMORY");
}

static struct fake_counts count(struct fake *fake)
{
    struct fake_counts counts;

    fake_count(fake, &counts);
    return counts;
}

/* The driver takes one page, and then nothing any more. A reserve is not asked for again and again then,
 * though the status page shows something else each time that the daemon has its memory back. */
TEST(refill_that_fails_is_not_repeated)
{
    struct fake *fake = fake_start(NULL);
    struct pollfd pfd = {.events = POLLIN};
    struct kvc_client *client;
    struct kvc_region *region;

    check_eq(setenv("KVCACHED_EMULATE_FAULTS", "cuMemImportFromShareableHandle:3+=INVALID_VALUE", 1), 0);
    client = open_caching(fake, 2, 4, 0);
    region = open_region(client, 1, PAGE, 12);
    check_ok(map_range(region, 0, 1));
    check_eq(kvc_get_timeout(client), 0);
    check_ok(kvc_dispatch(client));
    pfd.fd = kvc_get_fd(client);
    check_eq(poll(&pfd, 1, -1), 1);
    check_eq(kill(fake_pid(fake), SIGSTOP), 0);
    check_ok(kvc_dispatch(client));
    check_eq(kill(fake_pid(fake), SIGCONT), 0);
    while (count(fake).returns == 0)
        ;
    check_eq(kvc_get_timeout(client), -1);
    check_eq(count(fake).takes, 2);
    check_eq(lent_bytes(fake), PAGE);
    kvc_close(client);
    fake_stop(fake);
}

/* A reserve that the driver doesn't let go of is no reason to ask the daemon for ever. */
TEST(reserve_that_cannot_go)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client;
    struct kvc_region *region, *other;

    check_eq(setenv("KVCACHED_EMULATE_FAULTS", "cuMemUnmap:1-50=INVALID_VALUE", 1), 0);
    client = open_caching(fake, 0, 4, 0);
    region = open_region(client, 1, PAGE, 12);
    other = open_region(client, 1, PAGE, 12);
    check_ok(map_range(other, 0, 1));
    check_ok(unmap_range(other, 0, 1));
    fake_set_limit(fake, 2 * PAGE);
    check_error(map_range(region, 0, 2), KVC_E_LIMIT);
    check_eq(count(fake).takes, 2);
    check_eq(lent_bytes(fake), PAGE);
    while (kvc_trim(client) == KVC_E_DRIVER)
        ;
    check_ok(map_range(region, 0, 2));
    kvc_close(client);
    fake_stop(fake);
}
