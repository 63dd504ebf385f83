/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Holes: what lies behind the addresses of a region's pages that are not mapped. Nothing, so that using them
 * faults; or, with KVC_REGION_HOLES_ZERO, a zero page of this process and region.
 */

#include "space.h"

struct holes;

/* Borrows the zero page of a region that wants one, and maps it behind all of its pages. 0 or as
 * kvc_region_map(). */
int holes_open(struct kvc_region *region);

/* Unmaps and returns it. Pages are not given holes again from then on. */
void holes_close(struct kvc_region *region);

/* Frees host memory only. */
struct holes *holes_forget(struct holes *holes);

/* Whether a page without memory is as it has to be. */
bool holes_cover(const struct kvc_region *region, uint64_t page);

/* How many mappings it takes beyond those of pages. */
uint64_t holes_mappings(uint32_t flags, const struct shape *shape);

/* In the primary context: makes room for pages that are about to be mapped; fills the holes that pages leave.
 * 0 or KVC_E_DRIVER: what has been done says `hole` of each page. */
int holes_remove(struct kvc_region *region, const struct placement *places, size_t n);
int holes_restore(struct kvc_region *region, const struct placement *places, size_t n);
