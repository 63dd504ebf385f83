/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Reserves: what fills the caches of free pages without a caller, and what empties them.
 */

#include "space.h"

enum {
    _RESERVE_SUCCESS,
    RESERVE_AWAITED, /* something was under way, and has come, or never will */
};

/* A map has used the cache: it may be filled again. */
void reserve_want(struct kvc_region *region);

/* Whether reserve_refill() would ask for something. */
bool reserve_wants_refill(const struct kvc_region *region);
void reserve_refill(struct kvc_region *region);

/* A refill's answer: pages (imported), or why there are none. Takes the pages over. */
void reserve_arrived(struct kvc_region *region, int result, struct list *pages);

/* A cached page that was to be unmapped and may not be: puts it where its extents' states say. */
void reserve_put_back(struct kvc_region *region, const struct placement *place);

/* Gives back all that the caches of a client's regions hold, but for one region's (or NULL), and what refills
 * under way bring. Waits for the daemon. 0 or as borrow_return(), or KVC_E_DRIVER. */
int reserve_trim(struct kvc_client *client, const struct kvc_region *except);

/* Takes all that the caches of a client's regions hold out, for the caller to give back. 0 or KVC_E_DRIVER.
 * */
int reserve_empty(struct kvc_client *client, struct list *leaving);

/* The same for one region. What a refill under way brings goes back by itself. */
int reserve_empty_region(struct kvc_region *region, struct list *leaving);

/* For a map that was refused: waits for the refills under way, gives the other regions' reserves back; this
 * region's stay where the caller can use them. True when some went back, or this region has one of its own
 * now, so that trying again makes sense. */
bool reserve_yield(struct kvc_region *region, bool own_is_used);

/* Waits where refills would bring the region more than its pages can use. 0 where they don't;
 * RESERVE_AWAITED; KVC_E_INTERRUPTED. */
int reserve_await_excess(struct kvc_region *region);

/* The same, wherever something is under way for the region; until a moment. */
int reserve_await(struct kvc_region *region, uint64_t deadline_ns);
