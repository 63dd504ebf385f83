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
    uint64_t left;     /* streams and events */
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
    report->left = stats.streams + stats.events;
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

/* ---- A life with everything that a region may want ---- */

#define PAGES 6

struct rich {
    struct life life;
    struct cuda_driver *driver;
    CUevent event;
    bool stamped[PAGES]; /* mapped, and written to */
};

/* A driver call of the test's own may be the one that fails. */
#define persist(call)                                                                                        \
    do {                                                                                                     \
        if ((call) != CUDA_SUCCESS)                                                                          \
            check_eq(call, CUDA_SUCCESS);                                                                    \
    } while (0)

/* The emulator's addresses are the host's. */
static volatile uint32_t *word(struct rich *rich, uint64_t page, unsigned segment, bool last)
{
    uint64_t address =
        kvc_region_address(rich->life.region) + segment * kvc_region_stride(rich->life.region) + page * PAGE;

    return (volatile uint32_t *)(uintptr_t)(address + (last ? PAGE - sizeof(uint32_t) : 0)); // NOLINT
}

/* What is mapped has its contents, everything else can be read. */
static void look(struct rich *rich)
{
    for (uint64_t page = 0; page < PAGES; page++)
        for (unsigned i = 0; i < 2 * SEGMENTS; i++) {
            uint32_t value = *word(rich, page, i / 2, i % 2);

            if (rich->stamped[page])
                check_eq(value, page + 1);
        }
}

static uint64_t stamped_bytes(const struct rich *rich)
{
    uint64_t n = 0;

    for (uint64_t page = 0; page < PAGES; page++)
        n += rich->stamped[page];
    return n * PAGE * SEGMENTS;
}

static void stamp_rich(struct rich *rich, uint64_t page)
{
    for (unsigned i = 0; i < 2 * SEGMENTS; i++) {
        check_eq(*word(rich, page, i / 2, i % 2), 0);
        *word(rich, page, i / 2, i % 2) = (uint32_t)page + 1;
    }
    rich->stamped[page] = true;
}

/* All or nothing, and everybody else's is left alone. */
static void change_rich(struct rich *rich, int (*call)(struct rich *, uint64_t, size_t), uint64_t first,
                        size_t n)
{
    uint64_t before = mapped(rich->life.client);

    if (failed(&rich->life, call(rich, first, n))) {
        check(mapped(rich->life.client) <= before); /* less where what was leaving has gone */
        check(mapped(rich->life.client) >= stamped_bytes(rich));
        look(rich);
        check_ok(call(rich, first, n));
    }
}

static int map_rich(struct rich *rich, uint64_t first, size_t n)
{
    return map_range(rich->life.region, first, n);
}

static int unmap_rich(struct rich *rich, uint64_t first, size_t n)
{
    return unmap_range(rich->life.region, first, n);
}

static int leave_rich(struct rich *rich, uint64_t first, size_t n)
{
    check_eq(n, 1);
    return kvc_region_unmap_after(rich->life.region, &first, 1, rich->event);
}

static void put_rich(struct rich *rich, uint64_t first, size_t n)
{
    change_rich(rich, map_rich, first, n);
    for (uint64_t page = first; page < first + n; page++)
        stamp_rich(rich, page);
    look(rich);
}

static void take_rich(struct rich *rich, int (*call)(struct rich *, uint64_t, size_t), uint64_t first,
                      size_t n)
{
    change_rich(rich, call, first, n);
    for (uint64_t page = first; page < first + n; page++)
        rich->stamped[page] = false;
    look(rich);
}

static void open_rich(struct rich *rich, struct fake *fake)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_region_options region = {.size = sizeof(region),
                                        .segments = SEGMENTS,
                                        .page_bytes = PAGE,
                                        .pages = PAGES,
                                        .flags = KVC_REGION_ZERO_ON_MAP | KVC_REGION_HOLES_ZERO};
    char error[CUDA_DRIVER_ERROR_MAX] = "";
    struct life *life = &rich->life;

    options.max_reserved_pages = 2;
    if (failed(life, kvc_open(&options, &life->client)))
        check_ok(kvc_open(&options, &life->client));
    if (failed(life, kvc_region_open(life->client, &region, &life->region)))
        check_ok(kvc_region_open(life->client, &region, &life->region));
    if (cuda_driver_load(kvc_driver_path(life->client), &rich->driver, error) < 0 &&
        cuda_driver_load(kvc_driver_path(life->client), &rich->driver, error) < 0)
        test_fail(__FILE__, __LINE__, "%s", error);
}

static void make_event(struct rich *rich)
{
    CUcontext context;

    persist(rich->driver->cuDevicePrimaryCtxRetain(&context, 0));
    persist(rich->driver->cuCtxSetCurrent(context));
    persist(rich->driver->cuEventCreate(&rich->event, CU_EVENT_DISABLE_TIMING));
    persist(rich->driver->cuEventRecord(rich->event, NULL));
}

