/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Making a kvc_blocks, and its end. From opening to closing its regions' pages are its own: they have no page
 * cache beside it, since free pages that stay mapped are that.
 *
 * The library's own thread may be at work on it, though never for long: whoever closes waits for that.
 */

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "blocks.h"
#include "blocks_group.h"
#include "map.h"
#include "remote.h"

#define CLOSE_BATCH 64

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
        .null_block = options->null_block != 0,
    };
    struct kvc_blocks *blocks = calloc(1, sizeof(*blocks) + n * sizeof(blocks->regions[0]));
    int r;

    if (!blocks)
        return error_nomem();
    pthread_mutex_init(&blocks->lock, NULL);
    pthread_cond_init(&blocks->changed, NULL);
    blocks->order = calloc(n, sizeof(blocks->order[0]));
    r = blocks->order ? block_alloc_new(&config, &blocks->alloc) : -ENOMEM;
    if (r != 0) {
        blocks_free(blocks);
        return explain(r);
    }
    blocks->n_regions = n;
    memcpy(blocks->regions, regions, n * sizeof(regions[0]));
    sort_by_gpu(blocks);
    set_bounds(blocks, regions[0]->client);
    *ret = blocks;
    return 0;
}

static int claim_region(struct kvc_blocks *blocks, struct kvc_region *region)
{
    int r = client_enter(region->client);

    if (r < 0)
        return r;
    if (region->blocks)
        r = error_set(KVC_E_INVALID, "The region has a kvc_blocks already");
    else if (region->n_mapped > 0)
        r = error_set(KVC_E_INVALID, "Pages of the region are mapped already");
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
    if (!options || !options_copy(&copy, sizeof(copy), sizeof(copy), options))
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

static void wait_for_users(struct kvc_blocks *blocks, struct kvc_client *client)
{
    while (blocks->n_users > 0)
        pthread_cond_wait(&client->conn->changed, &client->conn->lock);
}

static size_t gather(const struct kvc_region *region, uint64_t *next, uint64_t *pages)
{
    size_t n = 0;

    for (; *next < region->shape->pages && n < CLOSE_BATCH; ++*next)
        if (region->pages[*next].state == PAGE_MAPPED)
            pages[n++] = *next;
    return n;
}

static void leave_region(struct kvc_region *region)
{
    uint64_t pages[CLOSE_BATCH], next = 0;
    size_t n;

    if (region->refill)
        borrow_abandon(region->refill);
    region->refill = NULL;
    lease_give_up(region, UINT32_MAX);
    lease_hint(region, 0, 0);
    while (!region->remote && (n = gather(region, &next, pages)) > 0)
        if (unmap_pages(region, pages, n) < 0)
            client_log(region->client, KVC_LOG_WARNING, "Pages could not be given back: %s",
                       kvc_last_error());
    region->cache.max_pages = region->max_cached_pages;
}

static void close_region(struct kvc_blocks *blocks, struct kvc_region *region)
{
    if (client_enter(region->client) < 0)
        return;
    if (region->blocks == blocks) {
        wait_for_users(blocks, region->client);
        region->blocks = NULL;
        leave_region(region);
    }
    client_leave(region->client);
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
    if (blocks->group)
        blocks_group_empty(blocks);
    for (size_t i = 0; i < blocks->n_regions; i++)
        close_region(blocks, blocks->regions[i]);
    return blocks_free(blocks);
}

/* The region's pages are its own affair from here on. */
void blocks_part(struct kvc_blocks *blocks, struct kvc_region *region)
{
    wait_for_users(blocks, region->client);
    region->blocks = NULL;
    blocks_free(blocks);
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
