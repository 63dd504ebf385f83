/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Making a kvc_blocks, and its end. From opening to closing its regions' pages are its own: they have no page
 * cache beside it, since free pages that stay mapped are that.
 *
 * Threads may be at work on it for nobody, the library's own or such as see to a notice: whoever closes
 * waits for them, with no lock held that they may need.
 */

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "blocks.h"
#include "blocks_group.h"
#include "map.h"
#include "remote.h"
#include "reserve.h"

static struct kvc_blocks *blocks_free(struct kvc_blocks *blocks)
{
    if (!blocks)
        return NULL;
    pthread_cond_destroy(&blocks->changed);
    pthread_mutex_destroy(&blocks->lock);
    group_free(blocks->group);
    block_alloc_free(blocks->alloc);
    free(blocks->order);
    free(blocks);
    return NULL;
}

/* ---- Opening ---- */

static int explain(int r)
{
    switch (r) {
    case BLOCK_ALLOC_E_ZERO:
        return error_set(KVC_E_INVALID, "A block needs a size");
    case BLOCK_ALLOC_E_LARGE:
        return error_set(KVC_E_INVALID, "A block is larger than a page");
    case BLOCK_ALLOC_E_MANY:
        return error_set(KVC_E_INVALID, "The region has more blocks than 32 bits can number");
    default:
        return error_nomem();
    }
}

static void sort_by_gpu(struct kvc_blocks *blocks)
{
    for (size_t i = 0; i < blocks->n_regions; i++) {
        size_t at = i;

        for (; at > 0 && strcmp(blocks->regions[blocks->order[at - 1]]->client->device.uuid,
                                blocks->regions[i]->client->device.uuid) > 0;
             at--)
            blocks->order[at] = blocks->order[at - 1];
        blocks->order[at] = i;
    }
}

static int check_regions(struct kvc_region *const *regions, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!regions[i])
            return error_set(KVC_E_INVALID, "One of the regions is missing");
        if (regions[i]->orders)
            return error_set(KVC_E_INVALID, "A region that is mapped by a scheduler has no blocks here");
        if (!regions[i]->remote != !regions[0]->remote)
            return error_set(KVC_E_INVALID,
                             "Blocks need regions that are all of this process, or all of workers");
        if (kvc_region_pages(regions[i]) != kvc_region_pages(regions[0]))
            return error_set(KVC_E_INVALID, "The regions differ in their number of pages");
        for (size_t j = 0; j < i; j++)
            if (regions[j] == regions[i])
                return error_set(KVC_E_INVALID, "A region is named twice");
    }
    return 0;
}

static void set_bounds(struct kvc_blocks *blocks, const struct kvc_client *client)
{
    uint64_t slot_bytes = kvc_region_page_bytes(blocks->regions[0]);
    uint64_t max = u64_min(client->max_reserved_pages, client->cached.max_bytes / slot_bytes);

    blocks->prealloc_on = client->min_reserved_pages > 0;
    blocks->max_free_pages = max;
    blocks->hold_ns = client->report_ns + LEASE_TICK_NS;
    prealloc_init(&blocks->prealloc, client->min_reserved_pages, blocks->prealloc_on ? max : 0);
}

static void set_regions(struct kvc_blocks *blocks, struct kvc_region *const *regions, size_t n)
{
    blocks->n_regions = n;
    blocks->ours = regions[0]->client->ours;
    blocks->regions = (struct kvc_region **)&blocks->glances[n];
    for (size_t i = 0; i < n; i++) {
        const struct kvc_client *client = regions[i]->client;

        blocks->regions[i] = regions[i];
        blocks->glances[i] = (struct glance){
            .connected = &client->conn->alive,
            .noticed = &client->notice.open,
            .line = regions[i]->lease.line,
        };
    }
}

/* Of a page, in one segment. */
static uint64_t segment_share(const struct kvc_region *region)
{
    return region->remote ? region->remote->page_bytes / region->remote->segments : region->shape->page_bytes;
}

static int blocks_new(struct kvc_region *const *regions, size_t n, const struct kvc_blocks_options *options,
                      struct kvc_blocks **ret)
{
    struct block_alloc_config config = {
        .page_bytes = segment_share(regions[0]),
        .block_bytes = options->block_bytes,
        .pages = kvc_region_pages(regions[0]),
        .max_pages = options->max_pages ? options->max_pages : UINT64_MAX,
        .max_blocks = options->max_blocks ? options->max_blocks : UINT64_MAX,
        .null_block = options->null_block != 0,
    };
    const size_t each = sizeof(struct glance) + sizeof(regions[0]);
    struct kvc_blocks *blocks = calloc(1, sizeof(*blocks) + n * each);
    int r;

