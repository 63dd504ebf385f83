/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What becomes of pages. Where a page is entered (which tree, which list, which sums) follows from what is
 * known of it and nothing else, so every change is: take it out, change it, enter it.
 *
 * Free pages whose epoch is not complete hang in a list by epoch. Engines count epochs upwards, so a page
 * nearly always goes to its end; one that counts downwards is served at the beginning.
 */

#include <errno.h>

#include "block_alloc-internal.h"

/* ---- Where a page is entered ---- */

static void list_put(struct block_alloc *alloc, uint32_t *head, uint32_t link)
{
    struct page *page = &alloc->pages[link - 1];

    page->prev = 0;
    page->next = *head;
    if (page->next)
        alloc->pages[page->next - 1].prev = link;
    *head = link;
}

static void list_drop(struct block_alloc *alloc, uint32_t *head, struct page *page)
{
    if (page->prev)
        alloc->pages[page->prev - 1].next = page->next;
    else
        *head = page->next;
    if (page->next)
        alloc->pages[page->next - 1].prev = page->prev;
}

static void bucket_put(struct block_alloc *alloc, struct buckets *buckets, uint64_t number)
{
    uint32_t used = alloc->pages[number].used;

    if (!buckets->heads[used])
        bit_tree_add(&alloc->used_tree, buckets->filled, used);
    list_put(alloc, &buckets->heads[used], (uint32_t)number + 1);
}

static void bucket_drop(struct block_alloc *alloc, struct buckets *buckets, struct page *page)
{
    list_drop(alloc, &buckets->heads[page->used], page);
    if (!buckets->heads[page->used])
        bit_tree_remove(&alloc->used_tree, buckets->filled, page->used);
}

static void waiting_put(struct block_alloc *alloc, uint64_t number)
{
    struct page *page = &alloc->pages[number];
    uint32_t before = alloc->waiting_tail, link = (uint32_t)number + 1;

    if (before && alloc->pages[alloc->waiting_head - 1].epoch > page->epoch)
        before = 0;
    while (before && alloc->pages[before - 1].epoch > page->epoch)
        before = alloc->pages[before - 1].prev;
    page->prev = before;
    page->next = before ? alloc->pages[before - 1].next : alloc->waiting_head;
    *(before ? &alloc->pages[before - 1].next : &alloc->waiting_head) = link;
    *(page->next ? &alloc->pages[page->next - 1].prev : &alloc->waiting_tail) = link;
    page->waiting = true;
    alloc->waiting_pages++;
}

static void waiting_drop(struct block_alloc *alloc, struct page *page)
{
    if (!page->next)
        alloc->waiting_tail = page->prev;
    list_drop(alloc, &alloc->waiting_head, page);
    page->waiting = false;
    alloc->waiting_pages--;
}

/* A page without used blocks: can it go? */
static void place_unused(struct block_alloc *alloc, uint64_t number)
{
    struct page *page = &alloc->pages[number];

    if (page->pins)
        return;
    if (page->epoch > alloc->completed) {
        waiting_put(alloc, number);
        return;
    }
    bit_tree_add(&alloc->page_tree, alloc->sheddable, number);
    alloc->sheddable_pages++;
}

static void unplace_unused(struct block_alloc *alloc, uint64_t number)
{
    struct page *page = &alloc->pages[number];

    if (page->pins)
        return;
    if (page->waiting) {
        waiting_drop(alloc, page);
        return;
    }
    bit_tree_remove(&alloc->page_tree, alloc->sheddable, number);
    alloc->sheddable_pages--;
}

/* The sum that a mapped page belongs to. */
static uint64_t *sum_of(struct block_alloc *alloc, uint64_t number)
{
    const struct page *page = &alloc->pages[number];

    if (block_alloc_is_removed(alloc, number))
        return &alloc->removed_pages;
    if (page->used == 0)
        return &alloc->free_pages;
    return page->used < page->n ? &alloc->partly_pages : &alloc->full_pages;
}

static struct buckets *buckets_of(struct block_alloc *alloc, uint64_t number)
{
    const struct page *page = &alloc->pages[number];

