/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sums and orders are made from the rows by search, each time anew, and compared with what the allocator
 * keeps.
 */

#include "block-rows.h"

#include <string.h>

#include "base/arith.h"

void rows_expect(struct block_world *w, bool condition, const char *sentence)
{
    if (!condition && !w->failure)
        w->failure = sentence;
}

static void add_blocks(struct block_world *w)
{
    for (unsigned i = 0; i < PAGES; i++)
        w->pages[i].n = w->pages[i].used = w->pages[i].owned = 0;
    for (uint32_t id = 0; id < w->n_blocks; id++) {
        struct page_row *row;

        if (w->page_of[id] == NO_PAGE)
            continue;
        row = &w->pages[w->page_of[id]];
        row->n++;
        row->used += w->used[id];
        row->owned += w->used[id] && !rows_is_null(w, id);
    }
}

static void add_mapped(struct block_world *w, uint64_t page)
{
    const struct page_row *row = &w->pages[page];
    struct block_alloc_counts *sums = &w->sums;
    bool unused = row->used == 0;

    sums->mapped_pages++;
    sums->used_blocks += row->owned;
    sums->sheddable_pages += rows_can_shed(w, page);
    sums->waiting_pages += unused && !row->pins && row->epoch > w->completed;
    sums->pinned_pages += row->pins > 0;
    if (rows_is_removed(w, page)) {
        sums->removed_pages++;
        return;
    }
    sums->free_blocks += row->n - row->used;
    sums->free_pages += unused;
    sums->full_pages += row->used == row->n;
    sums->partly_pages += !unused && row->used < row->n;
}

void rows_add_up(struct block_world *w)
{
    struct block_alloc_counts *sums = &w->sums;

    add_blocks(w);
    *sums = (struct block_alloc_counts){.reserved_blocks = w->reserved};
    for (uint64_t page = 0; page < w->config.pages; page++) {
        enum block_alloc_state state = w->pages[page].state;

        sums->page_blocks = u64_max(sums->page_blocks, w->pages[page].n);
        sums->total_blocks += rows_is_removed(w, page) ? 0 : w->pages[page].n;
        sums->empty_pages += rows_can_plan(w, page);
        sums->mapping_pages += state == BLOCK_ALLOC_MAPPING;
        sums->unmapping_pages += state == BLOCK_ALLOC_UNMAPPING;
        sums->doubt_pages += state == BLOCK_ALLOC_DOUBT;
        sums->broken_pages += state == BLOCK_ALLOC_BROKEN;
        if (rows_is_mapped(w, page))
            add_mapped(w, page);
    }
    sums->total_blocks -= w->config.null_block && w->max_pages > 0;
}

static void compare_page(struct block_world *w, uint64_t page)
{
    uint32_t ids[PAGE_BLOCKS], used = 77, first, n;
    size_t n_ids = block_alloc_used_of(w->alloc, page, PAGE_BLOCKS, ids);
    uint32_t owned = rows_is_mapped(w, page) ? w->pages[page].owned : 0;

    rows_expect(w, block_alloc_page_state(w->alloc, page) == w->pages[page].state,
                "a page is in another state");
    rows_expect(w, block_alloc_occupancy(w->alloc, &page, 1, &used) == 0 && used == owned,
                "occupancy is wrong");
    rows_expect(w, n_ids == owned, "used blocks of a page are miscounted");
    for (size_t i = 0; i < n_ids; i++)
        rows_expect(w,
                    w->used[ids[i]] && w->page_of[ids[i]] == (int)page && !rows_is_null(w, ids[i]) &&
                        (i == 0 || ids[i] > ids[i - 1]),
                    "used blocks of a page are others");
    block_alloc_range(w->alloc, page, &first, &n);
    rows_expect(w, n == w->pages[page].n && (n == 0 || w->page_of[first] == (int)page),
                "the range of a page is wrong");
}

static bool in_census(const struct block_world *w, uint64_t page)
{
    return rows_is_mapped(w, page) && w->pages[page].used > 0 && w->pages[page].pins == 0 &&
           !(w->config.null_block && page == 0);
}

static void compare_census(struct block_world *w, size_t max)
{
    struct block_alloc_census census[PAGES];
    size_t n = block_alloc_census(w->alloc, max, census);
    bool seen[PAGES] = {};
    size_t should = 0;

    for (uint64_t page = 0; page < w->config.pages; page++)
        should += in_census(w, page);
    rows_expect(w, n == u64_min(max, should), "the census has not as many pages as it could");
    for (size_t i = 0; i < n; i++) {
        uint64_t page = census[i].page;

        rows_expect(w, in_census(w, page) && !seen[page] && census[i].used == w->pages[page].used,
                    "the census is wrong about a page");
        rows_expect(w, i == 0 || census[i].used >= census[i - 1].used, "the census is not in order");
        seen[page] = true;
    }
    for (uint64_t page = 0; n > 0 && page < w->config.pages; page++)
        rows_expect(w, seen[page] || !in_census(w, page) || w->pages[page].used >= census[n - 1].used,
                    "the census leaves out a page with fewer used blocks");
}

void rows_compare(struct block_world *w, uint64_t page, size_t max)
{
    struct block_alloc_counts counts;

    rows_add_up(w);
    block_alloc_count(w->alloc, &counts);
    rows_expect(w, memcmp(&counts, &w->sums, sizeof(counts)) == 0, "a count is wrong");
    rows_expect(w, block_alloc_free_blocks(w->alloc) == w->sums.free_blocks, "readers see other free blocks");
    rows_expect(w, block_alloc_free_pages(w->alloc) == w->sums.free_pages, "readers see other free pages");
    compare_page(w, page);
    compare_census(w, max);
}
