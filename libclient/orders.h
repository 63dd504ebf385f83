/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Orders: what a scheduler in another process has mapped and unmapped in a worker's regions. With the
 * client's lock; nothing here waits.
 */

#include <stdbool.h>
#include <stdint.h>

#include "wire/codec.h"
#include "wire/fdset.h"

struct kvc_client;
struct kvc_region;

/* What a region remembers of the orders for it. */
struct orders {
    uint32_t group, rank; /* by which schedulers find it */
    uint64_t session;     /* whose pages are mapped; 0: nobody's so far */
    uint64_t number;      /* of that session's latest order that was carried out */
    bool closed;          /* none is carried out any more */
};

/* 0, or KVC_E_INVALID for a region that only its scheduler may map and unmap. */
int orders_refuse(const struct kvc_region *region);

/* Takes in one packet of an order to map, and says so: from then on its memory is ours. Its descriptors stay
 * the caller's to close. True: the order is complete, and orders_map() is due when its turn comes. */
bool orders_receive(struct kvc_client *client, const struct message *message, const struct fdset *fds,
                    bool truncated);

/* Carries out the order whose last packet that was. */
void orders_map(struct kvc_client *client, const struct message *message);

void orders_unmap(struct kvc_client *client, const struct message *message);

/* The region is being closed: orders for it that have come, or are still coming, fail. */
void orders_abandon(struct kvc_region *region);

/* The client is closed: what came of orders that will not be carried out goes back. */
void orders_drop(struct kvc_client *client);

/* Frees host memory only. */
void orders_forget(struct kvc_client *client);
