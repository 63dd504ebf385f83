/* SPDX-License-Identifier: Apache-2.0 */

/* What a region may want beside memory: zeros, holes that don't fault, time for the GPU, pins. */

#include "support.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE (10 * MIB) /* 8 + 2 */
#define SEGMENTS 2

static struct kvc_region *open_with(struct kvc_client *client, uint32_t flags, uint64_t pages)
{
    const struct kvc_region_options options = {
        .size = sizeof(options),
        .segments = SEGMENTS,
        .page_bytes = PAGE,
        .pages = pages,
        .flags = flags,
    };
    struct kvc_region *region;

    check_ok(kvc_region_open(client, &options, &region));
    return region;
}

static void stamp_page(struct emulator *emulator, struct kvc_region *region, uint64_t page, uint32_t value)
{
    for (unsigned segment = 0; segment < SEGMENTS; segment++)
        stamp(emulator, region, PAGE, segment, page, value);
}

static void check_page(struct emulator *emulator, struct kvc_region *region, uint64_t page, uint32_t value)
{
    for (unsigned segment = 0; segment < SEGMENTS; segment++)
        check_stamp(emulator, region, PAGE, segment, page, value);
}

static uint64_t mapped(struct kvc_client *client)
{
    struct kvc_status status = {.size = sizeof(status)};

    check_ok(kvc_status(client, &status));
    return status.mapped_bytes / (PAGE * SEGMENTS);
}

static void finish(struct fake *fake, struct kvc_client *client, struct emulator *emulator)
{
    emulator_close(emulator);
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

/* ---- Zeros ---- */

TEST(pages_are_zero_wherever_they_come_from)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 0, 2, 0);
    struct kvc_region *region = open_with(client, KVC_REGION_ZERO_ON_MAP, 16);
    struct emulator *emulator = emulator_open(client);
    const uint64_t other = 9;

    check_ok(map_range(region, 0, 2));
    check_page(emulator, region, 0, 0);
    stamp_page(emulator, region, 0, 11);
    stamp_page(emulator, region, 1, 12);
    check_ok(unmap_range(region, 0, 2));
    check_ok(map_range(region, 0, 1)); /* is still mapped */
    check_page(emulator, region, 0, 0);
    check_ok(kvc_region_map(region, &other, 1)); /* takes page 1's memory */
    check_page(emulator, region, 9, 0);
    check_eq(emulator->calls("cuMemsetD8Async"), 2 + 2 + 2);
    finish(fake, client, emulator);
}

TEST(without_the_flag_nothing_is_cleared)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 0, 2, 0);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);

    check_ok(map_range(region, 0, 1));
    stamp_page(emulator, region, 0, 11);
    check_ok(unmap_range(region, 0, 1));
    check_ok(map_range(region, 0, 1));
    check_page(emulator, region, 0, 11);
    check_eq(emulator->calls("cuMemsetD8Async"), 0);
    finish(fake, client, emulator);
}

TEST(a_page_that_cannot_be_cleared_is_not_mapped)
{
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct fake *fake;

    check_eq(setenv("KVCACHED_EMULATE_FAULTS", "cuMemsetD8Async:2=INVALID_VALUE", 1), 0);
    fake = fake_start(NULL);
    client = open_plain(fake);
    region = open_with(client, KVC_REGION_ZERO_ON_MAP, 16);
    emulator = emulator_open(client);
    check_error(map_range(region, 0, 3), KVC_E_DRIVER);
    check_eq(mapped(client), 0);
    check_eq(lent_bytes(fake), 0);
    check_ok(map_range(region, 0, 3));
    check_page(emulator, region, 2, 0);
    finish(fake, client, emulator);
}

/* A memset takes its stream so long that nobody comes too late to look. */
static void slow_memsets(void)
{
    char path[256];
    FILE *file;

    snprintf(path, sizeof(path), "%s/costs", test_folder());
    file = fopen(path, "we");
    check(file && fputs("cuMemset call:300000\n", file) >= 0 && fclose(file) == 0);
    check_eq(setenv("KVCACHED_EMULATE_COSTS", path, 1), 0);
}

static bool is_whole(struct emulator *emulator)
{
    return emulator->driver->cuCtxSynchronize() == CUDA_SUCCESS;
}

