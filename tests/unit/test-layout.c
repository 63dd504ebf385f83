/* SPDX-License-Identifier: Apache-2.0 */
#include "layout.h"

#include "base/arith.h"
#include "test.h"

TEST(all_layers_together)
{
    const struct layout layout = {36, 2, 2 * MIB, true};
    uint64_t segments, page_bytes;

    check_eq(layout_shape(&layout, &segments, &page_bytes), 0);
    check_eq(segments, 1);
    check_eq(page_bytes, 144 * MIB);
}

TEST(a_segment_for_each_layer_and_buffer)
{
    const struct layout layout = {36, 2, 2 * MIB, false};
    uint64_t segments, page_bytes;

    check_eq(layout_shape(&layout, &segments, &page_bytes), 0);
    check_eq(segments, 72);
    check_eq(page_bytes, 2 * MIB);
}

TEST(one_buffer)
{
    const struct layout layout = {27, 1, 4 * MIB, true};
    uint64_t segments, page_bytes;

    check_eq(layout_shape(&layout, &segments, &page_bytes), 0);
    check_eq(segments, 1);
    check_eq(page_bytes, 108 * MIB);
}

TEST(layouts_that_cannot_be)
{
    uint64_t segments = 42, page_bytes = 42;

    check_eq(layout_shape(&(struct layout){0, 2, MIB, true}, &segments, &page_bytes), LAYOUT_E_LAYERS);
    check_eq(layout_shape(&(struct layout){1, 0, MIB, true}, &segments, &page_bytes), LAYOUT_E_BUFFERS);
    check_eq(layout_shape(&(struct layout){1, 3, MIB, true}, &segments, &page_bytes), LAYOUT_E_BUFFERS);
    check_eq(layout_shape(&(struct layout){1, 1, 0, true}, &segments, &page_bytes), LAYOUT_E_PAGE);
    check_eq(layout_shape(&(struct layout){UINT64_MAX, 2, MIB, false}, &segments, &page_bytes),
             LAYOUT_E_SPACE);
    check_eq(segments, 42);
    check_eq(page_bytes, 42);
}
