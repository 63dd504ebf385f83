/* SPDX-License-Identifier: Apache-2.0 */

/*
 * All arithmetic on what a caller may get wrong happens in block_geometry_init(), checked for overflow: the
 * end of the region fits 64 bits, and no block or page ends behind it.
 */

#include "block_geometry.h"

#include "base/arith.h"

static uint64_t greatest_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

static uint32_t count_blocks(const struct block_geometry *geometry, uint64_t page)
{
    uint32_t first, n;

    block_geometry_range(geometry, page, &first, &n);
    return n;
}

static void cut_off(struct block_geometry *geometry, uint64_t max_blocks)
{
    if (max_blocks >= geometry->n_ids)
        return;
    geometry->n_ids = (uint32_t)max_blocks;
    geometry->used_pages = block_geometry_page_of(geometry, geometry->n_ids - 1) + 1;
    geometry->page_blocks = (uint32_t)u64_min(geometry->page_blocks, max_blocks);
}

int block_geometry_init(struct block_geometry *geometry, uint64_t page_bytes, uint64_t block_bytes,
                        uint64_t pages, uint64_t max_blocks)
{
    uint64_t bytes;

    if (page_bytes == 0 || block_bytes == 0 || pages == 0 || max_blocks == 0)
        return BLOCK_GEOMETRY_E_ZERO;
    if (block_bytes > page_bytes)
        return BLOCK_GEOMETRY_E_LARGE;
    if (!u64_mul(pages, page_bytes, &bytes) || bytes / block_bytes > UINT32_MAX)
        return BLOCK_GEOMETRY_E_MANY;
    *geometry = (struct block_geometry){
        .page_bytes = page_bytes,
        .block_bytes = block_bytes,
        .pages = pages,
        .used_pages = pages,
        .n_ids = (uint32_t)(bytes / block_bytes),
        .page_blocks = (uint32_t)(page_bytes / block_bytes),
        .period = block_bytes / greatest_divisor(page_bytes, block_bytes),
        .reciprocal = block_bytes == page_bytes
                          ? UINT64_MAX
                          : (uint64_t)(((unsigned __int128)block_bytes << 64) / page_bytes),
    };
    cut_off(geometry, max_blocks);
    geometry->last_blocks = count_blocks(geometry, geometry->used_pages - 1);
    return 0;
}

void block_geometry_range(const struct block_geometry *geometry, uint64_t page, uint32_t *ret_first,
                          uint32_t *ret_n)
{
    uint64_t start = page * geometry->page_bytes, end = start + geometry->page_bytes;
    uint64_t first = start / geometry->block_bytes + (start % geometry->block_bytes != 0);

    *ret_first = (uint32_t)u64_min(first, geometry->n_ids);
    *ret_n = (uint32_t)u64_sub_floor(u64_min(end / geometry->block_bytes, geometry->n_ids), first);
}

uint64_t block_geometry_sum(const struct block_geometry *geometry, uint64_t n)
{
    uint64_t last = n >= geometry->used_pages ? geometry->last_blocks : 0;

    n = u64_min(n, geometry->used_pages - (n >= geometry->used_pages));
    if (n == 0)
        return last;
    /* A block straddles at each inner boundary, but for every period-th. */
    return n * geometry->page_bytes / geometry->block_bytes - (n - 1) + (n - 1) / geometry->period + last;
}
