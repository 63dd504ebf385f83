/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Block allocator: which KV blocks an engine gets, and which pages of a region have to be mapped or can be
 * unmapped for that. Pure: it decides, and its owner makes it true and says how that went. Its owner also
 * locks: one call at a time, except for what says otherwise.
 *
 * Block b lies at byte b * block_bytes of each segment, and a page holds the blocks that lie in it entirely;
 * a straddler is never handed out. A page without a single such block is never mapped.
 *
 *   EMPTY ──plan──▶ MAPPING ──mapped──▶ MAPPED ──shed──▶ UNMAPPING ──unmapped──▶ EMPTY
 *                     │ unmapped: EMPTY   ▲ ◀────keep───────┘ │
 *                     └──doubt──▶ DOUBT ──┴─ mapped           │
 *                                 ▲ │ unmapped: EMPTY         │
 *                                 └─┴────────doubt────────────┘   broken: from all but EMPTY and MAPPED
 *
 * A page at or beyond `max_pages` is *removed*: no block is taken from it any more; those that are taken stay
 * so until they are given back, and then it is the first to be shed.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct block_alloc;

enum {
    _BLOCK_ALLOC_E_SUCCESS,
    BLOCK_ALLOC_E_ZERO,    /* a size or the number of pages is zero */
    BLOCK_ALLOC_E_LARGE,   /* a block is larger than a page */
    BLOCK_ALLOC_E_MANY,    /* more than UINT32_MAX blocks, or 64 bits do not hold the bytes of all pages */
    BLOCK_ALLOC_E_SHORT,   /* not so many blocks are free in mapped pages */
    BLOCK_ALLOC_E_FULL,    /* not so many pages are empty and usable */
    BLOCK_ALLOC_E_FOREIGN, /* no block that could have been handed out: out of range, straddler, null block,
                            * page not mapped */
    BLOCK_ALLOC_E_FREE,    /* not handed out, or named twice */
    BLOCK_ALLOC_E_PAGE,    /* no page of the region */
    BLOCK_ALLOC_E_STATE,   /* a page is in another state, or named twice */
};

enum block_alloc_state {
    BLOCK_ALLOC_EMPTY,   /* no memory */
    BLOCK_ALLOC_MAPPING, /* from block_alloc_plan(), or the null block's at the start; the owner is at work */
    BLOCK_ALLOC_MAPPED,  /* its blocks are free or used */
    BLOCK_ALLOC_UNMAPPING, /* from block_alloc_shed(); the owner is at work */
    BLOCK_ALLOC_DOUBT,     /* nobody knows: unusable until the owner does */
    BLOCK_ALLOC_BROKEN,    /* never again */
    _BLOCK_ALLOC_STATES,
};

struct block_alloc_config {
    uint64_t page_bytes;  /* of a page in one segment */
    uint64_t block_bytes; /* of a block in the same segment */
    uint64_t pages;       /* capacity of the region */
    uint64_t max_pages;   /* usable ones, the first; more than `pages` means all */
    uint64_t max_blocks;  /* numbers from there on are no blocks; more than there are means all */
    bool null_block;      /* block 0 is never handed out: engines aim padding at it. Its page, page 0, is
                           * MAPPING from the start, and never free */
};

/* What there is. Blocks of the engine: the null block is in none of these numbers. */
struct block_alloc_counts {
    uint64_t total_blocks;    /* in the pages below max_pages, mapped or not */
    uint64_t used_blocks;     /* handed out, in removed pages too */
    uint64_t free_blocks;     /* that a take can have now, reserved ones included */
    uint64_t reserved_blocks; /* of the free ones */
    uint64_t mapped_pages;    /* the sum of free, partly used, full and removed ones */
    uint64_t free_pages;
    uint64_t partly_pages;
    uint64_t full_pages;
    uint64_t removed_pages;   /* mapped, at or beyond max_pages */
    uint64_t sheddable_pages; /* free or removed-and-free, not pinned, epoch complete */
    uint64_t waiting_pages;   /* the same, but for an epoch that is not complete yet */
    uint64_t pinned_pages;
    uint64_t empty_pages; /* that can be planned: below max_pages, with at least one block */
    uint64_t mapping_pages;
    uint64_t unmapping_pages;
    uint64_t doubt_pages;
    uint64_t broken_pages;
    uint64_t page_blocks; /* of the pages with most blocks; where blocks straddle, others have one less */
};

/* Memory is O(pages); a page's table of blocks, some bits a block, comes when it is first planned.
 * 0, BLOCK_ALLOC_E_ZERO, _LARGE, _MANY, -ENOMEM. */
int block_alloc_new(const struct block_alloc_config *config, struct block_alloc **ret);
struct block_alloc *block_alloc_free(struct block_alloc *alloc);
DEFINE_CLEANUP(struct block_alloc *, block_alloc_free);

/* ---- Blocks ---- */

/* Takes n blocks, reserved ones first: from partly used pages, those with most blocks in use first, so that
 * the others come free; then from free pages, lowest number first. Within a page the lowest ids first. All or
 * nothing; O(1) for each block. 0, BLOCK_ALLOC_E_SHORT: see block_alloc_missing(). */
int block_alloc_take(struct block_alloc *alloc, size_t n, uint32_t *ret_ids);

/* Gives blocks back, in any order; all or nothing. They can be taken again at once, but their pages are not
 * shed before `epoch` is complete (0: it always is). 0, BLOCK_ALLOC_E_FOREIGN, BLOCK_ALLOC_E_FREE: of the
 * first id that is wrong, and nothing has changed. */