static void drop_event(struct rich *rich)
{
    persist(rich->driver->cuEventDestroy(rich->event));
    persist(rich->driver->cuCtxSetCurrent(NULL));
    persist(rich->driver->cuDevicePrimaryCtxRelease(0));
}

/* What leaves is gone after a look, or after the next if the driver failed. */
static void pass_fences(struct rich *rich, uint64_t pages_left)
{
    for (int i = 0; i < 2 && mapped(rich->life.client) != pages_left * PAGE * SEGMENTS; i++)
        check_ok(kvc_dispatch(rich->life.client));
    check_eq(mapped(rich->life.client), pages_left * PAGE * SEGMENTS);
}

static void live_rich_with_event(struct rich *rich)
{
    struct life *life = &rich->life;

    put_rich(rich, 0, 3);
    take_rich(rich, unmap_rich, 0, 2);
    put_rich(rich, 0, 1); /* still mapped */
    put_rich(rich, 4, 2); /* one page's memory moves */
    take_rich(rich, leave_rich, 0, 1);
    take_rich(rich, leave_rich, 2, 1);
    pass_fences(rich, 2);
    check_ok(kvc_region_pin(life->region, 4, 1));
    check_error(unmap_range(life->region, 4, 2), KVC_E_PINNED);
    look(rich);
    check_ok(kvc_region_unpin(life->region, 4, 1));
    if (failed(life, kvc_region_set_stream(life->region, NULL)))
        check_ok(kvc_region_set_stream(life->region, NULL));
    take_rich(rich, leave_rich, 4, 1);
    put_rich(rich, 4, 1); /* waits for it */
    take_rich(rich, unmap_rich, 4, 1);
    if (failed(life, kvc_trim(life->client)))
        check_ok(kvc_trim(life->client));
    look(rich);
    take_rich(rich, leave_rich, 5, 1);
    put_rich(rich, 0, 2);
    take_rich(rich, unmap_rich, 0, 1);
}

/* Zeros, holes, fences and pins; closing with pages mapped, cached and leaving. */
static struct report live_rich(struct fake *fake)
{
    struct report report = {0};
    struct rich rich = {0};
    char path[256];

    open_rich(&rich, fake);
    snprintf(path, sizeof(path), "%s", kvc_driver_path(rich.life.client));
    make_event(&rich);
    live_rich_with_event(&rich);
    kvc_region_close(rich.life.region);
    drop_event(&rich);
    cuda_driver_unload(rich.driver);
    kvc_close(rich.life.client);
    take_stock(path, &report);
    report.failures = rich.life.failures;
    return report;
}

/* ---- All of them ---- */

typedef struct report (*life_fn)(struct fake *);

/* In a child of its own, since the plan of faults is read when the driver starts. */
static struct report live_with(struct fake *fake, life_fn live_one, const char *plan)
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
        report = live_one(fake);
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

static void every_call_fails(life_fn live_one, const char *error)
{
    struct fake *fake = fake_start(NULL);
    struct report whole = live_with(fake, live_one, NULL);
    uint64_t noticed = 0;

    check_eq(whole.failures, 0);
    check_eq(whole.left, 0);
    for (uint64_t nth = 1; nth <= whole.calls; nth++) {
        char plan[64];

        snprintf(plan, sizeof(plan), "*:%" PRIu64 "=%s", nth, error);
        noticed += live_with(fake, live_one, plan).failures;
    }
    /* The rest are calls of closing and of fences, which have nobody to tell and try again, or the test's. */
    check(noticed > whole.calls / 2);
    fake_stop(fake);
}

TEST_LIMIT(every_call_is_refused, 180)
{
    every_call_fails(live, "INVALID_VALUE");
}

TEST_LIMIT(every_call_is_out_of_memory, 180)
{
    every_call_fails(live, "OUT_OF_MEMORY");
}

TEST_LIMIT(every_call_of_a_rich_life_is_refused, 180)
{
    every_call_fails(live_rich, "INVALID_VALUE");
}

TEST_LIMIT(every_call_of_a_rich_life_is_out_of_memory, 180)
{
    every_call_fails(live_rich, "OUT_OF_MEMORY");
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
    while (fake_count(fake).returns == 0)
        ;
    check_eq(kvc_get_timeout(client), -1);
    check_eq(fake_count(fake).takes, 2);
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
    check_eq(fake_count(fake).takes, 2);
    check_eq(lent_bytes(fake), PAGE);
    while (kvc_trim(client) == KVC_E_DRIVER)
        ;
    check_ok(map_range(region, 0, 2));
    kvc_close(client);
    fake_stop(fake);
}
