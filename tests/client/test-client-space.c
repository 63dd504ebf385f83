/* SPDX-License-Identifier: Apache-2.0 */

/* What a region may want beside memory: zeros, and holes that don't fault. */

#include "spaceworld.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Zeros ---- */

TEST(pages_are_zero_wherever_they_come_from)
{
    struct space s = space_begin(2, KVC_REGION_ZERO_ON_MAP, 16);
    const uint64_t other = 9;

    check_ok(map_range(s.region, 0, 2));
    check_page(&s, 0, 0);
    stamp_page(&s, 0, 11);
    stamp_page(&s, 1, 12);
    check_ok(unmap_range(s.region, 0, 2));
    check_ok(map_range(s.region, 0, 1)); /* is still mapped */
    check_page(&s, 0, 0);
    check_ok(kvc_region_map(s.region, &other, 1)); /* takes page 1's memory */
    check_page(&s, 9, 0);
    check_eq(s.emulator->calls("cuMemsetD8Async"), 2 + 2 + 2);
    space_end(&s);
}

TEST(without_the_flag_nothing_is_cleared)
{
    struct space s = space_begin(2, 0, 16);

    check_ok(map_range(s.region, 0, 1));
    stamp_page(&s, 0, 11);
    check_ok(unmap_range(s.region, 0, 1));
    check_ok(map_range(s.region, 0, 1));
    check_page(&s, 0, 11);
    check_eq(s.emulator->calls("cuMemsetD8Async"), 0);
    space_end(&s);
}

TEST(a_page_that_cannot_be_cleared_is_not_mapped)
{
    struct space s;

    s = space_begin_failing("cuMemsetD8Async:2=INVALID_VALUE", 0, KVC_REGION_ZERO_ON_MAP, 16);
    check_error(map_range(s.region, 0, 3), KVC_E_DRIVER);
    check_eq(mapped(s.client), 0);
    check_eq(lent_bytes(s.fake), 0);
    check_ok(map_range(s.region, 0, 3));
    check_page(&s, 2, 0);
    space_end(&s);
}

