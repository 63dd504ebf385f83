/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Questions, which change nothing. The null block is in use and yet nobody's: it is left out of all answers.
 */

#include "block_alloc-internal.h"

uint64_t block_alloc_free_blocks(const struct block_alloc *alloc)
{
    return atomic_load_explicit(&alloc->seen_blocks, memory_order_relaxed);
}

uint64_t block_alloc_free_pages(const struct block_alloc *alloc)
{
    return atomic_load_explicit(&alloc->seen_pages, memory_order_relaxed);
}

void block_alloc_count(const struct block_alloc *alloc, struct block_alloc_counts *ret)
{
    *ret = (struct block_alloc_counts){
        .total_blocks = block_geometry_sum(&alloc->geometry, alloc->max_pages) -
                        (alloc->null_block && alloc->max_pages > 0),
        .used_blocks = alloc->used_blocks,
        .free_blocks = alloc->free_blocks,
        .reserved_blocks = alloc->reserved_blocks,
        .mapped_pages = alloc->mapped_pages,
        .free_pages = alloc->free_pages,
        .partly_pages = alloc->partly_pages,
        .full_pages = alloc->full_pages,
        .removed_pages = alloc->removed_pages,
        .sheddable_pages = alloc->sheddable_pages,
        .waiting_pages = alloc->waiting_pages,
        .pinned_pages = alloc->pinned_pages,
        .empty_pages = alloc->n_states[BLOCK_ALLOC_EMPTY],
        .mapping_pages = alloc->n_states[BLOCK_ALLOC_MAPPING],
        .unmapping_pages = alloc->n_states[BLOCK_ALLOC_UNMAPPING],
        .doubt_pages = alloc->n_states[BLOCK_ALLOC_DOUBT],
        .broken_pages = alloc->n_states[BLOCK_ALLOC_BROKEN],
        .page_blocks = alloc->geometry.page_blocks,
    };
}

uint64_t block_alloc_page_of(const struct block_alloc *alloc, uint32_t id)
{
    return id < alloc->geometry.n_ids ? block_geometry_page_of(&alloc->geometry, id) : alloc->geometry.pages;
}

void block_alloc_range(const struct block_alloc *alloc, uint64_t page, uint32_t *ret_first, uint32_t *ret_n)
{
    block_geometry_range(&alloc->geometry, page, ret_first, ret_n);
}

enum block_alloc_state block_alloc_page_state(const struct block_alloc *alloc, uint64_t page)
{
    return page < alloc->geometry.pages ? alloc->pages[page].state : BLOCK_ALLOC_EMPTY;
}

static uint32_t used_in(const struct block_alloc *alloc, uint64_t number)
{
    const struct page *page = &alloc->pages[number];

    return page->state == BLOCK_ALLOC_MAPPED ? page->used - block_alloc_has_null(alloc, number) : 0;
}

int block_alloc_occupancy(const struct block_alloc *alloc, const uint64_t *pages, size_t n,
                          uint32_t *ret_used)
{
    for (size_t i = 0; i < n; i++)
        if (pages[i] >= alloc->geometry.pages)
            return BLOCK_ALLOC_E_PAGE;
    for (size_t i = 0; i < n; i++)
        ret_used[i] = used_in(alloc, pages[i]);
    return 0;
}

static size_t list_pages(const struct block_alloc *alloc, uint32_t link, size_t max,
                         struct block_alloc_census *ret)
{
    size_t n = 0;

    for (; link && n < max; link = alloc->pages[link - 1].next) {
        const struct page *page = &alloc->pages[link - 1];

        if (!page->pins && !block_alloc_has_null(alloc, link - 1))
            ret[n++] = (struct block_alloc_census){.page = link - 1, .used = page->used};
    }
    return n;
}

size_t block_alloc_census(const struct block_alloc *alloc, size_t max, struct block_alloc_census *ret)
{
    size_t n = 0;

    for (uint64_t used = 0; n < max; used++) {
        used = u64_min(bit_tree_next(&alloc->used_tree, alloc->partly.filled, used),
                       bit_tree_next(&alloc->used_tree, alloc->closed.filled, used));
        if (used == BIT_TREE_NONE)
            break;
        n += list_pages(alloc, alloc->partly.heads[used], max - n, ret + n);
        n += list_pages(alloc, alloc->closed.heads[used], max - n, ret + n);
    }
    return n;
}

size_t block_alloc_used_of(const struct block_alloc *alloc, uint64_t page, size_t max, uint32_t *ret_ids)
{
    uint32_t n = page < alloc->geometry.pages ? used_in(alloc, page) : 0;
    const struct page *of;
    size_t found = 0;

    if (n == 0)
        return 0;
    of = &alloc->pages[page];
    for (uint32_t i = block_alloc_has_null(alloc, page); i < of->n && found < max; i++)
        if (!bit_tree_has(of->free, i))
            ret_ids[found++] = of->first + i;
    return n;
}
