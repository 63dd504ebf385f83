/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Regions of a peer: its own, and those of workers that it has attached to.
 */

#include "peer.h"

/* Handlers of messages: see request.h. */
int region_open(struct peer *peer, struct message *message);
int region_close(struct peer *peer, struct message *message);

/* By the number that the peer gives it. NULL: there is none, or the peer has closed it. */
struct region *region_find(const struct peer *peer, uint32_t number);

/* So many of its extents are not its own any more; a closed one ends with the last. */
void region_lose_extents(struct peer *peer, uint32_t number, uint64_t n);

/* The lowest number that is free. 0 or -ENOSPC. */
int region_free_number(const struct peer *peer, uint32_t *ret);

uint64_t region_page_extents(const struct region *region);
uint64_t region_page_bytes(const struct region *region, const struct broker_config *config);

/* What is leased for it is the pool's again. NULL is fine. Returns NULL. */
struct region *region_free(struct peer *peer, struct region *region);
