/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The naive rows of block-world.h: of each block whether it is in use, of each page its state, pins and
 * epoch; and what must therefore be true.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block-world.h"
#include "block_alloc.h"

#define PAGES 32
#define PAGE_BLOCKS 300
#define BLOCKS (PAGES * (PAGE_BLOCKS + 1))
#define NO_PAGE (-1)

struct page_row {
    enum block_alloc_state state;
    uint32_t pins;
    uint64_t epoch;
    uint32_t n, used, owned; /* blocks; used, the null block included, and without it; by rows_add_up() */
};

struct block_world {
    struct block_alloc *alloc;
    struct block_alloc_config config;
    uint64_t max_pages, completed, epoch, reserved;
    uint32_t n_blocks;
    bool used[BLOCKS];
    int page_of[BLOCKS]; /* NO_PAGE: a straddler */
    struct page_row pages[PAGES];
    struct block_alloc_counts sums; /* by rows_add_up() */
    uint64_t random;
    const char *failure;
};

/* The first sentence whose condition doesn't hold is the world's failure. */
void rows_expect(struct block_world *w, bool condition, const char *sentence);

/* Makes every sum anew. */
void rows_add_up(struct block_world *w);

/* Compares the sums, all that is said of one page, and a census of at most so many. */
void rows_compare(struct block_world *w, uint64_t page, size_t max);

static inline bool rows_is_null(const struct block_world *w, uint32_t id)
{
    return w->config.null_block && id == 0;
}

static inline bool rows_is_removed(const struct block_world *w, uint64_t page)
{
    return page >= w->max_pages;
}

static inline bool rows_is_mapped(const struct block_world *w, uint64_t page)
{
    return w->pages[page].state == BLOCK_ALLOC_MAPPED;
}

static inline bool rows_can_plan(const struct block_world *w, uint64_t page)
{
    return w->pages[page].state == BLOCK_ALLOC_EMPTY && !rows_is_removed(w, page) && w->pages[page].n > 0;
}

static inline bool rows_is_free(const struct block_world *w, uint64_t page)
{
    return rows_is_mapped(w, page) && w->pages[page].used == 0;
}

static inline bool rows_can_shed(const struct block_world *w, uint64_t page)
{
    return rows_is_free(w, page) && w->pages[page].pins == 0 && w->pages[page].epoch <= w->completed;
}

/* Blocks of it can be taken. */
static inline bool rows_has_room(const struct block_world *w, uint64_t page)
{
    return rows_is_mapped(w, page) && !rows_is_removed(w, page) && w->pages[page].used < w->pages[page].n;
}
