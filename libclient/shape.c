/* SPDX-License-Identifier: Apache-2.0 */

/*
 * All arithmetic on what a caller may get wrong happens here, checked for overflow, so that the region's code
 * can add and multiply freely.
 */

#include "shape.h"

#include <errno.h>

#include "base/arith.h"

static int class_of(uint64_t bytes, const uint64_t *class_bytes, unsigned n_classes)
{
    for (unsigned i = 0; i < n_classes; i++)
        if (class_bytes[i] == bytes)
            return (int)i;
    return -1;
}

/* Number of parts when the page is filled with the largest classes first; 0 where that leaves a rest. */
static uint64_t count_greedy(uint64_t page_bytes, const uint64_t *class_bytes, unsigned n_classes)
{
    uint64_t n = 0;

    for (unsigned i = n_classes; i-- > 0;) {
        n += page_bytes / class_bytes[i];
        page_bytes %= class_bytes[i];
    }
    return page_bytes ? 0 : n;
}

static void fill_greedy(struct shape *shape, const uint64_t *class_bytes, unsigned n_classes)
{
    uint64_t offset = 0;
    uint32_t n = 0;

    for (unsigned i = n_classes; i-- > 0;)
        for (; shape->page_bytes - offset >= class_bytes[i]; offset += class_bytes[i])
            shape->parts[n++] =
                (struct shape_part){.offset = offset, .bytes = class_bytes[i], .class_index = i};
}

static int fill_listed(struct shape *shape, const struct shape_request *request, const uint64_t *class_bytes,
                       unsigned n_classes)
{
    uint64_t offset = 0;

    for (uint32_t i = 0; i < shape->n_parts; i++) {
        int class = class_of(request->extent_bytes[i], class_bytes, n_classes);

        if (class < 0)
            return SHAPE_E_CLASS;
        shape->parts[i] = (struct shape_part){
            .offset = offset, .bytes = request->extent_bytes[i], .class_index = (unsigned)class};
        if (!u64_add(offset, request->extent_bytes[i], &offset))
            return SHAPE_E_SUM;
    }
    return offset == shape->page_bytes ? 0 : SHAPE_E_SUM;
}

/* Sizes and counts, without the parts. */
static int lay_out(const struct shape_request *request, uint64_t granularity, struct shape *shape)
{
    uint64_t segment_bytes;

    shape->segments = request->segments ? request->segments : 1;
    shape->pages = request->pages;
    shape->page_bytes = request->page_bytes;
    if (shape->segments > SHAPE_SEGMENTS_MAX)
        return SHAPE_E_SEGMENTS;
    if (shape->page_bytes == 0 || shape->page_bytes % granularity != 0)
        return SHAPE_E_PAGE;
    if (shape->pages == 0)
        return SHAPE_E_CAPACITY;
    if (!u64_mul(shape->pages, shape->page_bytes, &segment_bytes))
        return SHAPE_E_SPACE;
    shape->stride_bytes = request->stride_bytes ? request->stride_bytes : segment_bytes;
    if (shape->stride_bytes % granularity != 0 || shape->stride_bytes < segment_bytes)
        return SHAPE_E_STRIDE;
    if (!u64_mul(shape->segments, shape->stride_bytes, &shape->total_bytes))
        return SHAPE_E_SPACE;
    /* Not larger than the address space that was just computed. */
    shape->slot_bytes = shape->segments * shape->page_bytes;
    return 0;
}

int shape_new(const struct shape_request *request, uint64_t granularity_bytes, const uint64_t *class_bytes,
              unsigned n_classes, struct shape **ret)
{
    _cleanup_(shape_freep) struct shape *shape = NULL;
    struct shape layout = {.n_classes = n_classes};
    uint64_t n_parts, n_slots;
    int r;

    r = lay_out(request, granularity_bytes, &layout);
    if (r != 0)
        return r;
    n_parts =
        request->extent_bytes ? request->n_extents : count_greedy(layout.page_bytes, class_bytes, n_classes);
    if (n_parts == 0)
        return SHAPE_E_SUM;
    if (!u64_mul(n_parts, layout.segments, &n_slots) || n_slots > SHAPE_SLOTS_MAX)
        return SHAPE_E_SLOTS;
    shape = malloc(sizeof(*shape) + n_parts * sizeof(shape->parts[0]));
    if (!shape)
        return -ENOMEM;
    *shape = layout;
    shape->n_parts = (uint32_t)n_parts;
    shape->n_slots = (uint32_t)n_slots;
    if (request->extent_bytes) {
        r = fill_listed(shape, request, class_bytes, n_classes);
        if (r != 0)
            return r;
    } else {
        fill_greedy(shape, class_bytes, n_classes);
    }
    for (uint32_t i = 0; i < shape->n_parts; i++)
        shape->class_counts[shape->parts[i].class_index] += (uint32_t)shape->segments;
    *ret = steal_pointer(shape);
    return 0;
}

struct shape *shape_free(struct shape *shape)
{
    free(shape);
    return NULL;
}

uint64_t shape_offset(const struct shape *shape, uint64_t page, uint32_t slot)
{
    return slot / shape->n_parts * shape->stride_bytes + page * shape->page_bytes +
           shape->parts[slot % shape->n_parts].offset;
}

uint64_t shape_slot_bytes(const struct shape *shape, uint32_t slot)
{
    return shape->parts[slot % shape->n_parts].bytes;
}

/* The n-th slot of a class within a page. */
static uint32_t slot_of_class(const struct shape *shape, unsigned class_index, uint32_t n)
{
    uint32_t per_segment = shape->class_counts[class_index] / (uint32_t)shape->segments;
    uint32_t left = n % per_segment;

    for (uint32_t i = 0; i < shape->n_parts; i++)
        if (shape->parts[i].class_index == class_index && left-- == 0)
            return n / per_segment * shape->n_parts + i;
    return 0;
}

void shape_place(const struct shape *shape, uint32_t pages, uint64_t n, uint32_t *ret_page,
                 uint32_t *ret_slot)
{
    for (unsigned i = shape->n_classes; i-- > 0;) {
        uint64_t of_class = (uint64_t)pages * shape->class_counts[i];

        if (n < of_class) {
            *ret_page = (uint32_t)(n / shape->class_counts[i]);
            *ret_slot = slot_of_class(shape, i, (uint32_t)(n % shape->class_counts[i]));
            return;
        }
        n -= of_class;
    }
}
