/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Two lists in order of time. Engines tend to free and use the same pages over and over, so the page that has
 * been free for longest is the one that is least likely to be asked for by its number: it is the first to be
 * taken for another number, and the first mapped one to go. Among imported pages there is no such difference,
 * and the last one in is taken because its memory is the likeliest to be in a cache of the device.
 */

#include "page_cache.h"

#include "base/arith.h"

void page_cache_init(struct page_cache *cache, struct page_cache_bytes *shared, uint64_t page_bytes,
                     uint64_t max_pages)
{
    *cache = (struct page_cache){.shared = shared, .page_bytes = page_bytes, .max_pages = max_pages};
    list_init(&cache->mapped);
    list_init(&cache->imported);
}

void page_cache_put(struct page_cache *cache, struct page_cache_entry *entry)
{
    list_append(entry->page == PAGE_NONE ? &cache->imported : &cache->mapped, &entry->link);
    cache->n_pages++;
    cache->shared->bytes += cache->page_bytes;
}

void page_cache_remove(struct page_cache *cache, struct page_cache_entry *entry)
{
    list_unlink(&entry->link);
    cache->n_pages--;
    cache->shared->bytes -= cache->page_bytes;
}

static struct page_cache_entry *take_out(struct page_cache *cache, struct list *link)
{
    struct page_cache_entry *entry = container_of(link, struct page_cache_entry, link);

    page_cache_remove(cache, entry);
    return entry;
}

struct page_cache_entry *page_cache_take(struct page_cache *cache)
{
    if (!list_is_empty(&cache->imported))
        return take_out(cache, cache->imported.prev);
    if (!list_is_empty(&cache->mapped))
        return take_out(cache, cache->mapped.next);
    return NULL;
}

struct page_cache_entry *page_cache_empty(struct page_cache *cache)
{
    if (!list_is_empty(&cache->imported))
        return take_out(cache, cache->imported.next);
    if (!list_is_empty(&cache->mapped))
        return take_out(cache, cache->mapped.next);
    return NULL;
}

struct page_cache_entry *page_cache_evict(struct page_cache *cache)
{
    if (cache->n_pages <= cache->max_pages && cache->shared->bytes <= cache->shared->max_bytes)
        return NULL;
    return page_cache_empty(cache);
}

uint64_t page_cache_shortfall(const struct page_cache *cache, uint64_t wanted)
{
    uint64_t target = u64_min(wanted, cache->max_pages);
    uint64_t room_bytes = u64_sub_floor(cache->shared->max_bytes, cache->shared->bytes);

    return u64_min(u64_sub_floor(target, cache->n_pages), room_bytes / cache->page_bytes);
}