/* The emulator breaks the context of who unmaps what a stream still clears. */
TEST(nothing_is_unmapped_while_it_is_cleared)
{
    struct kvc_region_options options = {
        .size = sizeof(options), .page_bytes = PAGE, .pages = 4, .flags = KVC_REGION_ZERO_ON_MAP};
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct fake *fake;
    CUstream stream;

    slow_memsets();
    fake = fake_start(NULL);
    client = open_caching(fake, 0, 1, 0);
    emulator = emulator_open(client);
    check_eq(emulator->driver->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    options.stream = stream;
    check_ok(kvc_region_open(client, &options, &region));
    check_ok(map_range(region, 0, 1));
    check_eq(emulator->driver->cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
    check_ok(unmap_range(region, 0, 1)); /* stays mapped */
    check_eq(emulator->driver->cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
    check_ok(map_range(region, 1, 1)); /* takes page 0's memory */
    check_ok(unmap_range(region, 1, 1));
    check_ok(kvc_trim(client));
    check_eq(emulator->driver->cuStreamQuery(stream), CUDA_SUCCESS);
    check(is_whole(emulator));
    check_ok(map_range(region, 0, 2));
    check(!kvc_region_close(region));
    check(is_whole(emulator));
    check_eq(emulator->driver->cuStreamDestroy(stream), CUDA_SUCCESS);
    finish(fake, client, emulator);
}

TEST(what_was_cleared_by_a_failed_map_is_waited_for)
{
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct fake *fake;

    slow_memsets();
    check_eq(setenv("KVCACHED_EMULATE_FAULTS", "cuMemsetD8Async:2=INVALID_VALUE", 1), 0);
    fake = fake_start(NULL);
    client = open_plain(fake);
    region = open_with(client, KVC_REGION_ZERO_ON_MAP, 4);
    emulator = emulator_open(client);
    check_error(map_range(region, 0, 1), KVC_E_DRIVER);
    check_eq(lent_bytes(fake), 0);
    check(is_whole(emulator));
    finish(fake, client, emulator);
}

/* What nobody can tell to be cleared is not given away. */
TEST(a_page_whose_clearing_never_ends_is_kept)
{
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct fake *fake;

    check_eq(setenv("KVCACHED_EMULATE_FAULTS",
                    "cuMemsetD8Async:2=INVALID_VALUE;cuStreamSynchronize:1=INVALID_VALUE", 1),
             0);
    fake = fake_start(NULL);
    client = open_plain(fake);
    region = open_with(client, KVC_REGION_ZERO_ON_MAP, 4);
    emulator = emulator_open(client);
    check_error(map_range(region, 0, 1), KVC_E_DRIVER);
    check_eq(lent_bytes(fake), SEGMENTS * PAGE);
    check_eq(mapped(client), 0);
    check_error(map_range(region, 0, 1), KVC_E_DRIVER);
    check_ok(map_range(region, 1, 1));
    check(!kvc_region_close(region));
    check_eq(lent_bytes(fake), 0);
    finish(fake, client, emulator);
}

TEST(streams_can_be_changed)
{
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct fake *fake;
    CUstream one, two;

    slow_memsets();
    fake = fake_start(NULL);
    client = open_plain(fake);
    region = open_with(client, KVC_REGION_ZERO_ON_MAP, 4);
    emulator = emulator_open(client);
    check_eq(emulator->driver->cuStreamCreate(&one, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    check_eq(emulator->driver->cuStreamCreate(&two, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    check_ok(kvc_region_set_stream(region, one));
    check_ok(map_range(region, 0, 1));
    check_eq(emulator->driver->cuStreamQuery(one), CUDA_ERROR_NOT_READY);
    check_eq(emulator->driver->cuStreamQuery(NULL), CUDA_SUCCESS);
    check_ok(kvc_region_set_stream(region, two));
    check_eq(emulator->driver->cuStreamDestroy(one), CUDA_SUCCESS);
    check_ok(unmap_range(region, 0, 1));
    check(is_whole(emulator));
    check_ok(map_range(region, 0, 1));
    check_eq(emulator->driver->cuStreamQuery(two), CUDA_ERROR_NOT_READY);
    check_eq(emulator->driver->cuStreamDestroy(two), CUDA_SUCCESS); /* its work goes on */
    check(!kvc_region_close(region));
    check(is_whole(emulator));
    finish(fake, client, emulator);
}

TEST(streams_that_cannot_be_used)
{
    struct kvc_region_options options = {.size = sizeof(options),
                                         .page_bytes = PAGE,
                                         .pages = 4,
                                         .flags = KVC_REGION_ZERO_ON_MAP,
                                         .stream = CU_STREAM_PER_THREAD};
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct emulator *emulator = emulator_open(client);
    struct kvc_region *region;

    check_error(kvc_region_open(client, &options, &region), KVC_E_INVALID);
    options.stream = CU_STREAM_LEGACY;
    options.flags |= 8;
    check_error(kvc_region_open(client, &options, &region), KVC_E_INVALID);
    options.flags = KVC_REGION_ORDERED;
    check_error(kvc_region_open(client, &options, &region), KVC_E_INVALID); /* an engine's */
    options.flags = KVC_REGION_ZERO_ON_MAP;
    check_ok(kvc_region_open(client, &options, &region));
    check_error(kvc_region_set_stream(region, CU_STREAM_PER_THREAD), KVC_E_INVALID);
    check_error(kvc_region_set_stream(NULL, NULL), KVC_E_INVALID);
    check_ok(map_range(region, 0, 1));
    finish(fake, client, emulator);
}

/* ---- Holes ---- */

TEST(holes_can_be_used_and_are_one)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, KVC_REGION_HOLES_ZERO, 4);
    struct emulator *emulator = emulator_open(client);
    struct cuemu_stats stats;

    check_eq(lent_bytes(fake), 10 * MIB); /* one extent of 8 and one of 2 */
    check_eq(emulator->stats(&stats), 0);
    check_eq(stats.mappings, 4 * SEGMENTS * 2);
    check_page(emulator, region, 3, 0);
    check_ok(map_range(region, 1, 2));
    check_eq(lent_bytes(fake), 10 * MIB + 2 * SEGMENTS * PAGE);
    stamp_page(emulator, region, 1, 21);
    stamp_page(emulator, region, 3, 99); /* into the hole */
    check_page(emulator, region, 1, 21);
    check_page(emulator, region, 0, 99);
    check_ok(unmap_range(region, 1, 1));
    check_page(emulator, region, 1, 99);
    check_eq(emulator->stats(&stats), 0);
    check_eq(stats.mappings, 4 * SEGMENTS * 2);
    check(!kvc_region_close(region));
    check_eq(lent_bytes(fake), 0);
    finish(fake, client, emulator);
}

TEST(each_region_has_its_own_zero_page)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *one = open_with(client, KVC_REGION_HOLES_ZERO, 2);
    struct kvc_region *two = open_with(client, KVC_REGION_HOLES_ZERO, 2);
    struct emulator *emulator = emulator_open(client);

    stamp_page(emulator, one, 0, 7);
    check_page(emulator, one, 1, 7);
    check_page(emulator, two, 0, 0);
    finish(fake, client, emulator);
}

TEST(holes_are_charged)
{
    const struct kvc_region_options options = {
        .size = sizeof(options), .page_bytes = PAGE, .pages = 4, .flags = KVC_REGION_HOLES_ZERO};
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct emulator *emulator = emulator_open(client);
    struct kvc_region *region;
    struct cuemu_stats stats;

    fake_set_limit(fake, 8 * MIB);
    check_error(kvc_region_open(client, &options, &region), KVC_E_LIMIT);
    check_eq(emulator->stats(&stats), 0);
    check_eq(stats.mappings, 0);
    check_eq(stats.reservations, 0);
    finish(fake, client, emulator);
}

/* Each driver call fails once, at every index: what was a hole is one, what was mapped is mapped. */
static bool holes_life(struct fake *fake)
{
    struct kvc_client *client = open_plain(fake);
    const struct kvc_region_options options = {
        .size = sizeof(options), .page_bytes = PAGE, .pages = 4, .flags = KVC_REGION_HOLES_ZERO};
    struct kvc_region *region;
    struct cuemu_stats stats;
    struct emulator *emulator;
    unsigned failures = 0;
    int r;

    r = kvc_region_open(client, &options, &region);
    failures += r < 0;
    if (r < 0)
        check_ok(kvc_region_open(client, &options, &region));
    emulator = emulator_open(client);
    r = map_range(region, 1, 2);
    failures += r < 0;
    if (r < 0)
        check_ok(map_range(region, 1, 2));
    stamp(emulator, region, PAGE, 0, 2, 5);
    r = unmap_range(region, 1, 1);
    failures += r < 0;
    if (r < 0)
        check_ok(unmap_range(region, 1, 1));
    check_stamp(emulator, region, PAGE, 0, 2, 5);
    check_stamp(emulator, region, PAGE, 0, 1, 0);
    check_stamp(emulator, region, PAGE, 0, 0, 0);
    check_eq(emulator->stats(&stats), 0);
    check_eq(stats.mappings, 4 * 2);
    kvc_region_close(region);
    check_eq(emulator->stats(&stats), 0);
    check_eq(stats.mappings, 0);
    check_eq(lent_bytes(fake), 0);
    emulator_close(emulator);
    kvc_close(client);
    check(failures <= 1);
    return failures > 0;
}

static bool holes_with(const char *function, unsigned at)
{
    struct fake *fake;
    char plan[64];
    int status;
    pid_t pid;

    snprintf(plan, sizeof(plan), "%s:%u=INVALID_VALUE", function, at);
    fake = fake_start(NULL);
    fflush(NULL);
    pid = fork();
    check(pid >= 0);
    if (pid == 0) {
        check_eq(setenv("KVCACHED_EMULATE_FAULTS", plan, 1), 0);
        exit(holes_life(fake));
    }
    check_eq(waitpid(pid, &status, 0), pid);
    fake_stop(fake);
    check(WIFEXITED(status));
    check(WEXITSTATUS(status) <= 1);
    return WEXITSTATUS(status) == 1;
}

TEST_LIMIT(holes_survive_every_failure, 110)
{
    static const struct {
        const char *function;
        unsigned calls;
    } calls[] = {{"cuMemMap", 14},
                 {"cuMemSetAccess", 6},
                 {"cuMemUnmap", 3},
                 {"cuMemsetD8Async", 1},
                 {"cuStreamSynchronize", 1}};
    unsigned failures = 0;

    for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
        for (unsigned at = 1; at <= calls[i].calls; at++)
            failures += holes_with(calls[i].function, at);
    check(failures >= 20);
}

/* Opening clears the zero page before anybody can look, whatever stream he looks from; and once. */
TEST(holes_are_cleared_before_the_region_is_there)
{
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct fake *fake;

    slow_memsets();
    fake = fake_start(NULL);
    client = open_plain(fake);
    emulator = emulator_open(client);
    region = open_with(client, KVC_REGION_HOLES_ZERO, 4);
    check_eq(emulator->driver->cuStreamQuery(NULL), CUDA_SUCCESS);
    check_eq(emulator->calls("cuMemsetD8Async"), 1);
    check(!kvc_region_close(region));
    check(is_whole(emulator));
    finish(fake, client, emulator);
}

/* The second unmap of page 1's hole fails, and then the first segment's cannot be put back. */
TEST(a_hole_that_is_torn_breaks_its_page)
{
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct fake *fake;

    check_eq(setenv("KVCACHED_EMULATE_FAULTS", "cuMemUnmap:2=INVALID_VALUE;cuMemMap:18=INVALID_VALUE", 1), 0);
    fake = fake_start(NULL);
    client = open_plain(fake);
    region = open_with(client, KVC_REGION_HOLES_ZERO, 4);
    emulator = emulator_open(client);
    check_eq(emulator->calls("cuMemMap"), 4 * SEGMENTS * 2);
    check_error(map_range(region, 1, 1), KVC_E_DRIVER);
    check_eq(lent_bytes(fake), 10 * MIB);
    check_error(map_range(region, 1, 1), KVC_E_DRIVER);
    check(strstr(kvc_last_error(), "unusable"));
    check_ok(map_range(region, 2, 2));
    check_page(emulator, region, 0, 0);
    check_ok(unmap_range(region, 2, 2));
    check_page(emulator, region, 3, 0);
    check(!kvc_region_close(region));
    finish(fake, client, emulator);
}

/* Memory is moved from a free page to another, whose own hole cannot be restored at first. */
TEST(a_hole_gets_a_second_try)
{
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct fake *fake;

    /* 16 for the holes, 4 for the page. */
    check_eq(setenv("KVCACHED_EMULATE_FAULTS", "cuMemMap:21=INVALID_VALUE", 1), 0);
    fake = fake_start(NULL);
    client = open_caching(fake, 0, 1, 0);
    region = open_with(client, KVC_REGION_HOLES_ZERO, 4);
    emulator = emulator_open(client);
    check_ok(map_range(region, 0, 1));
    check_ok(unmap_range(region, 0, 1));
    check_error(map_range(region, 1, 1), KVC_E_DRIVER);
    check_page(emulator, region, 0, 0);
    check_page(emulator, region, 1, 0);
    check_ok(map_range(region, 0, 2));
    finish(fake, client, emulator);
}

/* ---- Fences ---- */

struct gpu_time {
    CUstream stream;
    CUevent event;
};

static struct gpu_time record(struct emulator *emulator)
{
    struct gpu_time t;

    check_eq(emulator->driver->cuStreamCreate(&t.stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    check_eq(emulator->driver->cuEventCreate(&t.event, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
    check_eq(emulator->driver->cuEventRecord(t.event, t.stream), CUDA_SUCCESS);
    return t;
}

static void forget(struct emulator *emulator, struct gpu_time t)
{
    check_eq(emulator->driver->cuEventDestroy(t.event), CUDA_SUCCESS);
    check_eq(emulator->driver->cuStreamDestroy(t.stream), CUDA_SUCCESS);
}

static int unmap_after(struct kvc_region *region, uint64_t page, struct gpu_time t)
{
    return kvc_region_unmap_after(region, &page, 1, t.event);
}

static struct fake *start_late(const char *faults)
{
    check_eq(setenv("KVCACHED_EMULATE_FAULTS", faults, 1), 0);
    return fake_start(NULL);
}

static struct kvc_client *open_late(struct fake *fake, const char *faults)
{
    check_eq(setenv("KVCACHED_EMULATE_FAULTS", faults, 1), 0);
    return open_plain(fake);
}

TEST(pages_leave_when_the_gpu_has_come_so_far)
{
    struct fake *fake = start_late("cuEventQuery:1-4=NOT_READY");
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);
    struct gpu_time t = record(emulator);

    check_ok(map_range(region, 0, 2));
    check_ok(unmap_after(region, 0, t));
    forget(emulator, t);
    check_error(unmap_range(region, 0, 1), KVC_E_NOT_MAPPED);
    stamp_page(emulator, region, 0, 4); /* the GPU still writes there */
    for (unsigned i = 0; i < 3; i++) {
        check_ok(kvc_dispatch(client));
        check_eq(lent_bytes(fake), 2 * SEGMENTS * PAGE);
    }
    check_page(emulator, region, 0, 4);
    check_ok(kvc_dispatch(client));
    check_eq(lent_bytes(fake), SEGMENTS * PAGE);
    check_eq(mapped(client), 1);
    finish(fake, client, emulator);
}

TEST(who_needs_the_memory_waits_for_the_gpu)
{
    struct fake *fake = start_late("cuEventQuery:1+=NOT_READY");
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);
    struct gpu_time t = record(emulator);

    check_ok(map_range(region, 0, 2));
    check_ok(unmap_after(region, 0, t));
    fake_set_limit(fake, 2 * SEGMENTS * PAGE);
    check_ok(map_range(region, 5, 1)); /* only page 0's memory is left for it */
    check_eq(emulator->calls("cuEventSynchronize"), 1);
    check_eq(mapped(client), 2);
    check_ok(unmap_after(region, 1, t));
    check_ok(map_range(region, 1, 1)); /* the page itself */
    check_eq(emulator->calls("cuEventSynchronize"), 2);
    check_ok(unmap_after(region, 5, t));
    check_ok(kvc_trim(client));
    check_eq(mapped(client), 1);
    check_ok(unmap_after(region, 1, t));
    check(!kvc_region_close(region));
    check_eq(lent_bytes(fake), 0);
    forget(emulator, t);
    finish(fake, client, emulator);
}

/* The second page cannot be unmapped in the first segment, nor mapped again in the second: it is lost. The
 * first is mapped again, and goes on leaving. */
TEST(a_page_that_breaks_leaves_its_fence)
{
    struct fake *fake = start_late("cuMemUnmap:2=INVALID_VALUE;cuMemMap:13=INVALID_VALUE");
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);
    struct gpu_time t = record(emulator);
    const uint64_t pages[] = {0, 2};

    check_ok(kvc_region_map(region, pages, 2));
    check_eq(emulator->calls("cuMemMap"), 2 * SEGMENTS * 2);
    stamp_page(emulator, region, 0, 6);
    check_ok(kvc_region_unmap_after(region, pages, 2, t.event));
    forget(emulator, t);
    check_ok(kvc_dispatch(client));
    check_eq(mapped(client), 1);
    check_page(emulator, region, 0, 6);
    check_error(unmap_range(region, 0, 1), KVC_E_NOT_MAPPED); /* but passes the fence */
    check_eq(mapped(client), 0);
    check_error(map_range(region, 2, 1), KVC_E_DRIVER);
    check_ok(map_range(region, 0, 1));
    check(!kvc_region_close(region));
    finish(fake, client, emulator);
}

/* Caches, and pages that leave when their region ends. */
TEST(pages_that_leave_go_to_the_caches)
{
    struct fake *fake = start_late("cuEventQuery:1=NOT_READY");
    struct kvc_client *client = open_caching(fake, 0, 4, 0);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);
    struct gpu_time t = record(emulator);

    check_ok(map_range(region, 0, 2));
    stamp_page(emulator, region, 0, 3);
    check_ok(unmap_after(region, 0, t));
    check_ok(kvc_dispatch(client));
    check_eq(mapped(client), 2);
    check_ok(kvc_dispatch(client));
    check_eq(mapped(client), 1);
    check_eq(emulator->calls("cuMemUnmap"), 0);
    check_ok(map_range(region, 0, 1));
    check_page(emulator, region, 0, 3);
    check_ok(unmap_after(region, 1, t));
    forget(emulator, t);
    finish(fake, client, emulator);
}

struct trimmer {
    pthread_t thread;
    struct kvc_client *client;
};

static void *trim(void *data)
{
    struct trimmer *trimmer = data;

    check_ok(kvc_trim(trimmer->client));
    return NULL;
}

/* Others wait for its fence when a region is closed. */
TEST(a_region_ends_while_its_fence_is_waited_for)
{
    struct trimmer trimmers[3];
    struct kvc_client *client;
    struct kvc_region *region;
    struct emulator *emulator;
    struct gpu_time t;
    struct fake *fake;

    slow_memsets();
    fake = fake_start(NULL);
    client = open_plain(fake);
    region = open_with(client, 0, 16);
    emulator = emulator_open(client);
    check_ok(map_range(region, 0, 2));
    check_eq(emulator->driver->cuStreamCreate(&t.stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    check_eq(emulator->driver->cuEventCreate(&t.event, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
    check_eq(emulator->driver->cuMemsetD8Async(kvc_region_address(region), 1, PAGE, t.stream), CUDA_SUCCESS);
    check_eq(emulator->driver->cuEventRecord(t.event, t.stream), CUDA_SUCCESS);
    check_ok(unmap_after(region, 0, t));
    forget(emulator, t);
    for (size_t i = 0; i < ARRAY_SIZE(trimmers); i++) {
        trimmers[i].client = client;
        check_eq(pthread_create(&trimmers[i].thread, NULL, trim, &trimmers[i]), 0);
    }
    while (emulator->calls("cuEventSynchronize") < ARRAY_SIZE(trimmers))
        ;
    check(!kvc_region_close(region));
    for (size_t i = 0; i < ARRAY_SIZE(trimmers); i++)
        check_eq(pthread_join(trimmers[i].thread, NULL), 0);
    check(is_whole(emulator));
    check_eq(mapped(client), 0);
    finish(fake, client, emulator);
}

TEST(what_cannot_leave)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);
    const uint64_t pages[] = {0, 3};
    struct gpu_time t = record(emulator);

    check_ok(map_range(region, 0, 1));
    check_error(kvc_region_unmap_after(region, pages, 2, t.event), KVC_E_NOT_MAPPED);
    check_error(kvc_region_unmap_after(region, pages, 1, NULL), KVC_E_INVALID);
    check_error(kvc_region_unmap_after(NULL, pages, 1, t.event), KVC_E_INVALID);
    check_eq(mapped(client), 1);
    check_ok(unmap_range(region, 0, 1));
    forget(emulator, t);
    finish(fake, client, emulator);
}

TEST(a_fence_that_cannot_be_made_changes_nothing)
{
    static const char *const functions[] = {"cuStreamCreate", "cuEventCreate", "cuStreamWaitEvent",
                                            "cuEventRecord"};

    for (size_t i = 0; i < ARRAY_SIZE(functions); i++) {
        static struct fake *fake; /* which the child need not free */
        char plan[64];
        int status;
        pid_t pid;

        /* The test's own call is the first, where it makes one. */
        snprintf(plan, sizeof(plan), "%s:%d=OUT_OF_MEMORY", functions[i], i == 2 ? 1 : 2);
        fake = fake_start(NULL);
        fflush(NULL);
        pid = fork();
        if (pid == 0) {
            struct kvc_client *client = open_late(fake, plan);
            struct kvc_region *region = open_with(client, 0, 16);
            struct emulator *emulator = emulator_open(client);
            struct gpu_time t = record(emulator);

            check_ok(map_range(region, 0, 1));
            check_error(unmap_after(region, 0, t), KVC_E_DRIVER);
            check_ok(unmap_after(region, 0, t));
            check_ok(kvc_trim(client));
            check_eq(mapped(client), 0);
            forget(emulator, t);
            emulator_close(emulator);
            kvc_close(client);
            exit(0);
        }
        check_eq(waitpid(pid, &status, 0), pid);
        fake_stop(fake);
        check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

/* ---- Pins ---- */

TEST(pinned_pages_stay)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 0, 4, 0);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);
    const uint64_t pages[] = {0, 1, 2};
    struct gpu_time t = record(emulator);

    check_ok(map_range(region, 0, 3));
    check_ok(kvc_region_pin(region, 1, 1));
    check_ok(kvc_region_pin(region, 0, 2));
    check_error(kvc_region_unmap(region, pages, 3), KVC_E_PINNED);
    check_eq(mapped(client), 3);
    check_error(kvc_region_unmap_after(region, pages, 2, t.event), KVC_E_PINNED);
    check_ok(unmap_range(region, 2, 1));
    check_ok(kvc_region_unpin(region, 0, 2));
    check_ok(unmap_range(region, 0, 1));
    check_error(unmap_range(region, 1, 1), KVC_E_PINNED);
    check_ok(kvc_region_unpin(region, 1, 1));
    check_ok(unmap_range(region, 1, 1));
    forget(emulator, t);
    finish(fake, client, emulator);
}

TEST(pins_are_all_or_nothing)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);

    check_ok(map_range(region, 0, 2));
    check_error(kvc_region_pin(region, 0, 3), KVC_E_NOT_MAPPED);
    check_error(kvc_region_pin(region, 15, 2), KVC_E_INVALID);
    check_error(kvc_region_pin(region, 1, UINT64_MAX), KVC_E_INVALID);
    check_error(kvc_region_unpin(region, 0, 1), KVC_E_INVALID);
    check_error(kvc_region_pin(NULL, 0, 1), KVC_E_INVALID);
    check_ok(unmap_range(region, 0, 2));
    check_ok(map_range(region, 0, 1));
    check_ok(kvc_region_pin(region, 0, 1));
    check(!kvc_region_close(region)); /* the end of the pin, too */
    check_eq(lent_bytes(fake), 0);
    finish(fake, client, emulator);
}

/* The daemon sees how many pages can't be had; each once, however often it is pinned. */
TEST(the_daemon_is_told_what_is_pinned)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true});
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, 0, 16);
    struct emulator *emulator = emulator_open(client);

    check_ok(map_range(region, 0, 3));
    check_ok(kvc_region_pin(region, 0, 3));
    check_ok(kvc_region_pin(region, 1, 1));
    check_eq(fake_count(fake).pinned, 3);
    check_ok(kvc_region_unpin(region, 0, 2));
    check_eq(fake_count(fake).pinned, 2);
    check_ok(kvc_region_unpin(region, 1, 2));
    check_eq(fake_count(fake).pinned, 0);
    finish(fake, client, emulator);
}

