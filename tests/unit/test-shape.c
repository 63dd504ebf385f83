/* SPDX-License-Identifier: Apache-2.0 */
#include "shape.h"

#include <string.h>

#include "base/arith.h"
#include "test.h"

static const uint64_t classes[] = {2 * MIB, 8 * MIB, 32 * MIB, 128 * MIB};

static struct shape *make(struct shape_request request)
{
    struct shape *shape = NULL;

    check_eq(shape_new(&request, 2 * MIB, classes, 4, &shape), 0);
    return shape;
}

static void refuse(struct shape_request request, int error)
{
    struct shape *shape = NULL;

    check_eq(shape_new(&request, 2 * MIB, classes, 4, &shape), error);
    check(!shape);
}

TEST(one_segment)
{
    struct shape *shape = make((struct shape_request){.pages = 10, .page_bytes = 2 * MIB});

    check_eq(shape->segments, 1);
    check_eq(shape->stride_bytes, 20 * MIB);
    check_eq(shape->total_bytes, 20 * MIB);
    check_eq(shape->slot_bytes, 2 * MIB);
    check_eq(shape->n_slots, 1);
    check_eq(shape->class_counts[0], 1);
    check_eq(shape_offset(shape, 7, 0), 14 * MIB);
    shape_free(shape);
}

/* 144 MiB = 128 + 8 + 8, in each of two segments with a gap between them. */
TEST(largest_first)
{
    struct shape *shape = make((struct shape_request){
        .segments = 2, .pages = 3, .page_bytes = 144 * MIB, .stride_bytes = 512 * MIB});

    check_eq(shape->n_parts, 3);
    check_eq(shape->n_slots, 6);
    check_eq(shape->class_counts[3], 2);
    check_eq(shape->class_counts[2], 0);
    check_eq(shape->class_counts[1], 4);
    check_eq(shape->class_counts[0], 0);
    check_eq(shape->total_bytes, GIB);
    check_eq(shape->slot_bytes, 288 * MIB);
    check_eq(shape_offset(shape, 0, 1), 128 * MIB);
    check_eq(shape_offset(shape, 2, 5), 512 * MIB + 2 * 144 * MIB + 136 * MIB);
    check_eq(shape_slot_bytes(shape, 3), 128 * MIB);
    check_eq(shape_slot_bytes(shape, 5), 8 * MIB);
    shape_free(shape);
}

TEST(listed)
{
    static const uint64_t order[] = {8 * MIB, 2 * MIB, 8 * MIB};
    struct shape *shape = make(
        (struct shape_request){.pages = 3, .page_bytes = 18 * MIB, .extent_bytes = order, .n_extents = 3});

    check_eq(shape_offset(shape, 1, 2), 28 * MIB);
    check_eq(shape_slot_bytes(shape, 1), 2 * MIB);
    check_eq(shape->class_counts[1], 2);
    shape_free(shape);
}

TEST(refusals)
{
    static const uint64_t odd[] = {4 * MIB}, eight[] = {8 * MIB}, huge[] = {128 * MIB, 128 * MIB};

    refuse((struct shape_request){.pages = 1, .page_bytes = 0}, SHAPE_E_PAGE);
    refuse((struct shape_request){.pages = 1, .page_bytes = 3 * MIB}, SHAPE_E_PAGE);
    refuse((struct shape_request){.pages = 0, .page_bytes = 2 * MIB}, SHAPE_E_CAPACITY);
    refuse((struct shape_request){.pages = 1, .page_bytes = 2 * MIB, .segments = 4097}, SHAPE_E_SEGMENTS);
    refuse((struct shape_request){.pages = 4, .page_bytes = 2 * MIB, .stride_bytes = 6 * MIB},
           SHAPE_E_STRIDE);
    refuse((struct shape_request){.pages = 1, .page_bytes = 2 * MIB, .stride_bytes = 3 * MIB},
           SHAPE_E_STRIDE);
    refuse((struct shape_request){.pages = 1, .page_bytes = 4 * MIB, .extent_bytes = odd, .n_extents = 1},
           SHAPE_E_CLASS);
    refuse((struct shape_request){.pages = 1, .page_bytes = 10 * MIB, .extent_bytes = eight, .n_extents = 1},
           SHAPE_E_SUM);
    refuse((struct shape_request){.pages = 1, .page_bytes = 128 * MIB, .extent_bytes = huge, .n_extents = 2},
           SHAPE_E_SUM);
    refuse((struct shape_request){.pages = 1, .page_bytes = 2 * MIB, .extent_bytes = eight, .n_extents = 0},
           SHAPE_E_SUM);
    refuse((struct shape_request){.pages = 1,
                                  .page_bytes = 130 * MIB,
                                  .segments = 4096,
                                  .extent_bytes = eight,
                                  .n_extents = SIZE_MAX / 2},
           SHAPE_E_SLOTS);
    refuse((struct shape_request){.pages = 1, .page_bytes = UINT64_C(1) << 50}, SHAPE_E_SLOTS);
    refuse((struct shape_request){.pages = UINT64_MAX / 2, .page_bytes = 2 * MIB}, SHAPE_E_SPACE);
    refuse(
        (struct shape_request){
            .pages = 1, .page_bytes = 2 * MIB, .segments = 4096, .stride_bytes = UINT64_C(1) << 60},
        SHAPE_E_SPACE);
}

/* The order of the protocol, written out: class by class from the largest, and page by page within a class.
 */
TEST(places_of_a_grant)
{
    static const uint64_t order[] = {2 * MIB, 8 * MIB, 2 * MIB};
    static const struct {
        uint32_t page, slot;
    } wanted[] = {
        {0, 1}, {0, 4}, {1, 1}, {1, 4},                                 /* 8 MiB */
        {0, 0}, {0, 2}, {0, 3}, {0, 5}, {1, 0}, {1, 2}, {1, 3}, {1, 5}, /* 2 MiB */
    };
    struct shape *shape = make((struct shape_request){
        .segments = 2, .pages = 9, .page_bytes = 12 * MIB, .extent_bytes = order, .n_extents = 3});

    for (uint64_t i = 0; i < ARRAY_SIZE(wanted); i++) {
        uint32_t page = 99, slot = 99;

        shape_place(shape, 2, i, &page, &slot);
        check_eq(page, wanted[i].page);
        check_eq(slot, wanted[i].slot);
    }
    shape_free(shape);
}

/* Every extent has a place of its own, and of its own class's size; pages tile their segments. */
TEST(random_shapes)
{
    uint64_t random = test_seed();

    for (int round = 0; round < 300; round++) {
        uint32_t pages = 1 + (uint32_t)(test_random(&random) % 5), last_class = 3;
        struct shape *shape = make((struct shape_request){
            .segments = 1 + test_random(&random) % 4,
            .pages = pages,
            .page_bytes = 2 * MIB * (1 + test_random(&random) % 200),
        });
        uint8_t *seen = calloc(pages, shape->n_slots);

        for (uint64_t i = 0; i < (uint64_t)pages * shape->n_slots; i++) {
            uint32_t page, slot, class;

            shape_place(shape, pages, i, &page, &slot);
            check(page < pages && slot < shape->n_slots);
            check(!seen[page * shape->n_slots + slot]++);
            class = shape->parts[slot % shape->n_parts].class_index;
            check(class <= last_class);
            last_class = class;
            check_eq(shape_slot_bytes(shape, slot), classes[class]);
            check(shape_offset(shape, page, slot) + classes[class] <= shape->total_bytes);
        }
        free(seen);
        shape_free(shape);
    }
}
