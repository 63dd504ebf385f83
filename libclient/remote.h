/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Remote: regions of workers in other processes, as their scheduler has them. What is wanted of a worker can
 * be asked without waiting, so that all workers are asked before the first one is waited for.
 */

#include "region.h"

/* Pages of one call at most. */
#define REMOTE_PAGES_MAX 1024

/* What a scheduler knows of a worker's region. */
struct remote {
    uint64_t pages;
    uint64_t page_bytes; /* of one page, over all segments */
    uint32_t segments;
    uint64_t session; /* this scheduler's */
    uint64_t number;  /* of its latest Map or Unmap */
};

/* As kvc_region_map() and kvc_region_unmap(); takes the lock. At most REMOTE_PAGES_MAX pages. */
int remote_map(struct kvc_region *region, const uint64_t *pages, size_t n);
int remote_unmap(struct kvc_region *region, const uint64_t *pages, size_t n);

/* With the client's lock: gives the region up. As region_close(). */
int remote_close(struct kvc_region *region);

/* ---- Calls that are under way ---- */

/* A Map or Unmap that has been sent. Its owner frees it, answered or not, before its client is closed. All
 * below take the client's lock, and refuse in a forked child. */
struct remote_call;

/* Sends a Map or Unmap of 1 to REMOTE_PAGES_MAX pages. `leased`: out of the region's lease, which has been
 * claimed and spent. 0 or KVC_E_*: nothing was sent, and what was spent is claimed again. */
int remote_map_begin(struct kvc_region *region, const uint64_t *pages, size_t n, bool leased,
                     struct remote_call **ret);
int remote_unmap_begin(struct kvc_region *region, const uint64_t *pages, size_t n, struct remote_call **ret);

/* When the answer to what is sent now is late. */
uint64_t remote_deadline(const struct kvc_region *region);

/* Waits for the answer. *ret_answered: whether there is one, and then its result is returned (and its
 * sentence set); else KVC_E_TIMEOUT, and the call stays under way: it can be waited for again. A deadline
 * that has passed still takes what has come. */
int remote_call_wait(struct remote_call *call, uint64_t deadline_ns, bool *ret_answered);

/* The same without waiting. */
int remote_call_poll(struct remote_call *call, bool *ret_answered);

/* Why it, and all that is ordered of the region, is refused: its worker is gone, with all that was mapped
 * there, or obeys another scheduler. NULL: it isn't, or not so far. Takes no lock; for who has waited. */
const char *remote_call_over(const struct remote_call *call);

/* Lets go of it. An answer that is still to come changes nothing any more. */
struct remote_call *remote_call_free(struct remote_call *call);

/* Frees host memory only, in a forked child. */
struct remote_call *remote_call_forget(struct remote_call *call);

/* Whether the connection to the region's daemon has ended: nothing will be known of its pages any more. */
bool remote_is_gone(const struct kvc_region *region);