int block_alloc_give(struct block_alloc *alloc, const uint32_t *ids, size_t n, uint64_t epoch);

/* All epochs up to this one are complete. A lower one than before changes nothing. */
void block_alloc_complete(struct block_alloc *alloc, uint64_t epoch);

/* Sets n more free blocks aside: they are taken first, and until then no page is shed that the number of free
 * blocks would need to stay as high. Which blocks these are is not decided before. When max_pages falls, what
 * is left of the free blocks bounds the reserve. 0, BLOCK_ALLOC_E_SHORT. */
int block_alloc_reserve(struct block_alloc *alloc, uint64_t n);

/* Gives up all that is reserved. */
void block_alloc_release(struct block_alloc *alloc);

/* Every block is free again, as if given back with `epoch`; nothing is reserved. O(pages in use). */
void block_alloc_clear(struct block_alloc *alloc, uint64_t epoch);

/* ---- Pages ---- */

/* How many pages have to be mapped before n blocks can be taken; 0: none. Exact for the pages that
 * block_alloc_plan() would name; more than there are empty ones where that would not do. Pages that are
 * MAPPING do not count: whoever lets them be mapped wants them. O(pages) where blocks straddle, else O(1). */
uint64_t block_alloc_missing(const struct block_alloc *alloc, uint64_t n);

/* The blocks of the next n pages that block_alloc_plan() would name, or of all where there are not so many.
 * O(n) where blocks straddle, else O(1). */
uint64_t block_alloc_gain(const struct block_alloc *alloc, uint64_t n);

/* Names n empty pages, which become MAPPING: the lowest ones, in ascending order, so that they mostly follow
 * on each other. 0, BLOCK_ALLOC_E_FULL, -ENOMEM: nothing has changed. */
int block_alloc_plan(struct block_alloc *alloc, size_t n, uint64_t *ret_pages);

/* Names up to `max` mapped pages without used blocks, which become UNMAPPING, and returns how many: removed
 * ones as long as there are any, then as many as leave `keep` free pages (pinned ones and those of incomplete
 * epochs are counted as kept) and the reserved blocks. Highest number first: takes and plans prefer the
 * lowest, so these are the least likely to be used next, and the mapped pages stay together at the start. */
size_t block_alloc_shed(struct block_alloc *alloc, uint64_t keep, size_t max, uint64_t *ret_pages);

/* What the owner has to say of pages that are not its to use otherwise. 0, BLOCK_ALLOC_E_PAGE,
 * BLOCK_ALLOC_E_STATE: of the first page that is wrong, and nothing has changed. */
int block_alloc_mapped(struct block_alloc *alloc, const uint64_t *pages, size_t n);   /* MAPPING, DOUBT */
int block_alloc_unmapped(struct block_alloc *alloc, const uint64_t *pages, size_t n); /* those, UNMAPPING */
int block_alloc_keep(struct block_alloc *alloc, const uint64_t *pages, size_t n);     /* UNMAPPING */
int block_alloc_doubt(struct block_alloc *alloc, const uint64_t *pages, size_t n);    /* MAPPING, UNMAPPING */
int block_alloc_broken(struct block_alloc *alloc, const uint64_t *pages, size_t n);   /* those, DOUBT */

/* Pinned pages are never shed. Counted; all pages must be MAPPED, or pinned. All or nothing. 0,
 * BLOCK_ALLOC_E_PAGE, BLOCK_ALLOC_E_STATE. */
int block_alloc_pin(struct block_alloc *alloc, uint64_t first, uint64_t n);
int block_alloc_unpin(struct block_alloc *alloc, uint64_t first, uint64_t n);

/* More than the capacity means all. O(pages between old and new). */
void block_alloc_resize(struct block_alloc *alloc, uint64_t max_pages);

/* ---- Questions ---- */

/* Of any thread, without the lock: each is right at some moment during the call. */
uint64_t block_alloc_free_blocks(const struct block_alloc *alloc); /* as in block_alloc_counts */
uint64_t block_alloc_free_pages(const struct block_alloc *alloc);

/* O(1). */
void block_alloc_count(const struct block_alloc *alloc, struct block_alloc_counts *ret);

/* The page in which a block begins, also for a straddler; the capacity, which is no page, for what is no
 * block of the region. Of any thread. */
uint64_t block_alloc_page_of(const struct block_alloc *alloc, uint32_t id);

/* The blocks of a page: the first, and how many. Of any thread. The page must be one of the region. */
void block_alloc_range(const struct block_alloc *alloc, uint64_t page, uint32_t *ret_first, uint32_t *ret_n);

/* BLOCK_ALLOC_EMPTY also for what is no page of the region. */
enum block_alloc_state block_alloc_page_state(const struct block_alloc *alloc, uint64_t page);

/* How many blocks of each page are handed out. 0, BLOCK_ALLOC_E_PAGE. */
int block_alloc_occupancy(const struct block_alloc *alloc, const uint64_t *pages, size_t n,
                          uint32_t *ret_used);

struct block_alloc_census {
    uint64_t page;
    uint32_t used; /* blocks handed out, at least one */
};

/* Which pages come free when the engine evicts: those with used blocks that could then be shed (neither
 * pinned, nor the null block's), fewest used blocks first, in no order among equals. Returns how many of them
 * it has written, up to `max`. O(max + pinned). */
size_t block_alloc_census(const struct block_alloc *alloc, size_t max, struct block_alloc_census *ret);

/* The blocks of a page that are handed out, ascending. Returns how many there are; writes up to `max`. */
size_t block_alloc_used_of(const struct block_alloc *alloc, uint64_t page, size_t max, uint32_t *ret_ids);
