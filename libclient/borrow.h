/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Borrowing: extents from the daemon, and back to it.
 */

#include "client.h"

struct kvc_region;

enum extent_state {
    EXTENT_NONE,     /* nothing, or not ours any more */
    EXTENT_GRANTED,  /* ours by the daemon's books */
    EXTENT_IMPORTED, /* ... and we have a handle */
    EXTENT_MAPPED,   /* ... and it is mapped */
};

struct extent {
    uint64_t id;
    CUmemGenericAllocationHandle handle;
    enum extent_state state;
};

/* The memory of one page. */
struct backing {
    struct page_cache_entry entry; /* its link is the owner's when it is in no cache */
    uint64_t n_extents;
    struct extent extents[];
};

/* Whether all of its extents are in a state. */
bool backing_is(const struct backing *backing, enum extent_state state);

/* Room for `n_extents` extents, or NULL. */
struct backing *backing_new(uint64_t n_extents);

/* Whether any of them is. */
bool backing_has(const struct backing *backing, enum extent_state state);

/* Frees host memory only. */
void backing_free_all(struct list *backings);

/* Makes a handle of a granted extent's descriptor, which stays the caller's. 0, or KVC_E_DRIVER with a
 * sentence. */
int extent_import(struct gpu *gpu, struct extent *extent, int fd, char reason[static ERROR_SENTENCE_MAX]);

/* Deals the extents of `n_pages` pages, in the order in which the daemon sends them, out to a backing
 * each. */
void backing_deal(const struct backing *arrived, const struct shape *shape, uint32_t n_pages,
                  struct backing *const *pages);

/* An unanswered question for memory. */
struct take {
    struct request request;
    struct list link; /* of the client's takes */
    struct kvc_client *client;
    struct kvc_region *region; /* NULL: nobody wants it any more, it goes back when it comes */
    uint32_t region_id;
    struct backing *arrived; /* extents in the order of their arrival; a single one is the page's */
    uint64_t n_arrived;
    int error; /* of importing what arrived */
    char reason[ERROR_SENTENCE_MAX];
    uint32_t n_pages;
    bool leased;             /* out of the region's lease: as many claims were spent */
    struct backing *pages[]; /* still empty: so that success needs no memory */
};

/* Asks for `n_pages` pages of a region and waits: what its lease holds is used. 0: appends that many imported
 * backings to *backings. Or what kvc_region_map() returns; all that came goes back. */
int borrow_pages(struct kvc_region *region, uint64_t n_pages, struct list *backings);

/* Asks without waiting; reserve_arrived() gets the answer. `leased`: out of the region's lease, with as many
 * claims that the caller has spent; they are claimed again when this fails. 0 or KVC_E_*. */
int borrow_later(struct kvc_region *region, uint32_t n_pages, bool leased, struct take **ret);

/* Nobody wants the answer any more: what it brings goes back. */
void borrow_abandon(struct take *take);

/* Gives all imported or granted extents back and frees the backings; the list is empty afterwards. With
 * `wait`, returns when the daemon has confirmed. 0; KVC_E_TIMEOUT, KVC_E_DISCONNECTED: they are given up all
 * the same; KVC_E_DRIVER, KVC_E_NOMEM: what could not be given back stays with the client, and is tried again
 * by the next call of this. */
int borrow_return(struct kvc_client *client, struct list *backings, bool wait);

/* Frees host memory only: unanswered takes, and what could not be given back. */
void borrow_forget(struct kvc_client *client);

/* Abandons what has been asked for a region, and waits until it has come and is on its way back. 0 or
 * KVC_E_TIMEOUT. */
int borrow_settle(struct kvc_region *region);
