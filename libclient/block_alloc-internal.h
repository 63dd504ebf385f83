/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the parts of the block allocator share: block_alloc.c (construction and blocks), block_alloc_pages.c
 * (what becomes of pages) and block_alloc_census.c (questions).
 */

#include <stdatomic.h>

#include "base/arith.h"
#include "bit_tree.h"
#include "block_alloc.h"
#include "block_geometry.h"

/* Links are page numbers plus one, so that zeroed memory is an empty list. */
struct page {
    uint64_t epoch; /* the highest of its blocks' frees */
    uint64_t *free; /* blocks, as a bit tree by their place in the page; NULL until it is first planned */
    uint32_t first; /* block, once there is a table */
    uint32_t n;     /* blocks */
    uint32_t used;  /* of them, the null block included */
    uint32_t prev, next; /* in a list of equally used pages, or in that of waiting ones */
    uint32_t pins;
    uint8_t state; /* enum block_alloc_state */
    bool marked;   /* only within move_pages() */
    bool waiting;
};

/* Mapped pages with used blocks, by their number. */
struct buckets {
    uint64_t *filled; /* bit tree of the numbers that some page has */
    uint32_t *heads;
};

struct block_alloc {
    struct block_geometry geometry;
    bool null_block;
    uint64_t max_pages;
    uint64_t completed; /* epoch */
    uint64_t used_blocks, free_blocks, reserved_blocks;
    uint64_t mapped_pages, free_pages, partly_pages, full_pages, removed_pages;
    uint64_t sheddable_pages, waiting_pages, pinned_pages;
    uint64_t n_states[_BLOCK_ALLOC_STATES]; /* pages, of EMPTY the usable ones, none of MAPPED */

    struct bit_tree block_tree, used_tree, page_tree; /* shapes */
    struct page *pages;
    uint64_t *empty, *free, *sheddable;  /* bit trees of pages */
    struct buckets partly;               /* that can be taken from */
    struct buckets closed;               /* full or removed */
    uint32_t waiting_head, waiting_tail; /* lowest epoch first */

    _Atomic uint64_t seen_blocks, seen_pages; /* what other threads read of free_blocks and free_pages */
};

static inline bool block_alloc_is_removed(const struct block_alloc *alloc, uint64_t page)
{
    return page >= alloc->max_pages;
}

static inline bool block_alloc_has_null(const struct block_alloc *alloc, uint64_t page)
{
    return alloc->null_block && page == 0;
}

/* Enters a page where its state, its use, pins, epoch, max_pages say, and takes it out from there: all of
 * these change only in between. */
void block_alloc_place(struct block_alloc *alloc, uint64_t page);
void block_alloc_unplace(struct block_alloc *alloc, uint64_t page);

/* Makes all blocks of a page free, except for the null block. */
void block_alloc_empty_page(struct block_alloc *alloc, uint64_t page);

/* 0, -ENOMEM. */
int block_alloc_make_table(struct block_alloc *alloc, uint64_t page);

/* Lets other threads see, and with it all that has happened before. */
static inline void block_alloc_publish(struct block_alloc *alloc)
{
    atomic_store_explicit(&alloc->seen_blocks, alloc->free_blocks, memory_order_release);
    atomic_store_explicit(&alloc->seen_pages, alloc->free_pages, memory_order_release);
}
