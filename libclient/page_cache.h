/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Page cache: which of a region's free pages the library keeps. Pure: it orders entries that its owner embeds
 * in what stands for the memory, and says which to use and which to let go; making that true is the owner's
 * work.
 *
 * A free page is kept either mapped where it was last used, so that mapping the same page again costs
 * nothing, or merely imported, so that mapping it anywhere needs no message. Every cache has a bound in
 * pages, and all caches of a client share one in bytes.
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

#define PAGE_NONE UINT64_MAX

/* Bytes in all caches that share it. */
struct page_cache_bytes {
    uint64_t max_bytes;
    uint64_t bytes;
};

struct page_cache_entry {
    struct list link;
    uint64_t page; /* where it is mapped; PAGE_NONE: only imported */
};

struct page_cache {
    struct page_cache_bytes *shared;
    uint64_t page_bytes; /* of one entry */
    uint64_t max_pages;
    uint64_t n_pages;
    struct list mapped;   /* longest free first */
    struct list imported; /* longest free first */
};

void page_cache_init(struct page_cache *cache, struct page_cache_bytes *shared, uint64_t page_bytes,
                     uint64_t max_pages);

/* Adds what has just become free. May exceed the bounds: evict afterwards. */
void page_cache_put(struct page_cache *cache, struct page_cache_entry *entry);

/* Takes out a certain entry: it is used again, where it is. */
void page_cache_remove(struct page_cache *cache, struct page_cache_entry *entry);

/* Takes out the entry that is best used for another page: what is imported, last in first out; else what has
 * been free, mapped, for longest, which the owner has to unmap. NULL when empty. */
struct page_cache_entry *page_cache_take(struct page_cache *cache);

/* Takes out the next entry to let go while the cache is above its bounds; NULL once it is within. What is
 * imported goes first: it saves less when it is used again. */
struct page_cache_entry *page_cache_evict(struct page_cache *cache);

/* The same, whatever the bounds; NULL when empty. */
struct page_cache_entry *page_cache_empty(struct page_cache *cache);

/* How many more pages to get so that `wanted` are ready, without exceeding the bounds. */
uint64_t page_cache_shortfall(const struct page_cache *cache, uint64_t wanted);
