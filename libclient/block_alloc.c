/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks. A page knows its free blocks as a bit tree, and pages with used blocks hang in lists by how many
 * these are, with a bit tree over the numbers that occur. So the fullest page, its lowest free block, and
 * whether a block is in use take a few words each, whatever the number of pages and blocks; and a batch moves
 * a page once for all of its blocks that follow on each other in the batch.
 *
 * A reserve is a number, not a set of blocks: whoever takes blocks takes reserved ones first, so all that it
 * has to do is to keep pages from being shed. Setting certain blocks aside would hold the pages in which they
 * happen to lie.
 */

#include <errno.h>
#include <stdlib.h>

#include "block_alloc-internal.h"

static int outcome_of_geometry(int r)
{
    switch (r) {
    case BLOCK_GEOMETRY_E_ZERO:
        return BLOCK_ALLOC_E_ZERO;
    case BLOCK_GEOMETRY_E_LARGE:
        return BLOCK_ALLOC_E_LARGE;
    case BLOCK_GEOMETRY_E_MANY:
        return BLOCK_ALLOC_E_MANY;
    default:
        return r;
    }
}

static void *words_new(const struct bit_tree *tree)
{
    return calloc(tree->n_words, sizeof(uint64_t));
}

static bool buckets_new(struct block_alloc *alloc, struct buckets *buckets)
{
    buckets->filled = words_new(&alloc->used_tree);
    buckets->heads = calloc(alloc->used_tree.n_bits, sizeof(buckets->heads[0]));
    return buckets->filled && buckets->heads;
}

static bool allocate(struct block_alloc *alloc)
{
    alloc->pages = calloc(alloc->geometry.pages, sizeof(alloc->pages[0]));
    alloc->empty = words_new(&alloc->page_tree);
    alloc->free = words_new(&alloc->page_tree);
    alloc->sheddable = words_new(&alloc->page_tree);
    return alloc->pages && alloc->empty && alloc->free && alloc->sheddable &&
           buckets_new(alloc, &alloc->partly) && buckets_new(alloc, &alloc->closed);
}

/* All pages are empty so far. */
static void enter_pages(struct block_alloc *alloc)
{
    if (alloc->geometry.page_blocks > 1 || alloc->geometry.period == 1) {
        bit_tree_fill(&alloc->page_tree, alloc->empty, alloc->max_pages);
        alloc->n_states[BLOCK_ALLOC_EMPTY] = alloc->max_pages;
    } else {
        for (uint64_t page = 0; page < alloc->max_pages; page++)
            block_alloc_place(alloc, page);
    }
}

int block_alloc_new(const struct block_alloc_config *config, struct block_alloc **ret)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = NULL;
    int r;

    alloc = calloc(1, sizeof(*alloc));
    if (!alloc)
        return -ENOMEM;
    r = block_geometry_init(&alloc->geometry, config->page_bytes, config->block_bytes, config->pages,
                            config->max_blocks);
    if (r != 0)
        return outcome_of_geometry(r);
    alloc->null_block = config->null_block;
    alloc->max_pages = u64_min(config->max_pages, alloc->geometry.used_pages);
    bit_tree_init(&alloc->block_tree, alloc->geometry.page_blocks);
    bit_tree_init(&alloc->used_tree, (uint64_t)alloc->geometry.page_blocks + 1);
    bit_tree_init(&alloc->page_tree, config->pages);
    if (!allocate(alloc))
        return -ENOMEM;
    enter_pages(alloc);
    if (alloc->null_block) {
        r = block_alloc_make_table(alloc, 0);
        if (r != 0)
            return r;
        block_alloc_unplace(alloc, 0);
        alloc->pages[0].state = BLOCK_ALLOC_MAPPING;
        block_alloc_place(alloc, 0);
    }
    *ret = steal_pointer(alloc);
    return 0;
}