    return page->used < page->n && !block_alloc_is_removed(alloc, number) ? &alloc->partly : &alloc->closed;
}

static void place_mapped(struct block_alloc *alloc, uint64_t number)
{
    struct page *page = &alloc->pages[number];
    bool removed = block_alloc_is_removed(alloc, number);

    alloc->mapped_pages++;
    ++*sum_of(alloc, number);
    if (!removed)
        alloc->free_blocks += page->n - page->used;
    if (page->used) {
        bucket_put(alloc, buckets_of(alloc, number), number);
        return;
    }
    if (!removed)
        bit_tree_add(&alloc->page_tree, alloc->free, number);
    place_unused(alloc, number);
}

static void unplace_mapped(struct block_alloc *alloc, uint64_t number)
{
    struct page *page = &alloc->pages[number];
    bool removed = block_alloc_is_removed(alloc, number);

    alloc->mapped_pages--;
    --*sum_of(alloc, number);
    if (!removed)
        alloc->free_blocks -= page->n - page->used;
    if (page->used) {
        bucket_drop(alloc, buckets_of(alloc, number), page);
        return;
    }
    if (!removed)
        bit_tree_remove(&alloc->page_tree, alloc->free, number);
    unplace_unused(alloc, number);
}

/* Whether mapping a page would do any good. */
static bool is_usable(const struct block_alloc *alloc, uint64_t number)
{
    uint32_t first, n;

    if (block_alloc_is_removed(alloc, number))
        return false;
    if (alloc->geometry.page_blocks > 1)
        return true;
    block_geometry_range(&alloc->geometry, number, &first, &n);
    return n > 0;
}

void block_alloc_place(struct block_alloc *alloc, uint64_t number)
{
    enum block_alloc_state state = alloc->pages[number].state;

    if (state == BLOCK_ALLOC_MAPPED) {
        place_mapped(alloc, number);
        return;
    }
    if (state == BLOCK_ALLOC_EMPTY) {
        if (!is_usable(alloc, number))
            return;
        bit_tree_add(&alloc->page_tree, alloc->empty, number);
    }
    alloc->n_states[state]++;
}

void block_alloc_unplace(struct block_alloc *alloc, uint64_t number)
{
    enum block_alloc_state state = alloc->pages[number].state;

    if (state == BLOCK_ALLOC_MAPPED) {
        unplace_mapped(alloc, number);
        return;
    }
    if (state == BLOCK_ALLOC_EMPTY) {
        if (!is_usable(alloc, number))
            return;
        bit_tree_remove(&alloc->page_tree, alloc->empty, number);
    }
    alloc->n_states[state]--;
}

static void set_state(struct block_alloc *alloc, uint64_t number, enum block_alloc_state state)
{
    block_alloc_unplace(alloc, number);
    alloc->pages[number].state = (uint8_t)state;
    block_alloc_place(alloc, number);
}

/* ---- Planning and shedding ---- */

/* Of all empty pages, the last of which may have fewer than the others: where blocks don't straddle. */
static uint64_t blocks_of_empty(const struct block_alloc *alloc)
{
    const struct block_geometry *geometry = &alloc->geometry;
    bool last = bit_tree_has(alloc->empty, geometry->used_pages - 1);

    return (alloc->n_states[BLOCK_ALLOC_EMPTY] - last) * geometry->page_blocks + last * geometry->last_blocks;
}

uint64_t block_alloc_missing(const struct block_alloc *alloc, uint64_t n)
{
    uint64_t most = alloc->geometry.page_blocks, n_pages = 0;
    uint64_t missing = u64_sub_floor(n, alloc->free_blocks);

    if (alloc->geometry.period > 1) {
        uint64_t page = bit_tree_next(&alloc->page_tree, alloc->empty, 0);
        uint32_t first, of_page;

        for (; missing > 0 && page != BIT_TREE_NONE; n_pages++) {
            block_geometry_range(&alloc->geometry, page, &first, &of_page);
            missing = u64_sub_floor(missing, of_page);
            page = bit_tree_next(&alloc->page_tree, alloc->empty, page + 1);
        }
    } else if (missing > blocks_of_empty(alloc)) {
        n_pages = alloc->n_states[BLOCK_ALLOC_EMPTY];
        missing -= blocks_of_empty(alloc);
    }
    return n_pages + missing / most + (missing % most != 0);
}

