/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Clearing: regions with KVC_REGION_ZERO_ON_MAP.
 */

#include "space.h"

/* In the primary context: has mapped pages, in ascending order, cleared in the order of the region's stream.
 * 0 or KVC_E_DRIVER: some of them may be cleared yet. */
int clear_pages(struct kvc_region *region, const struct placement *places, size_t n);

/* In the primary context: returns when the GPU clears nothing in the region any more. 0 or KVC_E_DRIVER. */
int clear_wait(struct kvc_region *region);

/* Frees what it takes, once the region's pages are unmapped. */
void clear_close(struct kvc_region *region);

/* 0, or KVC_E_INVALID for a stream that means something else on each thread. */
int clear_check_stream(const void *stream);