struct block_alloc *block_alloc_free(struct block_alloc *alloc)
{
    if (!alloc)
        return NULL;
    if (alloc->pages)
        for (uint64_t page = 0; page < alloc->geometry.pages; page++)
            free(alloc->pages[page].free);
    free(alloc->pages);
    free(alloc->empty);
    free(alloc->free);
    free(alloc->sheddable);
    free(alloc->partly.filled);
    free(alloc->partly.heads);
    free(alloc->closed.filled);
    free(alloc->closed.heads);
    free(alloc);
    return NULL;
}

void block_alloc_empty_page(struct block_alloc *alloc, uint64_t number)
{
    struct page *page = &alloc->pages[number];

    bit_tree_fill(&alloc->block_tree, page->free, page->n);
    page->used = block_alloc_has_null(alloc, number);
    if (page->used)
        bit_tree_remove(&alloc->block_tree, page->free, 0);
}

int block_alloc_make_table(struct block_alloc *alloc, uint64_t number)
{
    struct page *page = &alloc->pages[number];

    if (page->free)
        return 0;
    page->free = words_new(&alloc->block_tree);
    if (!page->free)
        return -ENOMEM;
    block_geometry_range(&alloc->geometry, number, &page->first, &page->n);
    block_alloc_empty_page(alloc, number);
    return 0;
}

/* ---- Taking ---- */

static uint64_t best_page(const struct block_alloc *alloc)
{
    uint64_t used;

    if (bit_tree_is_empty(&alloc->used_tree, alloc->partly.filled))
        return bit_tree_first(&alloc->page_tree, alloc->free);
    used = bit_tree_last(&alloc->used_tree, alloc->partly.filled, alloc->used_tree.n_bits);
    return alloc->partly.heads[used] - 1;
}

/* The n lowest free blocks of a page that has as many. */
static void take_from(struct block_alloc *alloc, struct page *page, size_t n, uint32_t *ret_ids)
{
    page->used += (uint32_t)n;
    while (n > 0) {
        uint64_t base = bit_tree_first(&alloc->block_tree, page->free) & ~UINT64_C(63);
        uint64_t *word = &page->free[base / 64];
        uint64_t left = *word, bit;

        do {
            bit = (uint64_t)__builtin_ctzll(left);
            *ret_ids++ = page->first + (uint32_t)(base + bit);
            left &= left - 1;
        } while (--n > 0 && left);
        *word = left | UINT64_C(1) << bit;
        bit_tree_remove(&alloc->block_tree, page->free, base + bit);
    }
}

int block_alloc_take(struct block_alloc *alloc, size_t n, uint32_t *ret_ids)
{
    if (n > alloc->free_blocks)
        return BLOCK_ALLOC_E_SHORT;
    for (size_t done = 0, some; done < n; done += some) {
        uint64_t number = best_page(alloc);
        struct page *page = &alloc->pages[number];

        some = u64_min(n - done, page->n - page->used);
        block_alloc_unplace(alloc, number);
        take_from(alloc, page, some, ret_ids + done);
        block_alloc_place(alloc, number);
    }
    alloc->used_blocks += n;
    alloc->reserved_blocks = u64_sub_floor(alloc->reserved_blocks, n);
    block_alloc_publish(alloc);
    return 0;
}

/* ---- Giving ---- */

/* The page of a block, which is mostly that of the block before. */
static struct page *page_of(struct block_alloc *alloc, struct page *before, uint32_t id)
{
    /* Wraps around, and is too large, for a block that lies before the page. */
    if (before && id - before->first < before->n)
        return before;
    return &alloc->pages[block_geometry_page_of(&alloc->geometry, id)];
}

static int check_used(const struct block_alloc *alloc, const struct page *page, uint32_t id)
{
    if (page->state != BLOCK_ALLOC_MAPPED || id - page->first >= page->n || (alloc->null_block && id == 0))
        return BLOCK_ALLOC_E_FOREIGN;
    return bit_tree_has(page->free, id - page->first) ? BLOCK_ALLOC_E_FREE : 0;
}

