/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Pins: memory that is registered with a network card keeps its physical pages, whatever is unmapped. So it
 * is never unmapped, never a page that the library keeps for later, and never asked for: the daemon is told
 * how much there is.
 */

#include "region.h"

#include <inttypes.h>

#include "blocks.h"

/* All or nothing; what is not mapped has nothing that could be registered. */
static int check_range(const struct kvc_region *region, uint64_t first, uint64_t n, bool pinned)
{
    if (n > region->shape->pages || first > region->shape->pages - n)
        return error_set(KVC_E_INVALID,
                         "There are no pages %" PRIu64 " to %" PRIu64 " in a region of %" PRIu64, first,
                         first + n - 1, region->shape->pages);
    for (uint64_t i = first; i < first + n; i++) {
        const struct page *page = &region->pages[i];

        if (page->state != PAGE_MAPPED)
            return error_set(KVC_E_NOT_MAPPED, "Page %" PRIu64 " is not mapped", i);
        if (pinned && page->pins == 0)
            return error_set(KVC_E_INVALID, "Page %" PRIu64 " is not pinned", i);
        if (!pinned && page->pins == UINT32_MAX)
            return error_set(KVC_E_INVALID, "Page %" PRIu64 " is pinned too often", i);
    }
    return 0;
}

static void pin(struct kvc_region *region, uint64_t first, uint64_t n)
{
    for (uint64_t i = first; i < first + n; i++)
        region->n_pinned += region->pages[i].pins++ == 0;
}

static void unpin(struct kvc_region *region, uint64_t first, uint64_t n)
{
    for (uint64_t i = first; i < first + n; i++)
        region->n_pinned -= --region->pages[i].pins == 0;
}

/* Who hands out the blocks is asked first: a page that it has begun to take away can no more be pinned. */
static int change_blocks(struct kvc_region *region, uint64_t first, uint64_t n, bool down)
{
    if (!region->blocks || blocks_pin(region->blocks, first, n, down) == 0)
        return 0;
    return error_set(KVC_E_NOT_MAPPED,
                     "Of the pages %" PRIu64 " to %" PRIu64 " one is just being mapped, or unmapped", first,
                     first + n - 1);
}

static int change(struct kvc_region *region, uint64_t first, uint64_t n, bool down)
{
    int r;

    if (!region)
        return error_set(KVC_E_INVALID, "No region");
    if (region->remote)
        return error_set(KVC_E_INVALID, "Pages are pinned where they are mapped: in the worker");
    r = client_enter(region->client);
    if (r < 0)
        return r;
    r = check_range(region, first, n, down);
    if (r == 0)
        r = change_blocks(region, first, n, down);
    if (r == 0)
        (down ? unpin : pin)(region, first, n);
    client_leave(region->client);
    return r;
}

KVC_API int kvc_region_pin(struct kvc_region *region, uint64_t first, uint64_t n)
{
    return change(region, first, n, false);
}

KVC_API int kvc_region_unpin(struct kvc_region *region, uint64_t first, uint64_t n)
{
    return change(region, first, n, true);
}
