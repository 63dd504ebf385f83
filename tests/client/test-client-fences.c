/* SPDX-License-Identifier: Apache-2.0 */

/* What a page that is to leave waits for: the GPU, which may still be at it, and whoever has pinned it. */

#include "spaceworld.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

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

TEST(pages_leave_when_the_gpu_has_come_so_far)
{
    struct space s = space_begin_failing("cuEventQuery:1-4=NOT_READY", 0, 0, 16);
    struct gpu_time t = record(s.emulator);

    check_ok(map_range(s.region, 0, 2));
    check_ok(unmap_after(s.region, 0, t));
    forget(s.emulator, t);
    check_error(unmap_range(s.region, 0, 1), KVC_E_NOT_MAPPED);
    stamp_page(&s, 0, 4); /* the GPU still writes there */
    for (unsigned i = 0; i < 3; i++) {
        check_ok(kvc_dispatch(s.client));
        check_eq(lent_bytes(s.fake), 2 * SEGMENTS * PAGE);
    }
    check_page(&s, 0, 4);
    check_ok(kvc_dispatch(s.client));
    check_eq(lent_bytes(s.fake), SEGMENTS * PAGE);
    check_eq(mapped(s.client), 1);
    space_end(&s);
}

TEST(who_needs_the_memory_waits_for_the_gpu)
{
    struct space s = space_begin_failing("cuEventQuery:1+=NOT_READY", 0, 0, 16);
    struct gpu_time t = record(s.emulator);

    check_ok(map_range(s.region, 0, 2));
    check_ok(unmap_after(s.region, 0, t));
    fake_set_limit(s.fake, 2 * SEGMENTS * PAGE);
    check_ok(map_range(s.region, 5, 1)); /* only page 0's memory is left for it */
    check_eq(s.emulator->calls("cuEventSynchronize"), 1);
    check_eq(mapped(s.client), 2);
    check_ok(unmap_after(s.region, 1, t));
    check_ok(map_range(s.region, 1, 1)); /* the page itself */
    check_eq(s.emulator->calls("cuEventSynchronize"), 2);
    check_ok(unmap_after(s.region, 5, t));
    check_ok(kvc_trim(s.client));
    check_eq(mapped(s.client), 1);
    check_ok(unmap_after(s.region, 1, t));
    check(!kvc_region_close(s.region));
    check_eq(lent_bytes(s.fake), 0);
    forget(s.emulator, t);
    space_end(&s);
}

/* The second page cannot be unmapped in the first segment, nor mapped again in the second: it is lost. The
 * first is mapped again, and goes on leaving. */
TEST(a_page_that_breaks_leaves_its_fence)
{
    struct space s = space_begin_failing("cuMemUnmap:2=INVALID_VALUE;cuMemMap:13=INVALID_VALUE", 0, 0, 16);
    struct gpu_time t = record(s.emulator);
    const uint64_t pages[] = {0, 2};

    check_ok(kvc_region_map(s.region, pages, 2));
    check_eq(s.emulator->calls("cuMemMap"), 2 * SEGMENTS * 2);
    stamp_page(&s, 0, 6);
    check_ok(kvc_region_unmap_after(s.region, pages, 2, t.event));
    forget(s.emulator, t);
    check_ok(kvc_dispatch(s.client));
    check_eq(mapped(s.client), 1);
    check_page(&s, 0, 6);
    check_error(unmap_range(s.region, 0, 1), KVC_E_NOT_MAPPED); /* but passes the fence */
    check_eq(mapped(s.client), 0);
    check_error(map_range(s.region, 2, 1), KVC_E_DRIVER);
    check_ok(map_range(s.region, 0, 1));
    check(!kvc_region_close(s.region));
    space_end(&s);
}

