/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Block geometry: which blocks lie in which page. Pure. Block b lies at byte b * block_bytes and page p at
 * byte p * page_bytes; a block of a page lies in it entirely, so the blocks of page p are those from
 * ceil(p * page_bytes / block_bytes) to floor((p + 1) * page_bytes / block_bytes) - 1. What lies in two pages
 * is a straddler and a block of none.
 */

#include <stdint.h>

enum {
    _BLOCK_GEOMETRY_E_SUCCESS,
    BLOCK_GEOMETRY_E_ZERO,  /* a size or a number is zero */
    BLOCK_GEOMETRY_E_LARGE, /* a block is larger than a page */
    BLOCK_GEOMETRY_E_MANY,  /* more than UINT32_MAX blocks, or 64 bits do not hold the bytes of all pages */
};

struct block_geometry {
    uint64_t page_bytes, block_bytes, pages;
    uint64_t used_pages;  /* the first ones; the others are behind the last block */
    uint32_t n_ids;       /* straddlers included */
    uint32_t last_blocks; /* of the last used page */
    uint32_t page_blocks; /* of the pages with most; where blocks straddle, others have one less */
    uint64_t period;      /* of that many page boundaries in a row, one falls between blocks; 1: all */
    uint64_t reciprocal;  /* 2^64 * block_bytes / page_bytes, rounded down, or UINT64_MAX */
};

/* max_blocks: ids from there on are none. 0, BLOCK_GEOMETRY_E_*. */
int block_geometry_init(struct block_geometry *geometry, uint64_t page_bytes, uint64_t block_bytes,
                        uint64_t pages, uint64_t max_blocks);

/* The blocks of a page of the region, of which there may be none. */
void block_geometry_range(const struct block_geometry *geometry, uint64_t page, uint32_t *ret_first,
                          uint32_t *ret_n);

/* Blocks of the first n pages of the region. */
uint64_t block_geometry_sum(const struct block_geometry *geometry, uint64_t n);

/* The page in which a block of the region begins: floor(id * block_bytes / page_bytes), without a division.
 * The reciprocal is too low by one at most, so the product is by less than 2^-32, and the page by one at
 * most. */
static inline uint64_t block_geometry_page_of(const struct block_geometry *geometry, uint32_t id)
{
    uint64_t page = (uint64_t)((unsigned __int128)geometry->reciprocal * id >> 64);

    return page + ((page + 1) * geometry->page_bytes <= id * geometry->block_bytes);
}
