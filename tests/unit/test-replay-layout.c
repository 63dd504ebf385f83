/* SPDX-License-Identifier: Apache-2.0 */
#include "layout.h"

#include "base/arith.h"
#include "test.h"

TEST(a_block_to_a_page)
{
    struct layout l;

    check(layout_make(model_find("llama-3.1-8b"), false, 0, 2 * MIB, &l));
    check_eq(l.segments, 1);
    check_eq(l.block_bytes, 2 * MIB);
    check_eq(layout_page_total(&l), 2 * MIB);
    check_eq(layout_blocks(&l, 7), 7);
    check_eq(layout_offset(&l, 0, 5, 0), 10 * MIB);
}

TEST(a_segment_for_each_layer)
{
    const uint64_t stride = 64 * MIB;
    struct layout l;

    check(layout_make(model_find("llama-3.1-8b"), true, 0, 2 * MIB, &l));
    check_eq(l.segments, 32);
    check_eq(l.block_bytes, 64 * KIB);
    check_eq(layout_page_total(&l), 64 * MIB);
    check_eq(layout_blocks(&l, 2), 64);
    /* the second block of the third page, in the fourth segment */
    check_eq(layout_offset(&l, stride, 2 * 32 + 1, 3), 3 * stride + 4 * MIB + 64 * KIB);
}

TEST(pages_hold_whole_blocks)
{
    struct layout l;

    check(layout_make(model_find("qwen2.5-7b"), false, 0, 2 * MIB, &l));
    check_eq(l.block_bytes, 896 * KIB);
    check_eq(l.page_bytes, 14 * MIB);
    check_eq(layout_blocks(&l, 1), 16);
    check_eq(layout_offset(&l, 0, 17, 0), 14 * MIB + 896 * KIB);
    check(layout_make(model_find("qwen2.5-7b"), false, 28 * MIB, 2 * MIB, &l));
    check_eq(layout_blocks(&l, 1), 32);
}

TEST(layouts_that_cannot_be)
{
    struct layout l = {.segments = 42};

    check(!layout_make(model_find("llama-3.1-8b"), false, 3 * MIB, 2 * MIB, &l));
    check(!layout_make(model_find("qwen2.5-7b"), false, 8 * MIB, 2 * MIB, &l)); /* 9 blocks and a part */
    check(!layout_make(model_find("qwen2.5-7b"), false, 7 * MIB, 2 * MIB, &l));
    check_eq(l.segments, 42);
}