/* Caches, and pages that leave when their region ends. */
TEST(pages_that_leave_go_to_the_caches)
{
    struct space s = space_begin_failing("cuEventQuery:1=NOT_READY", 4, 0, 16);
    struct gpu_time t = record(s.emulator);

    check_ok(map_range(s.region, 0, 2));
    stamp_page(&s, 0, 3);
    check_ok(unmap_after(s.region, 0, t));
    check_ok(kvc_dispatch(s.client));
    check_eq(mapped(s.client), 2);
    check_ok(kvc_dispatch(s.client));
    check_eq(mapped(s.client), 1);
    check_eq(s.emulator->calls("cuMemUnmap"), 0);
    check_ok(map_range(s.region, 0, 1));
    check_page(&s, 0, 3);
    check_ok(unmap_after(s.region, 1, t));
    forget(s.emulator, t);
    space_end(&s);
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
    struct space s;
    struct trimmer trimmers[3];
    struct gpu_time t;

    slow_memsets();
    s = space_begin(0, 0, 16);
    check_ok(map_range(s.region, 0, 2));
    check_eq(s.emulator->driver->cuStreamCreate(&t.stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    check_eq(s.emulator->driver->cuEventCreate(&t.event, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
    check_eq(s.emulator->driver->cuMemsetD8Async(kvc_region_address(s.region), 1, PAGE, t.stream),
             CUDA_SUCCESS);
    check_eq(s.emulator->driver->cuEventRecord(t.event, t.stream), CUDA_SUCCESS);
    check_ok(unmap_after(s.region, 0, t));
    forget(s.emulator, t);
    for (size_t i = 0; i < ARRAY_SIZE(trimmers); i++) {
        trimmers[i].client = s.client;
        check_eq(pthread_create(&trimmers[i].thread, NULL, trim, &trimmers[i]), 0);
    }
    while (s.emulator->calls("cuEventSynchronize") < ARRAY_SIZE(trimmers))
        ;
    check(!kvc_region_close(s.region));
    for (size_t i = 0; i < ARRAY_SIZE(trimmers); i++)
        check_eq(pthread_join(trimmers[i].thread, NULL), 0);
    check(is_whole(s.emulator));
    check_eq(mapped(s.client), 0);
    space_end(&s);
}

TEST(what_cannot_leave)
{
    struct space s = space_begin(0, 0, 16);
    const uint64_t pages[] = {0, 3};
    struct gpu_time t = record(s.emulator);

    check_ok(map_range(s.region, 0, 1));
    check_error(kvc_region_unmap_after(s.region, pages, 2, t.event), KVC_E_NOT_MAPPED);
    check_error(kvc_region_unmap_after(s.region, pages, 1, NULL), KVC_E_INVALID);
    check_error(kvc_region_unmap_after(NULL, pages, 1, t.event), KVC_E_INVALID);
    check_eq(mapped(s.client), 1);
    check_ok(unmap_range(s.region, 0, 1));
    forget(s.emulator, t);
    space_end(&s);
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
            struct space s;
            struct gpu_time t;

            check_eq(setenv("KVCACHED_EMULATE_FAULTS", plan, 1), 0);
            s = space_join(fake, 0);
            s.region = open_with(s.client, 0, 16);
            t = record(s.emulator);
            check_ok(map_range(s.region, 0, 1));
            check_error(unmap_after(s.region, 0, t), KVC_E_DRIVER);
            check_ok(unmap_after(s.region, 0, t));
            check_ok(kvc_trim(s.client));
            check_eq(mapped(s.client), 0);
            forget(s.emulator, t);
            emulator_close(s.emulator);
            kvc_close(s.client);
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
    struct space s = space_begin(4, 0, 16);
    const uint64_t pages[] = {0, 1, 2};
    struct gpu_time t = record(s.emulator);

    check_ok(map_range(s.region, 0, 3));
    check_ok(kvc_region_pin(s.region, 1, 1));
    check_ok(kvc_region_pin(s.region, 0, 2));
    check_error(kvc_region_unmap(s.region, pages, 3), KVC_E_PINNED);
    check_eq(mapped(s.client), 3);
    check_error(kvc_region_unmap_after(s.region, pages, 2, t.event), KVC_E_PINNED);
    check_ok(unmap_range(s.region, 2, 1));
    check_ok(kvc_region_unpin(s.region, 0, 2));
    check_ok(unmap_range(s.region, 0, 1));
    check_error(unmap_range(s.region, 1, 1), KVC_E_PINNED);
    check_ok(kvc_region_unpin(s.region, 1, 1));
    check_ok(unmap_range(s.region, 1, 1));
    forget(s.emulator, t);
    space_end(&s);
}

TEST(pins_are_all_or_nothing)
{
    struct space s = space_begin(0, 0, 16);

    check_ok(map_range(s.region, 0, 2));
    check_error(kvc_region_pin(s.region, 0, 3), KVC_E_NOT_MAPPED);
    check_error(kvc_region_pin(s.region, 15, 2), KVC_E_INVALID);
    check_error(kvc_region_pin(s.region, 1, UINT64_MAX), KVC_E_INVALID);
    check_error(kvc_region_unpin(s.region, 0, 1), KVC_E_INVALID);
    check_error(kvc_region_pin(NULL, 0, 1), KVC_E_INVALID);
    check_ok(unmap_range(s.region, 0, 2));
    check_ok(map_range(s.region, 0, 1));
    check_ok(kvc_region_pin(s.region, 0, 1));
    check(!kvc_region_close(s.region)); /* the end of the pin, too */
    check_eq(lent_bytes(s.fake), 0);
    space_end(&s);
}

/* The daemon sees how many pages can't be had; each once, however often it is pinned. */
TEST(the_daemon_is_told_what_is_pinned)
{
    struct space s = space_join(fake_start(&(struct fake_settings){.leases = true}), 0);

    s.region = open_with(s.client, 0, 16);
    check_ok(map_range(s.region, 0, 3));
    check_ok(kvc_region_pin(s.region, 0, 3));
    check_ok(kvc_region_pin(s.region, 1, 1));
    check_eq(fake_count(s.fake).pinned, 3);
    check_ok(kvc_region_unpin(s.region, 0, 2));
    check_eq(fake_count(s.fake).pinned, 2);
    check_ok(kvc_region_unpin(s.region, 1, 2));
    check_eq(fake_count(s.fake).pinned, 0);
    space_end(&s);
}

TEST(pinned_pages_keep_their_blocks_pages)
{
    const struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = PAGE};
    struct space s = space_begin(0, 0, 4);
    struct kvc_blocks *blocks;
    uint32_t ids[2];

    check_ok(kvc_blocks_open(&s.region, 1, &options, &blocks));
    check_ok(kvc_blocks_alloc(blocks, 2, ids));
    check_ok(kvc_region_pin(s.region, kvc_blocks_page_of(blocks, ids[0]), 1));
    check_ok(kvc_blocks_free(blocks, ids, 2, 0));
    check_eq(mapped(s.client), 1);
    check_ok(kvc_blocks_trim(blocks));
    check_eq(mapped(s.client), 1);
    check_ok(kvc_region_unpin(s.region, kvc_blocks_page_of(blocks, ids[0]), 1));
    check_ok(kvc_blocks_trim(blocks));
    check_eq(mapped(s.client), 0);
    kvc_blocks_close(blocks);
    space_end(&s);
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
    struct space s = space_begin(4, 0, 4);
    struct kvc_region *regions[2] = {s.region, open_with(s.client, 0, 4)};
    struct trim_call call;
    uint32_t id;

    check_ok(kvc_blocks_open(regions, 2, &options, &call.blocks));
    check_ok(kvc_blocks_alloc(call.blocks, 1, &id));
    check_ok(kvc_blocks_free(call.blocks, &id, 1, 0));
    check_eq(mapped(s.client), 2);
    check_eq(kill(fake_pid(s.fake), SIGSTOP), 0);
    check_eq(pthread_create(&call.thread, NULL, trim_blocks, &call), 0);
    while (mapped(s.client) == 2)
        ;
    check_error(kvc_region_pin(regions[1], 0, 1), KVC_E_NOT_MAPPED);
    check_eq(kill(fake_pid(s.fake), SIGCONT), 0);
    check_eq(pthread_join(call.thread, NULL), 0);
    check_eq(mapped(s.client), 0);
    check_ok(kvc_blocks_status(call.blocks, &status));
    check_eq(status.broken_pages + status.pinned_pages, 0);
    kvc_blocks_close(call.blocks);
    space_end(&s);
}

/* ---- Fork ---- */

TEST(fork_makes_handles_useless)
{
    struct space s = space_begin(0, KVC_REGION_HOLES_ZERO, 4);
    struct gpu_time t = record(s.emulator);
    const uint64_t page = 0;
    int status;
    pid_t pid;

    check_ok(map_range(s.region, 0, 1));
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        check_error(kvc_region_pin(s.region, 0, 1), KVC_E_FORKED);
        check_error(kvc_region_unpin(s.region, 0, 1), KVC_E_FORKED);
        check_error(kvc_region_set_stream(s.region, NULL), KVC_E_FORKED);
        check_error(kvc_region_unmap_after(s.region, &page, 1, t.event), KVC_E_FORKED);
        check(!kvc_region_close(s.region));
        check(!kvc_close(s.client));
        _exit(0);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    forget(s.emulator, t);
    space_end(&s);
}
