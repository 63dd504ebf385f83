/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Regions: a reservation of address space and the state of its pages.
 */

#include "borrow.h"
#include "lease.h"

enum page_state {
    PAGE_EMPTY,
    PAGE_CACHED,  /* free, but still mapped: its backing is in the region's cache */
    PAGE_BUSY,    /* some call is at work on it */
    PAGE_MAPPED,  /* the caller's */
    PAGE_LEAVING, /* mapped until the GPU has come to a fence */
    PAGE_BROKEN,  /* the driver failed while a failure was undone: nobody knows what is mapped */
};

/* How to tell that the GPU has cleared what it was told to, see clear.h. */
enum clearing {
    CLEARING_NONE,   /* it has */
    CLEARING_EVENT,  /* the region's event says so */
    CLEARING_STREAM, /* only the stream knows: something failed on the way to the event */
};

/* Of the region's zero page, see holes.h. */
enum hole {
    HOLE_NONE,
    HOLE_MAPPED, /* it is mapped there */
    HOLE_TORN,   /* the driver failed while a failure was undone: parts of it may be */
};

struct orders; /* see orders.h */
struct remote; /* see remote.h */

struct page {
    struct backing *backing;
    enum page_state state;
    uint32_t pins;
    enum hole hole;
};

struct kvc_blocks;
struct holes;

struct kvc_region {
    struct list link; /* of the client's regions, or of its remote ones */
    struct kvc_client *client;
    struct shape *shape;
    uint32_t id;       /* the daemon's */
    uint32_t take_max; /* pages to ask for at once */
    CUdeviceptr address;
    struct kvc_hold *hold; /* not NULL: the addresses are this hold's */
    struct page *pages;
    uint64_t n_mapped;
    uint64_t n_occupied; /* pages that are not empty */
    uint64_t n_pinned;   /* pages */
    struct page_cache cache;
    uint32_t flags;         /* KVC_REGION_* */
    CUstream stream;        /* in whose order pages are cleared, if they are */
    enum clearing clearing; /* what is under way there */
    CUevent cleared;        /* NULL: not made so far */
    struct list fences;     /* oldest first */
    struct holes *holes;    /* NULL: what is not mapped faults */
    struct region_lease lease;
    struct kvc_blocks *blocks; /* whose the pages are; NULL: the host's */
    bool parting;              /* blocks that are being closed still clear up here */
    uint64_t max_cached_pages; /* of the cache, when they are the host's again */
    uint64_t ahead_pages;      /* of them: on its way to become free ones; under their lock */
    atomic_bool work_wanted;   /* of them: something has changed that blocks_work() should see */
    uint64_t given_round;      /* see blocks_give.c */

    struct orders *orders; /* not NULL: it is mapped by a scheduler elsewhere */
    struct remote *remote; /* not NULL: it is a worker's; there is no shape, address or page here */

    struct take *refill; /* under way */
    bool refill_wanted;
    bool refill_refused; /* not to be tried again while the status page shows `refused_at` */
    struct status_values refused_at;
};

/* Claimed and offered pages; none once the connection has ended. Of any thread. */
static inline struct lease lease_of(const struct kvc_region *region)
{
    if (!region->lease.line || !region->client->conn->alive)
        return (struct lease){0};
    return lease_read(region->lease.line);
}

/* Unmaps, returns, frees. After blocks_close_with(). KVC_E_TIMEOUT where the daemon didn't answer; the region
 * is gone all the same. */
int region_close(struct kvc_region *region);

/* Tells the daemon that a region of its is given up. KVC_E_TIMEOUT as above. */
int region_tell_closed(struct kvc_client *client, uint32_t region_id, bool wait);

/* A region without addresses, for memory that is mapped elsewhere. As kvc_region_open(), and the same as
 * closing for what is left of it. */
int region_open_store(struct kvc_client *client, const struct kvc_region_options *options,
                      struct kvc_region **ret);
void region_close_store(struct kvc_region *store);

/* Frees host memory only. */
struct kvc_region *region_forget(struct kvc_region *region);

/* Changes of a page's state, and of what counts as mapped. */
void region_page_mapped(struct kvc_region *region, uint64_t page, struct backing *backing);
void region_page_empty(struct kvc_region *region, uint64_t page);
void region_page_broken(struct kvc_region *region, uint64_t page, struct backing *backing);
void region_count_unmapped(struct kvc_region *region, uint64_t n);

/* Tells the daemon, and who hands out the region's blocks, what is pinned. */
void region_show_pins(struct kvc_region *region);