/* The emulator breaks the context of who unmaps what a stream still clears. */
TEST(nothing_is_unmapped_while_it_is_cleared)
{
    struct kvc_region_options options = {
        .size = sizeof(options), .page_bytes = PAGE, .pages = 4, .flags = KVC_REGION_ZERO_ON_MAP};
    struct space s;
    CUstream stream;

    slow_memsets();
    s = space_join(fake_start(NULL), 1);
    check_eq(s.emulator->driver->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    options.stream = stream;
    check_ok(kvc_region_open(s.client, &options, &s.region));
    check_ok(map_range(s.region, 0, 1));
    check_eq(s.emulator->driver->cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
    check_ok(unmap_range(s.region, 0, 1)); /* stays mapped */
    check_eq(s.emulator->driver->cuStreamQuery(stream), CUDA_ERROR_NOT_READY);
    check_ok(map_range(s.region, 1, 1)); /* takes page 0's memory */
    check_ok(unmap_range(s.region, 1, 1));
    check_ok(kvc_trim(s.client));
    check_eq(s.emulator->driver->cuStreamQuery(stream), CUDA_SUCCESS);
    check(is_whole(s.emulator));
    check_ok(map_range(s.region, 0, 2));
    check(!kvc_region_close(s.region));
    check(is_whole(s.emulator));
    check_eq(s.emulator->driver->cuStreamDestroy(stream), CUDA_SUCCESS);
    space_end(&s);
}

TEST(what_was_cleared_by_a_failed_map_is_waited_for)
{
    struct space s;

    slow_memsets();
    s = space_begin_failing("cuMemsetD8Async:2=INVALID_VALUE", 0, KVC_REGION_ZERO_ON_MAP, 4);
    check_error(map_range(s.region, 0, 1), KVC_E_DRIVER);
    check_eq(lent_bytes(s.fake), 0);
    check(is_whole(s.emulator));
    space_end(&s);
}

/* What nobody can tell to be cleared is not given away. */
TEST(a_page_whose_clearing_never_ends_is_kept)
{
    struct space s;

    s = space_begin_failing("cuMemsetD8Async:2=INVALID_VALUE;cuStreamSynchronize:1=INVALID_VALUE", 0,
                            KVC_REGION_ZERO_ON_MAP, 4);
    check_error(map_range(s.region, 0, 1), KVC_E_DRIVER);
    check_eq(lent_bytes(s.fake), SEGMENTS * PAGE);
    check_eq(mapped(s.client), 0);
    check_error(map_range(s.region, 0, 1), KVC_E_DRIVER);
    check_ok(map_range(s.region, 1, 1));
    check(!kvc_region_close(s.region));
    check_eq(lent_bytes(s.fake), 0);
    space_end(&s);
}

TEST(streams_can_be_changed)
{
    struct space s;
    CUstream one, two;

    slow_memsets();
    s = space_begin(0, KVC_REGION_ZERO_ON_MAP, 4);
    check_eq(s.emulator->driver->cuStreamCreate(&one, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    check_eq(s.emulator->driver->cuStreamCreate(&two, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    check_ok(kvc_region_set_stream(s.region, one));
    check_ok(map_range(s.region, 0, 1));
    check_eq(s.emulator->driver->cuStreamQuery(one), CUDA_ERROR_NOT_READY);
    check_eq(s.emulator->driver->cuStreamQuery(NULL), CUDA_SUCCESS);
    check_ok(kvc_region_set_stream(s.region, two));
    check_eq(s.emulator->driver->cuStreamDestroy(one), CUDA_SUCCESS);
    check_ok(unmap_range(s.region, 0, 1));
    check(is_whole(s.emulator));
    check_ok(map_range(s.region, 0, 1));
    check_eq(s.emulator->driver->cuStreamQuery(two), CUDA_ERROR_NOT_READY);
    check_eq(s.emulator->driver->cuStreamDestroy(two), CUDA_SUCCESS); /* its work goes on */
    check(!kvc_region_close(s.region));
    check(is_whole(s.emulator));
    space_end(&s);
}

TEST(streams_that_cannot_be_used)
{
    struct kvc_region_options options = {.size = sizeof(options),
                                         .page_bytes = PAGE,
                                         .pages = 4,
                                         .flags = KVC_REGION_ZERO_ON_MAP,
                                         .stream = CU_STREAM_PER_THREAD};
    struct space s = space_join(fake_start(NULL), 0);

    check_error(kvc_region_open(s.client, &options, &s.region), KVC_E_INVALID);
    options.stream = CU_STREAM_LEGACY;
    options.flags |= 8;
    check_error(kvc_region_open(s.client, &options, &s.region), KVC_E_INVALID);
    options.flags = KVC_REGION_ORDERED;
    check_error(kvc_region_open(s.client, &options, &s.region), KVC_E_INVALID); /* an engine's */
    options.flags = KVC_REGION_ZERO_ON_MAP;
    check_ok(kvc_region_open(s.client, &options, &s.region));
    check_error(kvc_region_set_stream(s.region, CU_STREAM_PER_THREAD), KVC_E_INVALID);
    check_error(kvc_region_set_stream(NULL, NULL), KVC_E_INVALID);
    check_ok(map_range(s.region, 0, 1));
    space_end(&s);
}

/* ---- Holes ---- */

TEST(holes_can_be_used_and_are_one)
{
    struct space s = space_begin(0, KVC_REGION_HOLES_ZERO, 4);
    struct cuemu_stats stats;

    check_eq(lent_bytes(s.fake), 10 * MIB); /* one extent of 8 and one of 2 */
    check_eq(s.emulator->stats(&stats), 0);
    check_eq(stats.mappings, 4 * SEGMENTS * 2);
    check_page(&s, 3, 0);
    check_ok(map_range(s.region, 1, 2));
    check_eq(lent_bytes(s.fake), 10 * MIB + 2 * SEGMENTS * PAGE);
    stamp_page(&s, 1, 21);
    stamp_page(&s, 3, 99); /* into the hole */
    check_page(&s, 1, 21);
    check_page(&s, 0, 99);
    check_ok(unmap_range(s.region, 1, 1));
    check_page(&s, 1, 99);
    check_eq(s.emulator->stats(&stats), 0);
    check_eq(stats.mappings, 4 * SEGMENTS * 2);
    check(!kvc_region_close(s.region));
    check_eq(lent_bytes(s.fake), 0);
    space_end(&s);
}

TEST(each_region_has_its_own_zero_page)
{
    struct space s = space_begin(0, KVC_REGION_HOLES_ZERO, 2);
    struct space other = s;

    other.region = open_with(s.client, KVC_REGION_HOLES_ZERO, 2);
    stamp_page(&s, 0, 7);
    check_page(&s, 1, 7);
    check_page(&other, 0, 0);
    space_end(&s);
}

TEST(holes_are_charged)
{
    const struct kvc_region_options options = {
        .size = sizeof(options), .page_bytes = PAGE, .pages = 4, .flags = KVC_REGION_HOLES_ZERO};
    struct space s = space_join(fake_start(NULL), 0);
    struct cuemu_stats stats;

    fake_set_limit(s.fake, 8 * MIB);
    check_error(kvc_region_open(s.client, &options, &s.region), KVC_E_LIMIT);
    check_eq(s.emulator->stats(&stats), 0);
    check_eq(stats.mappings, 0);
    check_eq(stats.reservations, 0);
    space_end(&s);
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
    struct space s;

    slow_memsets();
    s = space_begin(0, KVC_REGION_HOLES_ZERO, 4);
    check_eq(s.emulator->driver->cuStreamQuery(NULL), CUDA_SUCCESS);
    check_eq(s.emulator->calls("cuMemsetD8Async"), 1);
    check(!kvc_region_close(s.region));
    check(is_whole(s.emulator));
    space_end(&s);
}

/* The second unmap of page 1's hole fails, and then the first segment's cannot be put back. */
TEST(a_hole_that_is_torn_breaks_its_page)
{
    struct space s;

    s = space_begin_failing("cuMemUnmap:2=INVALID_VALUE;cuMemMap:18=INVALID_VALUE", 0, KVC_REGION_HOLES_ZERO,
                            4);
    check_eq(s.emulator->calls("cuMemMap"), 4 * SEGMENTS * 2);
    check_error(map_range(s.region, 1, 1), KVC_E_DRIVER);
    check_eq(lent_bytes(s.fake), 10 * MIB);
    check_error(map_range(s.region, 1, 1), KVC_E_DRIVER);
    check(strstr(kvc_last_error(), "unusable"));
    check_ok(map_range(s.region, 2, 2));
    check_page(&s, 0, 0);
    check_ok(unmap_range(s.region, 2, 2));
    check_page(&s, 3, 0);
    check(!kvc_region_close(s.region));
    space_end(&s);
}

/* Memory is moved from a free page to another, whose own hole cannot be restored at first. */
TEST(a_hole_gets_a_second_try)
{
    struct space s;

    /* 16 for the holes, 4 for the page. */
    s = space_begin_failing("cuMemMap:21=INVALID_VALUE", 1, KVC_REGION_HOLES_ZERO, 4);
    check_ok(map_range(s.region, 0, 1));
    check_ok(unmap_range(s.region, 0, 1));
    check_error(map_range(s.region, 1, 1), KVC_E_DRIVER);
    check_page(&s, 0, 0);
    check_page(&s, 1, 0);
    check_ok(map_range(s.region, 0, 2));
    space_end(&s);
}