    if (!blocks)
        return error_nomem();
    pthread_mutex_init(&blocks->lock, NULL);
    conn_init_condition(&blocks->changed);
    blocks->order = calloc(n, sizeof(blocks->order[0]));
    r = blocks->order ? block_alloc_new(&config, &blocks->alloc) : -ENOMEM;
    if (r != 0) {
        blocks_free(blocks);
        return explain(r);
    }
    set_regions(blocks, regions, n);
    sort_by_gpu(blocks);
    set_bounds(blocks, regions[0]->client);
    *ret = blocks;
    return 0;
}

/* Some call of the host's may be waiting for memory for a page. */
static bool is_in_use(const struct kvc_region *region)
{
    if (region->n_mapped > 0)
        return true;
    for (uint64_t i = 0; !region->remote && i < region->shape->pages; i++)
        if (region->pages[i].state == PAGE_BUSY)
            return true;
    return false;
}

/* What the host's cache holds is mapped here and in no other region, which nobody would know. */
static int empty_cache(struct kvc_region *region)
{
    struct list leaving = LIST_INIT(leaving);
    int r = reserve_empty_region(region, &leaving);

    error_hold();
    borrow_return(region->client, &leaving, false);
    error_release();
    return r;
}

static int claim_region(struct kvc_blocks *blocks, struct kvc_region *region)
{
    int r = client_enter(region->client);

    if (r < 0)
        return r;
    if (region->blocks)
        r = error_set(KVC_E_INVALID, "The region has a kvc_blocks already");
    else if (is_in_use(region))
        r = error_set(KVC_E_INVALID, "Pages of the region are mapped already");
    else if (!region->remote)
        r = empty_cache(region);
    if (r == 0) {
        region->blocks = blocks;
        region->max_cached_pages = region->cache.max_pages;
        region->cache.max_pages = 0;
    }
    client_leave(region->client);
    return r;
}

static int map_null_page(struct kvc_blocks *blocks)
{
    const uint64_t page = 0;

    return block_alloc_page_state(blocks->alloc, page) == BLOCK_ALLOC_MAPPING ? blocks_map(blocks, &page, 1)
                                                                              : 0;
}

KVC_API int kvc_blocks_open(struct kvc_region *const *regions, size_t n_regions,
                            const struct kvc_blocks_options *options, struct kvc_blocks **ret)
{
    struct kvc_blocks_options copy;
    struct kvc_blocks *blocks = NULL;
    int r;

    if (!ret || !regions || n_regions == 0)
        return error_set(KVC_E_INVALID, "No regions, or nowhere to put the handle");
    if (!options ||
        !options_copy(&copy, sizeof(copy), offsetof(struct kvc_blocks_options, max_blocks), options))
        return error_set(KVC_E_INVALID, "kvc_blocks_options has a size that this library does not know");
    r = check_regions(regions, n_regions);
    if (r == 0)
        r = blocks_new(regions, n_regions, &copy, &blocks);
    if (r < 0)
        return r;
    for (size_t i = 0; i < n_regions && r == 0; i++)
        r = claim_region(blocks, regions[i]);
    if (r == 0 && regions[0]->remote)
        r = group_new(regions, (uint32_t)n_regions, &blocks->group);
    if (r == 0)
        r = map_null_page(blocks);
    if (r < 0) {
        error_hold();
        kvc_blocks_close(blocks);
        error_release();
        return r;
    }
    *ret = blocks;
    return 0;
}

/* ---- Closing ---- */

bool blocks_begin(struct kvc_blocks *blocks)
{
    bool ok;

    pthread_mutex_lock(&blocks->lock);
    ok = !blocks->closing;
    blocks->n_users += ok;
    pthread_mutex_unlock(&blocks->lock);
    return ok;
}

void blocks_end(struct kvc_blocks *blocks)
{
    pthread_mutex_lock(&blocks->lock);
    blocks->n_users--;
    pthread_cond_broadcast(&blocks->changed);
    pthread_mutex_unlock(&blocks->lock);
}

