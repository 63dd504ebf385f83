/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The allocator of block addresses in a region. It owns which page is mapped and which of its blocks are in
 * use. It knows nothing of how much memory there is: a free page is just a number that could be mapped.
 *
 * Free pages are a stack, so the page that was unmapped last is mapped first. Mapped pages with a free block
 * are in a list; blocks come from its head, and a page that gets a free block goes there, so that pages fill
 * up before others are begun and empty ones become rare exceptions that can be unmapped.
 */

#include "pages.h"

#include <assert.h>
#include <errno.h>

#include "base/list.h"

struct page {
    struct list link; /* in `open` while mapped and not full */
    uint64_t free;    /* a bit for each block */
};

struct pages {
    uint32_t n_pages, per_page;
    struct page *pages;
    uint64_t *free_pages; /* the first n_free of them, the next to be used last */
    uint32_t n_free;
    uint64_t *answer; /* pages that the last call named */
    struct list open;
    uint64_t open_blocks; /* free ones in mapped pages */
};

int pages_new(uint32_t n_pages, uint32_t per_page, struct pages **ret_pages)
{
    _cleanup_(pages_freep) struct pages *p = NULL;

    if (per_page == 0 || per_page > PAGES_BLOCKS_MAX)
        return -EINVAL;
    p = calloc(1, sizeof(*p));
    if (!p)
        return -ENOMEM;
    p->n_pages = p->n_free = n_pages;
    p->per_page = per_page;
    list_init(&p->open);
    p->pages = calloc(n_pages, sizeof(*p->pages));
    p->free_pages = calloc(n_pages, sizeof(*p->free_pages));
    p->answer = calloc(n_pages, sizeof(*p->answer));
    if (!p->pages || !p->free_pages || !p->answer)
        return -ENOMEM;
    for (uint32_t i = 0; i < n_pages; i++) {
        list_init(&p->pages[i].link);
        p->free_pages[i] = n_pages - 1 - i;
    }
    *ret_pages = steal_pointer(p);
    return 0;
}

struct pages *pages_free(struct pages *p)
{
    if (p) {
        free(p->pages);
        free(p->free_pages);
        free(p->answer);
        free(p);
    }
    return NULL;
}

static uint64_t all_blocks(const struct pages *p)
{
    return p->per_page == 64 ? UINT64_MAX : (UINT64_C(1) << p->per_page) - 1;
}

int pages_wanted(struct pages *p, size_t n_blocks, const uint64_t **ret_pages, size_t *ret_n)
{
    size_t n = n_blocks > p->open_blocks ? (n_blocks - p->open_blocks + p->per_page - 1) / p->per_page : 0;

    if (n > p->n_free)
        return -ENOSPC;
    for (size_t i = 0; i < n; i++)
        p->answer[i] = p->free_pages[p->n_free - 1 - i];
    *ret_pages = p->answer;
    *ret_n = n;
    return 0;
}

void pages_add(struct pages *p, size_t n)
{
    assert(n <= p->n_free);
    for (; n > 0; n--) {
        struct page *page = &p->pages[p->free_pages[--p->n_free]];

        page->free = all_blocks(p);
        list_append(&p->open, &page->link);
        p->open_blocks += p->per_page;
    }
}

void pages_take(struct pages *p, size_t n_blocks, uint32_t *ret_blocks)
{
    assert(n_blocks <= p->open_blocks);
    p->open_blocks -= n_blocks;
    for (size_t i = 0; i < n_blocks; i++) {
        struct page *page = list_first(&p->open, struct page, link);
        unsigned bit = (unsigned)__builtin_ctzll(page->free);

        ret_blocks[i] = (uint32_t)(page - p->pages) * p->per_page + bit;
        page->free &= page->free - 1;
        if (page->free == 0)
            list_unlink(&page->link);
    }
}

/* True when the page is empty with it. */
static int give_block(struct pages *p, uint32_t block)
{
    struct page *page = &p->pages[block / p->per_page];
    uint64_t bit = UINT64_C(1) << (block % p->per_page);

    assert(block / p->per_page < p->n_pages && !(page->free & bit));
    if (page->free == 0)
        list_prepend(&p->open, &page->link);
    page->free |= bit;
    p->open_blocks++;
    return page->free == all_blocks(p);
}

void pages_give(struct pages *p, const uint32_t *blocks, size_t n, const uint64_t **ret_pages, size_t *ret_n)
{
    size_t n_empty = 0;

    for (size_t i = 0; i < n; i++) {
        uint32_t number = blocks[i] / p->per_page;

        if (!give_block(p, blocks[i]))
            continue;
        list_unlink(&p->pages[number].link);
        p->pages[number].free = 0;
        p->open_blocks -= p->per_page;
        p->free_pages[p->n_free++] = number;
        p->answer[n_empty++] = number;
    }
    *ret_pages = p->answer;
    *ret_n = n_empty;
}