/* Marks a block that is in use, and those after it that are and lie in the same word. Returns how many. */
static size_t mark_word(struct block_alloc *alloc, struct page *page, const uint32_t *ids, size_t n)
{
    uint32_t base = (ids[0] - page->first) & ~UINT32_C(63);
    uint64_t before = page->free[base / 64], after = before;
    size_t i;

    for (i = 0; i < n; i++) {
        uint32_t bit = ids[i] - page->first - base;

        if (bit >= u64_min(64, page->n - base) || after >> bit & 1 || (alloc->null_block && ids[i] == 0))
            break;
        after |= UINT64_C(1) << bit;
    }
    if (before == 0)
        bit_tree_add(&alloc->block_tree, page->free, ids[0] - page->first);
    page->free[base / 64] = after;
    return i;
}

static void unmark_free(struct block_alloc *alloc, const uint32_t *ids, size_t n)
{
    struct page *page = NULL;

    for (size_t i = 0; i < n; i++) {
        page = page_of(alloc, page, ids[i]);
        bit_tree_remove(&alloc->block_tree, page->free, ids[i] - page->first);
    }
}

/* All that can be wrong comes up here, and nothing but the blocks' own bits has changed by then. */
static int mark_free(struct block_alloc *alloc, const uint32_t *ids, size_t n)
{
    struct page *page = NULL;

    for (size_t i = 0; i < n; i += mark_word(alloc, page, ids + i, n - i)) {
        int r = BLOCK_ALLOC_E_FOREIGN;

        if (ids[i] < alloc->geometry.n_ids) {
            page = page_of(alloc, page, ids[i]);
            r = check_used(alloc, page, ids[i]);
        }
        if (r != 0) {
            unmark_free(alloc, ids, i);
            return r;
        }
    }
    return 0;
}

int block_alloc_give(struct block_alloc *alloc, const uint32_t *ids, size_t n, uint64_t epoch)
{
    struct page *page = NULL;
    int r;

    r = mark_free(alloc, ids, n);
    if (r != 0)
        return r;
    for (size_t done = 0, end; done < n; done = end) {
        page = page_of(alloc, NULL, ids[done]);
        for (end = done + 1; end < n && ids[end] - page->first < page->n;)
            end++;
        block_alloc_unplace(alloc, (uint64_t)(page - alloc->pages));
        page->used -= (uint32_t)(end - done);
        page->epoch = u64_max(page->epoch, epoch);
        block_alloc_place(alloc, (uint64_t)(page - alloc->pages));
    }
    alloc->used_blocks -= n;
    block_alloc_publish(alloc);
    return 0;
}

static void clear_page(struct block_alloc *alloc, uint64_t page, uint64_t epoch)
{
    block_alloc_unplace(alloc, page);
    block_alloc_empty_page(alloc, page);
    alloc->pages[page].epoch = u64_max(alloc->pages[page].epoch, epoch);
    block_alloc_place(alloc, page);
}

/* But for the null block's page, which would come back for ever. */
static void clear_buckets(struct block_alloc *alloc, const struct buckets *buckets, uint64_t epoch)
{
    uint64_t used = 0;

    while ((used = bit_tree_next(&alloc->used_tree, buckets->filled, used)) != BIT_TREE_NONE)
        clear_page(alloc, buckets->heads[used] - 1, epoch);
}

void block_alloc_clear(struct block_alloc *alloc, uint64_t epoch)
{
    bool null_mapped = alloc->null_block && alloc->pages[0].state == BLOCK_ALLOC_MAPPED;

    if (null_mapped)
        block_alloc_unplace(alloc, 0);
    clear_buckets(alloc, &alloc->partly, epoch);
    clear_buckets(alloc, &alloc->closed, epoch);
    if (null_mapped) {
        block_alloc_empty_page(alloc, 0);
        block_alloc_place(alloc, 0);
    }
    alloc->used_blocks = 0;
    alloc->reserved_blocks = 0;
    block_alloc_publish(alloc);
}

/* ---- Reserving ---- */

int block_alloc_reserve(struct block_alloc *alloc, uint64_t n)
{
    if (n > alloc->free_blocks - alloc->reserved_blocks)
        return BLOCK_ALLOC_E_SHORT;
    alloc->reserved_blocks += n;
    return 0;
}

void block_alloc_release(struct block_alloc *alloc)
{
    alloc->reserved_blocks = 0;
}
