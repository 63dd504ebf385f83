/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Shape: how the pages of a region lie in address space, and of which extents they are made. Pure.
 *
 * A page takes `n_slots` extents: `n_parts` in each segment, adjacent, in the order in which the segment
 * lists them. Slots count through segment by segment. The daemon hands extents over class by class, so the
 * shape also says which slot the n-th extent of a grant fills.
 */

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

#define SHAPE_CLASSES_MAX 8
#define SHAPE_SEGMENTS_MAX 4096
#define SHAPE_SLOTS_MAX 65536 /* of one page */

enum {
    _SHAPE_E_SUCCESS,
    SHAPE_E_SEGMENTS, /* more than SHAPE_SEGMENTS_MAX */
    SHAPE_E_PAGE,     /* page size is zero or no multiple of the granularity */
    SHAPE_E_STRIDE,   /* no multiple of the granularity, or smaller than a segment */
    SHAPE_E_CAPACITY, /* no pages */
    SHAPE_E_CLASS,    /* a listed extent is of no class */
    SHAPE_E_SUM,      /* extents of these classes do not add up to a page */
    SHAPE_E_SLOTS,    /* more than SHAPE_SLOTS_MAX extents in a page */
    SHAPE_E_SPACE,    /* does not fit 64-bit addresses */
};

struct shape_part {
    uint64_t offset; /* in the page's share of a segment */
    uint64_t bytes;
    unsigned class_index;
};

struct shape {
    uint64_t segments, pages, page_bytes, stride_bytes; /* as kvc_region_options */
    uint64_t total_bytes;                               /* of address space */
    uint64_t slot_bytes;                                /* of one page over all segments */
    unsigned n_classes;
    uint32_t class_counts[SHAPE_CLASSES_MAX]; /* extents of each class that a page takes */
    uint32_t n_slots;
    uint32_t n_parts;
    struct shape_part parts[];
};

/* What is asked for; zero and NULL have the meaning that they have in kvc_region_options. */
struct shape_request {
    uint64_t segments, pages, page_bytes, stride_bytes;
    const uint64_t *extent_bytes;
    size_t n_extents;
};

/* `class_bytes` smallest first. 0, SHAPE_E_*, -ENOMEM. */
int shape_new(const struct shape_request *request, uint64_t granularity_bytes, const uint64_t *class_bytes,
              unsigned n_classes, struct shape **ret);
struct shape *shape_free(struct shape *shape);
DEFINE_CLEANUP(struct shape *, shape_free);

/* Offset of a slot of a page from the region's address. */
uint64_t shape_offset(const struct shape *shape, uint64_t page, uint32_t slot);
uint64_t shape_slot_bytes(const struct shape *shape, uint32_t slot);

/* Where the n-th extent of a grant of `pages` pages belongs: class by class, largest first; page by page
 * within a class. */
void shape_place(const struct shape *shape, uint32_t pages, uint64_t n, uint32_t *ret_page,
                 uint32_t *ret_slot);
