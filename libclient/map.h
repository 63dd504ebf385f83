/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Mapping and unmapping, for who holds the client's lock.
 */

#include "region.h"

/* As kvc_region_map() and kvc_region_unmap(). The lock is released while they wait for the daemon. */
int map_pages(struct kvc_region *region, const uint64_t *pages, size_t n);
int unmap_pages(struct kvc_region *region, const uint64_t *pages, size_t n);

/* The same transactions for who has the memory already, and may not wait: orders of a scheduler. Maps `n`
 * pages with the imported backings in *memory, one each: all or none. Takes the memory over; what is not
 * mapped is on its way back to the daemon. 0 or as kvc_region_map(). */
int map_with(struct kvc_region *region, const uint64_t *pages, size_t n, struct list *memory);

/* 0, or KVC_E_INVALID for a region whose pages are not its host's to map and unmap. */
int map_check_host(const struct kvc_region *region);

/* As unmap_pages(), but doesn't wait for the daemon's word, and never releases the lock. */
int unmap_pages_soon(struct kvc_region *region, const uint64_t *pages, size_t n);

/* Marks mapped pages, all or none, as leaving. 0 or as kvc_region_unmap(). */
int map_set_leaving(struct kvc_region *region, const uint64_t *pages, size_t n);

/* Marks leaving pages as mapped again. */
void map_set_staying(struct kvc_region *region, const uint64_t *pages, size_t n);

/* Unmaps pages, all or none, keeps nothing, and sends the memory back. 0 or as kvc_region_unmap(). */
int map_undo(struct kvc_region *region, const uint64_t *pages, size_t n);
