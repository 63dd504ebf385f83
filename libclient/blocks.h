/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Blocks: the KV blocks of an engine, over one region or several whose pages are mapped together.
 *
 * Locks: a client's lock comes before the lock of a kvc_blocks; so nobody who holds the latter calls into the
 * driver, or waits.
 */

#include <pthread.h>
#include <stdatomic.h>

#include "block_alloc.h"
#include "client.h"
#include "group.h"
#include "prealloc.h"

struct kvc_region;

/* What available() looks at of each region and its client, in one step each: a walk through their structures
 * takes a tenth longer. None of the pointers changes. */
struct glance {
    const atomic_bool *connected, *noticed;
    const struct lease_line *line; /* NULL: there are no leases for this region */
};

struct kvc_blocks {
    /* What available() touches without the lock, and `glances`. */
    struct block_alloc *alloc;
    const volatile uint32_t *ours;    /* the first client's */
    uint64_t hold_ns;                 /* how long a report holds */
    _Atomic uint64_t report_until_ns; /* until then the last report holds ... */
    _Atomic uint64_t promised_blocks; /* ... for so many, less what has been taken since */
    _Atomic uint64_t claim_view;      /* claimed pages (upper half), and the blocks that they stand for */
    atomic_bool shedding;             /* what was counted without the lock may be gone */
    size_t n_regions;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* a page is no more being mapped or unmapped */
    struct prealloc prealloc;
    bool prealloc_on;
    uint64_t max_free_pages; /* kept mapped without need */
    uint64_t low_pages;      /* of the free ones, of late */
    bool resized;            /* there may be pages beyond the last resize that are in use */
    bool resting;            /* trimmed: nothing is prepared before a page is used */
    bool settling;           /* some thread looks at what is in doubt */
    unsigned n_claiming;     /* threads that claim for one region after the other */
    bool uneven;             /* one of them was refused: some regions have more claims than others */
    /* To be mapped in the background, where there are no leases, less what has come. Set with the lock. */
    _Atomic uint64_t wanted_pages;
    _Atomic uint64_t poked_ns;
    atomic_bool in_vain;               /* filling up doesn't succeed for now */
    struct kvc_blocks_status counters; /* what only counts up */
    unsigned n_users;                  /* threads at work for nobody */
    bool closing;                      /* by some thread: no more of them */

    size_t *order;       /* of the regions, by their GPUs' UUIDs: nobody waits in a circle */
    struct group *group; /* not NULL: they are workers' elsewhere */
    struct kvc_region **regions;
    struct glance glances[]; /* as `regions` */
};

/* ---- blocks.c ---- */

/* Whether the handle is good; blocks_check_usable(): and there may be blocks to be had. 0 or KVC_E_*. */
int blocks_check(const struct kvc_blocks *blocks);
int blocks_check_usable(const struct kvc_blocks *blocks);

/* With the lock: what follows from a change of pages. */
void blocks_publish(struct kvc_blocks *blocks);

/* With the lock: n blocks, if they are there. 0 or BLOCK_ALLOC_E_SHORT. *ret_poke: blocks_poke() is due. */
int blocks_take(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids, bool *ret_poke);

/* Whether a page is one region's, of this process: then it can come and go at any time. */
bool blocks_are_alone(const struct kvc_blocks *blocks);

/* Whether a worker is gone: nothing is to be had any more, only to be given back. Any thread, no lock. */
static inline bool blocks_are_over(const struct kvc_blocks *blocks)
{
    return blocks->group && group_is_over(blocks->group);
}

/* With the lock: memory of so many pages is on its way to become free pages of the region. */
void blocks_set_ahead(struct kvc_blocks *blocks, struct kvc_region *region, uint64_t pages);

/* ---- blocks_report.c ---- */

/* What all regions have: where only some have more, that makes no page. */
struct lease blocks_least_lease(const struct kvc_blocks *blocks);

/* Whoever claims for all regions, one after the other, says so before and after, and what came of it: claims
 * that make no page, since some region was refused, are not kept from others. */
void blocks_begin_claiming(struct kvc_blocks *blocks);
void blocks_end_claiming(struct kvc_blocks *blocks, int r);

