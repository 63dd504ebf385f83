/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Stamps on a device that is an array: what the checks of a replay would say if memory were lent twice. This
 * file has its own GPU in the place of the real one.
 */

#include "stamps.h"

#include <errno.h>
#include <string.h>

#include "test.h"

#define BLOCK_BYTES 256
#define PAGE_BYTES (4 * BLOCK_BYTES)
#define N_PAGES 4
#define SEGMENTS 2

static const struct layout layout = {
    .segments = SEGMENTS, .page_bytes = PAGE_BYTES, .block_bytes = BLOCK_BYTES};

struct gpu {
    uint8_t memory[SEGMENTS * N_PAGES * PAGE_BYTES];
    int fail_with;
};

int gpu_write(struct gpu *gpu, uint64_t address, const void *from, size_t size)
{
    check(address + size <= sizeof(gpu->memory));
    memcpy(gpu->memory + address, from, size);
    return gpu->fail_with;
}

int gpu_read(struct gpu *gpu, void *to, uint64_t address, size_t size)
{
    check(address + size <= sizeof(gpu->memory));
    memcpy(to, gpu->memory + address, size);
    return gpu->fail_with;
}

static struct stamps *open_stamps(struct gpu *gpu, const char *instance)
{
    struct stamps *stamps = NULL;

    check_eq(stamps_new(gpu, &layout, 0, N_PAGES * PAGE_BYTES, 4 * N_PAGES, instance, &stamps), 0);
    return stamps;
}

static const uint32_t all[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#define N_ALL (sizeof(all) / sizeof(all[0]))

TEST(own_stamps_are_right)
{
    struct gpu gpu = {};
    _cleanup_(stamps_freep) struct stamps *stamps = open_stamps(&gpu, "one");

    check_eq(stamps_write(stamps, all, N_ALL), 0);
    check_eq(stamps_check(stamps, all, N_ALL), 0);
    check_eq(stamps_checked(stamps), N_ALL * SEGMENTS * 2);
}

TEST(memory_lent_to_two_is_found)
{
    struct gpu gpu = {};
    _cleanup_(stamps_freep) struct stamps *one = open_stamps(&gpu, "one"), *two = open_stamps(&gpu, "two");

    check_eq(stamps_write(one, all, N_ALL), 0);
    check_eq(stamps_write(two, &all[6], 1), 0);
    check_eq(stamps_check(one, all, 6), 0);
    check_eq(stamps_check(one, &all[6], 1), STAMPS_E_WRONG);
    check_str(stamps_complaint(one), "wrong stamp: one, block 6 (serial 7), start of its piece in segment 0, "
                                     "should be its own but is that of "
                                     "two, block 6 (serial 1), start of segment 0");
    check_eq(stamps_check(two, &all[6], 1), 0);
}

TEST(a_block_of_the_same_engine_that_overlaps_is_found)
{
    struct gpu gpu = {};
    _cleanup_(stamps_freep) struct stamps *stamps = open_stamps(&gpu, "one");
    size_t piece = N_PAGES * PAGE_BYTES + 2 * BLOCK_BYTES; /* of block 2 in the second segment */

    check_eq(stamps_write(stamps, all, N_ALL), 0);
    memcpy(gpu.memory + piece, gpu.memory + piece + BLOCK_BYTES, BLOCK_BYTES);
    check_eq(stamps_check(stamps, &all[2], 1), STAMPS_E_WRONG);
    check(strstr(stamps_complaint(stamps), "segment 1, should be its own but is that of one, block 3"));
}

TEST(the_last_life_of_a_block_is_found)
{
    struct gpu gpu = {}, old;
    _cleanup_(stamps_freep) struct stamps *stamps = open_stamps(&gpu, "one");

    check_eq(stamps_write(stamps, all, N_ALL), 0);
    old = gpu;
    check_eq(stamps_write(stamps, all, 1), 0);
    gpu = old;
    check_eq(stamps_check(stamps, all, 1), STAMPS_E_WRONG);
    check(strstr(stamps_complaint(stamps), "block 0 (serial 17)"));
}

TEST(cleared_memory_is_found_at_either_end)
{
    struct gpu gpu = {};
    _cleanup_(stamps_freep) struct stamps *stamps = open_stamps(&gpu, "one");

    check_eq(stamps_write(stamps, all, N_ALL), 0);
    memset(gpu.memory + BLOCK_BYTES - 1, 0, 1);
    check_eq(stamps_check(stamps, all, 1), 0); /* padding of the name */
    memset(gpu.memory + BLOCK_BYTES / 2, 0, BLOCK_BYTES / 2);
    check_eq(stamps_check(stamps, all, 1), STAMPS_E_WRONG);
    check(strstr(stamps_complaint(stamps), "end of its piece in segment 0"));
    check(strstr(stamps_complaint(stamps), "no stamp at all"));
}

TEST(a_failing_gpu_is_not_a_wrong_stamp)
{
    struct gpu gpu = {};
    _cleanup_(stamps_freep) struct stamps *stamps = open_stamps(&gpu, "one");

    gpu.fail_with = -EIO;
    check_eq(stamps_write(stamps, all, N_ALL), -EIO);
    check_eq(stamps_check(stamps, all, N_ALL), -EIO);
}

TEST(blocks_too_small_for_their_stamps)
{
    const struct layout small = {.segments = 1, .page_bytes = 64, .block_bytes = 64};
    struct stamps *stamps = NULL;
    struct gpu gpu = {};

    check_eq(stamps_new(&gpu, &small, 0, 64, 1, "one", &stamps), -EINVAL);
    check(!stamps);
}