uint64_t block_alloc_gain(const struct block_alloc *alloc, uint64_t n)
{
    uint64_t page, n_blocks = 0;
    uint32_t first, of_page;

    n = u64_min(n, alloc->n_states[BLOCK_ALLOC_EMPTY]);
    if (alloc->geometry.period == 1)
        return u64_min(n * alloc->geometry.page_blocks, blocks_of_empty(alloc));
    page = bit_tree_next(&alloc->page_tree, alloc->empty, 0);
    for (; n > 0; n--) {
        block_geometry_range(&alloc->geometry, page, &first, &of_page);
        n_blocks += of_page;
        page = bit_tree_next(&alloc->page_tree, alloc->empty, page + 1);
    }
    return n_blocks;
}

int block_alloc_plan(struct block_alloc *alloc, size_t n, uint64_t *ret_pages)
{
    uint64_t page = 0;

    if (n > alloc->n_states[BLOCK_ALLOC_EMPTY])
        return BLOCK_ALLOC_E_FULL;
    for (size_t i = 0; i < n; i++, page++) {
        page = bit_tree_next(&alloc->page_tree, alloc->empty, page);
        if (block_alloc_make_table(alloc, page) != 0)
            return -ENOMEM; /* the tables that were made wait for their pages */
    }
    for (size_t i = 0; i < n; i++) {
        ret_pages[i] = bit_tree_first(&alloc->page_tree, alloc->empty);
        set_state(alloc, ret_pages[i], BLOCK_ALLOC_MAPPING);
    }
    return 0;
}

/* What is left would not do. */
static bool is_needed(const struct block_alloc *alloc, uint64_t number, uint64_t keep)
{
    if (block_alloc_is_removed(alloc, number))
        return false;
    return alloc->free_pages <= keep || alloc->free_blocks - alloc->pages[number].n < alloc->reserved_blocks;
}

size_t block_alloc_shed(struct block_alloc *alloc, uint64_t keep, size_t max, uint64_t *ret_pages)
{
    size_t n;

    for (n = 0; n < max; n++) {
        /* Removed ones are the highest. */
        uint64_t page = bit_tree_last(&alloc->page_tree, alloc->sheddable, alloc->geometry.pages);

        if (page == BIT_TREE_NONE || is_needed(alloc, page, keep))
            break;
        set_state(alloc, page, BLOCK_ALLOC_UNMAPPING);
        ret_pages[n] = page;
    }
    block_alloc_publish(alloc);
    return n;
}

void block_alloc_complete(struct block_alloc *alloc, uint64_t epoch)
{
    if (epoch <= alloc->completed)
        return;
    alloc->completed = epoch;
    while (alloc->waiting_head && alloc->pages[alloc->waiting_head - 1].epoch <= epoch) {
        uint64_t number = alloc->waiting_head - 1;

        waiting_drop(alloc, &alloc->pages[number]);
        place_unused(alloc, number);
    }
}

/* ---- What the owner says ---- */

static int mark(struct block_alloc *alloc, uint64_t number, unsigned from)
{
    struct page *page;

    if (number >= alloc->geometry.pages)
        return BLOCK_ALLOC_E_PAGE;
    page = &alloc->pages[number];
    if (page->marked || !(from >> page->state & 1))
        return BLOCK_ALLOC_E_STATE;
    page->marked = true;
    return 0;
}

/* `from` is a set of states. */
static int move_pages(struct block_alloc *alloc, const uint64_t *pages, size_t n, unsigned from,
                      enum block_alloc_state to)
{
    size_t n_marked = 0;
    int r = 0;

