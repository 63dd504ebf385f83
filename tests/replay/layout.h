/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How KV blocks lie in a region: with all layers of a block together, or with a segment for every layer, so
 * that a block has a piece in each. Pure.
 */

#include <stdbool.h>
#include <stdint.h>

#include "model.h"

struct layout {
    uint32_t segments;
    uint64_t page_bytes;  /* of a page in one segment; holds whole blocks */
    uint64_t block_bytes; /* of a block in one segment */
};

/*
 * The smallest pages that hold whole blocks, or pages of `page_bytes` when that is not 0. False when a page
 * is no multiple of blocks or of the granularity.
 */
bool layout_make(const struct model *model, bool per_layer, uint64_t page_bytes, uint64_t granularity,
                 struct layout *ret);

static inline uint64_t layout_page_total(const struct layout *l)
{
    return l->page_bytes * l->segments;
}

/* In so many pages. */
static inline uint64_t layout_blocks(const struct layout *l, uint64_t pages)
{
    return pages * (l->page_bytes / l->block_bytes);
}

/* From the region's address to the block's piece in a segment. */
static inline uint64_t layout_offset(const struct layout *l, uint64_t stride, uint32_t block,
                                     uint32_t segment)
{
    return segment * stride + block * l->block_bytes;
}
