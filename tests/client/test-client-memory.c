/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Each allocation of host memory in a short life fails once, at every index. A call says that it is out of
 * memory, has changed nothing, and succeeds when it is made again; or, where a message of the daemon's could
 * not be taken in, the connection ends. Nothing crashes, and the driver holds nothing of ours at the end.
 *
 * The linker puts the functions below in the place of the C library's, for the code of the library only.
 */

#include "region.h"
#include "support.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE (10 * MIB)

static uint64_t n_allocations, fail_at; /* 0: none */

static bool is_to_fail(void)
{
    return ++n_allocations == fail_at;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
char *__real_strdup(const char *text);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
char *__wrap_strdup(const char *text);

void *__wrap_malloc(size_t size)
{
    return is_to_fail() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return is_to_fail() ? NULL : __real_calloc(n, size);
}

char *__wrap_strdup(const char *text)
{
    return is_to_fail() ? NULL : __real_strdup(text);
}

struct life {
    struct kvc_client *client;
    struct kvc_region *region;
    unsigned failures;
    bool over; /* the connection */
};

/* True when the call is to be made again. */
static bool failed(struct life *life, int r)
{
    if (r == 0)
        return false;
    life->failures++;
    check(strlen(kvc_last_error()) > 10);
    if (r == KVC_E_DISCONNECTED)
        life->over = true;
    else
        check_error(r, KVC_E_NOMEM);
    return r == KVC_E_NOMEM;
}

static void change(struct life *life, int (*call)(struct kvc_region *, const uint64_t *, size_t),
                   uint64_t first, size_t n)
{
    uint64_t pages[8];

    for (size_t i = 0; i < n; i++)
        pages[i] = first + i;
    if (!life->over && failed(life, call(life->region, pages, n)))
        check_ok(call(life->region, pages, n));
}

static void open_both(struct life *life, struct fake *fake)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_region_options region = {
        .size = sizeof(region), .segments = 2, .page_bytes = PAGE, .pages = 8};

    options.max_reserved_pages = 2;
    options.min_reserved_pages = 1;
    if (failed(life, kvc_open(&options, &life->client)) || !life->client)
        check_ok(kvc_open(&options, &life->client));
    life->over = false;
    if (failed(life, kvc_region_open(life->client, &region, &life->region)))
        check_ok(kvc_region_open(life->client, &region, &life->region));
}

static void check_nothing_left(const char *driver_path)
{
    void *library = dlopen(driver_path, RTLD_NOW | RTLD_NOLOAD);
    __typeof__(&cuemuGetStats) get_stats = (__typeof__(get_stats))dlsym(library, "cuemuGetStats");
    struct cuemu_stats stats;

    check_eq(get_stats(&stats), 0);
    check_eq(stats.handles, 0);
    check_eq(stats.mappings, 0);
    check_eq(stats.reservations, 0);
    dlclose(library);
}

static void dispatch(struct life *life)
{
    int r = life->over ? 0 : kvc_dispatch(life->client);

    check(r == 0 || r == KVC_E_DISCONNECTED);
    life->over |= r != 0;
}

static struct life live(struct fake *fake)
{
    struct life life = {0};
    char path[256];

    open_both(&life, fake);
    snprintf(path, sizeof(path), "%s", kvc_driver_path(life.client));
    if (life.region) {
        change(&life, kvc_region_map, 0, 4);
        dispatch(&life);
        change(&life, kvc_region_unmap, 1, 3);
        change(&life, kvc_region_map, 5, 3);
        dispatch(&life);
        if (!life.over && failed(&life, kvc_trim(life.client)))
            check_ok(kvc_trim(life.client));
    }
    kvc_region_close(life.region);
    kvc_close(life.client);
    check_nothing_left(path);
    return life;
}

struct report {
    uint64_t allocations;
    unsigned failures;
};

/* ---- A scheduler's ---- */

#define RANKS 2
#define EACH 5 /* blocks in a page */

struct crew {
    struct life life;
    struct fake *fake;
    struct kvc_client *clients[RANKS];
    struct kvc_region *regions[RANKS];
    struct kvc_blocks *blocks;
};