TEST(pinned_pages_keep_their_blocks_pages)
{
    const struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = PAGE};
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, 0, 4);
    struct emulator *emulator = emulator_open(client);
    struct kvc_blocks *blocks;
    uint32_t ids[2];

    check_ok(kvc_blocks_open(&region, 1, &options, &blocks));
    check_ok(kvc_blocks_alloc(blocks, 2, ids));
    check_ok(kvc_region_pin(region, kvc_blocks_page_of(blocks, ids[0]), 1));
    check_ok(kvc_blocks_free(blocks, ids, 2, 0));
    check_eq(mapped(client), 1);
    check_ok(kvc_blocks_trim(blocks));
    check_eq(mapped(client), 1);
    check_ok(kvc_region_unpin(region, kvc_blocks_page_of(blocks, ids[0]), 1));
    check_ok(kvc_blocks_trim(blocks));
    check_eq(mapped(client), 0);
    kvc_blocks_close(blocks);
    finish(fake, client, emulator);
}

struct trim_call {
    pthread_t thread;
    struct kvc_blocks *blocks;
};

static void *trim_blocks(void *data)
{
    struct trim_call *call = data;

    check_ok(kvc_blocks_trim(call->blocks));
    return NULL;
}

/* The page is on its way out of both regions, and has left one; the daemon is slow to confirm that. */
TEST(a_page_that_is_taken_from_its_blocks_cannot_be_pinned)
{
    const struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = PAGE};
    struct kvc_blocks_status status = {.size = sizeof(status)};
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 0, 4, 0);
    struct kvc_region *regions[2] = {open_with(client, 0, 4), open_with(client, 0, 4)};
    struct emulator *emulator = emulator_open(client);
    struct trim_call call;
    uint32_t id;

    check_ok(kvc_blocks_open(regions, 2, &options, &call.blocks));
    check_ok(kvc_blocks_alloc(call.blocks, 1, &id));
    check_ok(kvc_blocks_free(call.blocks, &id, 1, 0));
    check_eq(mapped(client), 2);
    check_eq(kill(fake_pid(fake), SIGSTOP), 0);
    check_eq(pthread_create(&call.thread, NULL, trim_blocks, &call), 0);
    while (mapped(client) == 2)
        ;
    check_error(kvc_region_pin(regions[1], 0, 1), KVC_E_NOT_MAPPED);
    check_eq(kill(fake_pid(fake), SIGCONT), 0);
    check_eq(pthread_join(call.thread, NULL), 0);
    check_eq(mapped(client), 0);
    check_ok(kvc_blocks_status(call.blocks, &status));
    check_eq(status.broken_pages + status.pinned_pages, 0);
    kvc_blocks_close(call.blocks);
    finish(fake, client, emulator);
}

