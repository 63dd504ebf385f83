/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Fences: pages that are to be unmapped once the GPU has come to a certain point.
 */

#include "region.h"

struct fence {
    struct list link;          /* of its region's, oldest first */
    struct kvc_region *region; /* NULL: it has been passed, and whoever waits last frees it */
    CUevent event;             /* ours */
    unsigned n_waiters;        /* threads that wait for the event without the lock */
    size_t n;
    uint64_t pages[];
};

/* Unmaps what can be unmapped now, of all regions of the client. Never waits, nor releases the lock. */
void fence_poll(struct kvc_client *client);

/* Waits for the GPU, and unmaps everything that was to be, of one region or (NULL) of all; releases the lock
 * while it waits. True if there was anything. */
bool fence_wait(struct kvc_client *client, struct kvc_region *region);

/* The same for one fence of some region. */
bool fence_wait_next(struct kvc_client *client);

/* For the end of a region: waits, and leaves its pages mapped. */
void fence_abandon(struct kvc_region *region);

/* Frees host memory only. */
void fence_forget(struct kvc_region *region);

/* The stream in which fences lie; made when it is first needed. */
void fence_close(struct kvc_client *client);