/* What the daemon has set aside is in the lease words, to the page: nothing is on its way. */
static void check_leases(struct crew *crew)
{
    struct fake_counts counts;
    uint64_t pages = 0;

    counts = fake_count(crew->fake);
    for (int i = 0; i < RANKS; i++) {
        struct lease lease = lease_of(crew->regions[i]);

        pages += lease.claimed + (uint64_t)lease.offered;
    }
    if (!crew->life.over)
        check_eq(pages, counts.issued);
}

static void attach(struct crew *crew, int i)
{
    struct kvc_options options = plain_options(crew->fake);

    options.role = KVC_ROLE_SCHEDULER;
    if (failed(&crew->life, kvc_open(&options, &crew->clients[i])) || !crew->clients[i])
        check_ok(kvc_open(&options, &crew->clients[i]));
    crew->life.over = false;
    while (!crew->life.over &&
           failed(&crew->life, kvc_region_attach(crew->clients[i], 0, (uint32_t)i, 0, &crew->regions[i])))
        ;
}

static void take_and_give(struct crew *crew)
{
    struct life *life = &crew->life;
    uint32_t ids[3 * EACH];

    while (!life->over && failed(life, kvc_blocks_want(crew->blocks, 2 * EACH, -1, NULL)))
        check_leases(crew);
    while (!life->over && failed(life, kvc_blocks_alloc(crew->blocks, 3 * EACH, ids)))
        check_leases(crew);
    check_leases(crew);
    if (life->over)
        return;
    check_ok(kvc_blocks_free(crew->blocks, ids, 3 * EACH, 0));
    while (failed(life, kvc_blocks_trim(crew->blocks)))
        check_leases(crew);
}

static struct life order(struct fake *fake)
{
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = 2 * MIB / EACH};
    struct crew crew = {.fake = fake};
    bool over = false;

    for (int i = 0; i < RANKS; i++) {
        attach(&crew, i);
        over |= crew.life.over;
    }
    crew.life.over = over;
    if (!over && failed(&crew.life, kvc_blocks_open(crew.regions, RANKS, &options, &crew.blocks)))
        check_ok(kvc_blocks_open(crew.regions, RANKS, &options, &crew.blocks));
    if (crew.blocks)
        take_and_give(&crew);
    kvc_blocks_close(crew.blocks);
    for (int i = 0; i < RANKS; i++)
        kvc_close(crew.clients[i]);
    return crew.life;
}

/* ---- Each allocation ---- */

static struct report live_without(struct fake *fake, struct life (*run)(struct fake *fake), uint64_t nth)
{
    struct report report = {0};
    int status, fds[2];
    pid_t pid;

    check_eq(pipe(fds), 0);
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        n_allocations = 0;
        fail_at = nth;
        report.failures = run(fake).failures;
        report.allocations = n_allocations;
        check_eq(write(fds[1], &report, sizeof(report)), sizeof(report));
        exit(0);
    }
    close(fds[1]);
    check_eq(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        test_fail(__FILE__, __LINE__, "without allocation %" PRIu64, nth);
    check_eq(read(fds[0], &report, sizeof(report)), sizeof(report));
    close(fds[0]);
    while (lent_bytes(fake) > 0)
        ;
    return report;
}

static void fail_each(struct fake *fake, struct life (*run)(struct fake *fake))
{
    struct report whole = live_without(fake, run, 0);
    unsigned noticed = 0;

    check_eq(whole.failures, 0);
    check(whole.allocations > 40);
    for (uint64_t nth = 1; nth <= whole.allocations; nth++)
        noticed += live_without(fake, run, nth).failures;
    check(noticed > whole.allocations / 2);
    fake_stop(fake);
}

TEST_LIMIT(every_allocation_fails, 180)
{
    fail_each(fake_start(NULL), live);
}

TEST_LIMIT(every_allocation_of_a_scheduler_fails, 180)
{
    fail_each(fake_start(&(struct fake_settings){.orders = true, .leases = true, .even = true}), order);
}