/* ---- Layouts ---- */

TEST(layouts)
{
    struct kvc_layout layout = {.size = sizeof(layout), .layers = 36, .kv_buffers = 2, .contiguous = -1};
    struct kvc_region_options options = {.size = sizeof(options), .pages = 7};

    check_ok(kvc_layout_region(&layout, &options));
    check_eq(options.segments, 1);
    check_eq(options.page_bytes, 144 * MIB);
    check_eq(options.pages, 7);
    setenv("KVCACHED_CONTIGUOUS_LAYOUT", "no", 1);
    setenv("KVCACHED_PAGE_SIZE_MB", "4", 1);
    check_ok(kvc_layout_region(&layout, &options));
    check_eq(options.segments, 72);
    check_eq(options.page_bytes, 4 * MIB);
    layout.contiguous = 1;
    layout.page_bytes = 2 * MIB;
    check_ok(kvc_layout_region(&layout, &options));
    check_eq(options.segments, 1);
    check_eq(options.page_bytes, 144 * MIB);
    setenv("KVCACHED_PAGE_SIZE_MB", "3", 1);
    check_error(kvc_layout_region(&layout, &options), KVC_E_ENVIRONMENT);
    check(strstr(kvc_last_error(), "KVCACHED_PAGE_SIZE_MB"));
    setenv("KVCACHED_PAGE_SIZE_MB", "2", 1);
    setenv("KVCACHED_CONTIGUOUS_LAYOUT", "sideways", 1);
    check_error(kvc_layout_region(&layout, &options), KVC_E_ENVIRONMENT);
    unsetenv("KVCACHED_CONTIGUOUS_LAYOUT");
    layout.layers = 0;
    check_error(kvc_layout_region(&layout, &options), KVC_E_INVALID);
    layout.size = 1;
    check_error(kvc_layout_region(&layout, &options), KVC_E_INVALID);
}

/* ---- Fork ---- */

TEST(fork_makes_handles_useless)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_with(client, KVC_REGION_HOLES_ZERO, 4);
    struct emulator *emulator = emulator_open(client);
    struct gpu_time t = record(emulator);
    const uint64_t page = 0;
    int status;
    pid_t pid;

    check_ok(map_range(region, 0, 1));
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        check_error(kvc_region_pin(region, 0, 1), KVC_E_FORKED);
        check_error(kvc_region_unpin(region, 0, 1), KVC_E_FORKED);
        check_error(kvc_region_set_stream(region, NULL), KVC_E_FORKED);
        check_error(kvc_region_unmap_after(region, &page, 1, t.event), KVC_E_FORKED);
        check(!kvc_region_close(region));
        check(!kvc_close(client));
        _exit(0);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    forget(emulator, t);
    finish(fake, client, emulator);
}