/* With the client's lock: lets the daemon offer what is missing to `pages` claims, and waits. 0: something
 * has come. Or what kvc_region_map() returns. */
int blocks_lease(struct kvc_region *region, uint64_t pages, uint64_t deadline_ns);

/* The moment until which the last report holds. */
uint64_t blocks_report_until(const struct kvc_blocks *blocks);

/* ---- blocks_pages.c: without the lock ---- */

/* Maps what was planned, in all regions or none. 0, or what kvc_region_map() returns. */
int blocks_map(struct kvc_blocks *blocks, const uint64_t *pages, size_t n);

/* Tells the allocator what has become of up to 64 pages that were being mapped or unmapped, or in doubt.
 * Returns how many are mapped nowhere. */
size_t blocks_judge(struct kvc_blocks *blocks, const uint64_t *pages, size_t n);

/* Maps as many pages as it takes until n blocks are free, and takes them; with `ret_ids` NULL it leaves them.
 * 0, KVC_E_NO_BLOCKS, KVC_E_IN_DOUBT, or what kvc_region_map() returns. */
int blocks_grow(struct kvc_blocks *blocks, size_t n, uint32_t *ret_ids);

/* Unmaps free pages until `keep` are left, as far as reports let it. 0 or KVC_E_*: some could not be, or the
 * daemon has not confirmed it. */
int blocks_shrink(struct kvc_blocks *blocks, uint64_t keep);

/* The same, down to none, and at most `max`. Returns how many. */
uint64_t blocks_shrink_by(struct kvc_blocks *blocks, uint64_t max);

/* Unmaps free pages if there are too many, or the instance is asked for memory. */
void blocks_tidy(struct kvc_blocks *blocks);

/* Whether a report holds. Of any thread, with or without the lock. */
bool blocks_is_promised(const struct kvc_blocks *blocks);

/* Below: with the client's lock of one of the regions, without waiting. */

/* Takes up to `max` free pages' memory out, for the caller to give back. Returns how many. */
uint64_t blocks_shed(struct kvc_blocks *blocks, uint64_t max, struct list *leaving);

/* The same, of what no report promises; and turns claims into offers. True: there was something. */
bool blocks_yield(struct kvc_blocks *blocks, struct kvc_region *region, struct list *leaving);

/* Pages are to be pinned, or not any more. 0, or BLOCK_ALLOC_E_STATE: one is being mapped or unmapped. */
int blocks_pin(struct kvc_blocks *blocks, uint64_t first, uint64_t n, bool down);

/* ---- blocks_give.c: with the client's lock ---- */

/* Unmaps free pages of blocks over several regions, or over workers', but for one: memory of this client of
 * `wanted` bytes, as far as there is so much. Waits, with the lock released. Returns how many bytes. */
uint64_t blocks_give(struct kvc_client *client, const struct kvc_blocks *except_or_null, uint64_t wanted);

/* ---- blocks_open.c ---- */

/* Work for nobody begins and ends; in between the blocks and their regions stay. False: they are about to go.
 * With or without a client's lock. */
bool blocks_begin(struct kvc_blocks *blocks);
void blocks_end(struct kvc_blocks *blocks);

/* A region is about to be closed, and its kvc_blocks with it, if it has one. Without any lock. */
void blocks_close_with(struct kvc_region *region);

/* In a forked child: host memory only. */
void blocks_forget(struct kvc_blocks *blocks);

/* ---- blocks_prealloc.c ---- */

bool blocks_has_work(const struct kvc_region *region);
void blocks_work(struct kvc_region *region);

/* Maps what the cache of a region has got in the background. With the client's lock. */
void blocks_map_arrived(struct kvc_region *region);

/* With the client's lock: memory on its way to the region has come, or gone. */
void blocks_note_ahead(struct kvc_region *region);

/* What was asked for in the background is refused. With the client's lock. */
void blocks_refused(struct kvc_region *region, int r);

/* Nobody waits for memory any more: what has come can be mapped. With the client's lock. */
void blocks_resume(struct kvc_client *client);

/* Whoever fills up should look. blocks_poke(): pages are used up, and there is no hurry where there was
 * nothing to be had a moment ago. Of any thread, without any lock. */
void blocks_call(struct kvc_blocks *blocks);
void blocks_poke(struct kvc_blocks *blocks);
