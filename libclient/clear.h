/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Clearing: pages that read as zero once they are mapped.
 */

#include "space.h"

/* Of a region with KVC_REGION_ZERO_ON_MAP, orders the clearing of these pages in its stream; else does
 * nothing. In the primary context; the places are sorted. 0 or KVC_E_DRIVER. */
int clear_pages(struct kvc_region *region, const struct placement *places, size_t n);