/* False: somebody else does it already. */
static bool begin_closing(struct kvc_blocks *blocks)
{
    bool ok;

    pthread_mutex_lock(&blocks->lock);
    ok = !blocks->closing;
    blocks->closing = true;
    pthread_mutex_unlock(&blocks->lock);
    return ok;
}

static void wait_for_users(struct kvc_blocks *blocks)
{
    pthread_mutex_lock(&blocks->lock);
    while (blocks->n_users > 0)
        pthread_cond_wait(&blocks->changed, &blocks->lock);
    pthread_mutex_unlock(&blocks->lock);
}

/* Pinned pages are the host's from here on. */
static void free_mapped(struct kvc_region *region)
{
    for (uint64_t i = 0; i < region->shape->pages; i++) {
        struct page *page = &region->pages[i];

        if (page->state != PAGE_MAPPED || page->pins > 0)
            continue;
        page->state = PAGE_CACHED;
        page->backing->entry.page = i;
        page_cache_put(&region->cache, &page->backing->entry);
        region_count_unmapped(region, 1);
    }
}

/* What the driver doesn't unmap stays in the cache, and is tried again like all that is there. */
static void empty_region(struct kvc_region *region, bool wait)
{
    struct list leaving = LIST_INIT(leaving);
    int r, one;

    free_mapped(region);
    r = reserve_empty_region(region, &leaving);
    one = borrow_return(region->client, &leaving, wait);
    if (r < 0 || one < 0)
        client_log(region->client, KVC_LOG_WARNING, "Pages could not be given back: %s", kvc_last_error());
}

static void leave_region(struct kvc_blocks *blocks, struct kvc_region *region, bool wait)
{
    pthread_mutex_lock(&blocks->lock);
    region->ahead_pages = 0;
    lease_give_up(region, UINT32_MAX);
    lease_hint(region, 0, 0);
    pthread_mutex_unlock(&blocks->lock);
    region->cache.max_pages = region->max_cached_pages;
    if (!region->remote)
        empty_region(region, wait);
}

/* From the broadcast on the region may go, and with the lock its client. */
static void close_region(struct kvc_blocks *blocks, struct kvc_region *region, bool wait)
{
    struct kvc_client *client = region->client;

    if (client_enter(client) < 0)
        return;
    if (region->blocks == blocks) {
        region->blocks = NULL;
        region->parting = true;
        leave_region(blocks, region, wait);
        region->parting = false;
        pthread_cond_broadcast(&client->conn->changed);
    }
    client_leave(client);
}

/* `wait`: for the daemons to confirm that they have the memory back. */
static struct kvc_blocks *close_all(struct kvc_blocks *blocks, bool wait)
{
    wait_for_users(blocks);
    if (blocks->group)
        blocks_group_empty(blocks);
    /* It speaks to regions that may go next. Whether there was one is looked at until then. */
    group_free(blocks->group);
    for (size_t i = 0; i < blocks->n_regions; i++)
        close_region(blocks, blocks->regions[i], wait);
    blocks->group = NULL;
    return blocks_free(blocks);
}

KVC_API struct kvc_blocks *kvc_blocks_close(struct kvc_blocks *blocks)
{
    if (!blocks)
        return NULL;
    if (client_is_forked(blocks->regions[0]->client)) {
        if (client_is_at_rest(blocks->regions[0]->client))
            blocks_forget(blocks);
        return NULL;
    }
    begin_closing(blocks);
    return close_all(blocks, true);
}

/* Where several of its regions are closed at once, one takes it along, and the others wait until it has left
 * them. No daemon is waited for: it confirms that the region is closed. */
void blocks_close_with(struct kvc_region *region)
{
    struct conn *conn = region->client->conn;
    struct kvc_blocks *blocks = NULL;

    if (client_enter(region->client) < 0)
        return;
    if (region->blocks && begin_closing(region->blocks))
        blocks = region->blocks;
    while ((region->blocks || region->parting) && !blocks)
        pthread_cond_wait(&conn->changed, &conn->lock);
    client_leave(region->client);
    if (blocks)
        close_all(blocks, false);
}

void blocks_forget(struct kvc_blocks *blocks)
{
    for (size_t i = 0; i < blocks->n_regions; i++)
        blocks->regions[i]->blocks = NULL;
    group_free(blocks->group);
    block_alloc_free(blocks->alloc);
    free(blocks->order);
    free(blocks);
}