    while (r == 0 && n_marked < n) {
        r = mark(alloc, pages[n_marked], from);
        n_marked += r == 0;
    }
    for (size_t i = 0; i < n_marked; i++) {
        alloc->pages[pages[i]].marked = false;
        if (r == 0)
            set_state(alloc, pages[i], to);
    }
    block_alloc_publish(alloc);
    return r;
}

int block_alloc_mapped(struct block_alloc *alloc, const uint64_t *pages, size_t n)
{
    return move_pages(alloc, pages, n, 1u << BLOCK_ALLOC_MAPPING | 1u << BLOCK_ALLOC_DOUBT,
                      BLOCK_ALLOC_MAPPED);
}

int block_alloc_unmapped(struct block_alloc *alloc, const uint64_t *pages, size_t n)
{
    return move_pages(alloc, pages, n,
                      1u << BLOCK_ALLOC_MAPPING | 1u << BLOCK_ALLOC_DOUBT | 1u << BLOCK_ALLOC_UNMAPPING,
                      BLOCK_ALLOC_EMPTY);
}

int block_alloc_keep(struct block_alloc *alloc, const uint64_t *pages, size_t n)
{
    return move_pages(alloc, pages, n, 1u << BLOCK_ALLOC_UNMAPPING, BLOCK_ALLOC_MAPPED);
}

int block_alloc_doubt(struct block_alloc *alloc, const uint64_t *pages, size_t n)
{
    return move_pages(alloc, pages, n, 1u << BLOCK_ALLOC_MAPPING | 1u << BLOCK_ALLOC_UNMAPPING,
                      BLOCK_ALLOC_DOUBT);
}

int block_alloc_broken(struct block_alloc *alloc, const uint64_t *pages, size_t n)
{
    return move_pages(alloc, pages, n,
                      1u << BLOCK_ALLOC_MAPPING | 1u << BLOCK_ALLOC_DOUBT | 1u << BLOCK_ALLOC_UNMAPPING,
                      BLOCK_ALLOC_BROKEN);
}

/* ---- Pins and the size ---- */

/* 0 if all pages can be pinned, or unpinned. */
static int check_pins(const struct block_alloc *alloc, uint64_t first, uint64_t n, bool pin)
{
    if (first > alloc->geometry.pages || n > alloc->geometry.pages - first)
        return BLOCK_ALLOC_E_PAGE;
    for (uint64_t number = first; number < first + n; number++) {
        const struct page *page = &alloc->pages[number];

        if (pin ? page->state != BLOCK_ALLOC_MAPPED || page->pins == UINT32_MAX : page->pins == 0)
            return BLOCK_ALLOC_E_STATE;
    }
    return 0;
}

int block_alloc_pin(struct block_alloc *alloc, uint64_t first, uint64_t n)
{
    int r = check_pins(alloc, first, n, true);

    if (r != 0)
        return r;
    for (uint64_t number = first; number < first + n; number++) {
        block_alloc_unplace(alloc, number);
        alloc->pinned_pages += alloc->pages[number].pins++ == 0;
        block_alloc_place(alloc, number);
    }
    return 0;
}

int block_alloc_unpin(struct block_alloc *alloc, uint64_t first, uint64_t n)
{
    int r = check_pins(alloc, first, n, false);

    if (r != 0)
        return r;
    for (uint64_t number = first; number < first + n; number++) {
        block_alloc_unplace(alloc, number);
        alloc->pinned_pages -= --alloc->pages[number].pins == 0;
        block_alloc_place(alloc, number);
    }
    return 0;
}

void block_alloc_resize(struct block_alloc *alloc, uint64_t max_pages)
{
    uint64_t max = u64_min(max_pages, alloc->geometry.used_pages);
    uint64_t low = u64_min(max, alloc->max_pages), high = u64_max(max, alloc->max_pages);

    for (uint64_t number = low; number < high; number++)
        block_alloc_unplace(alloc, number);
    alloc->max_pages = max;
    for (uint64_t number = low; number < high; number++)
        block_alloc_place(alloc, number);
    alloc->reserved_blocks = u64_min(alloc->reserved_blocks, alloc->free_blocks);
    block_alloc_publish(alloc);
}
