/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Reclaim: which free extent to give up next.
 */

#include <stdbool.h>

#include "pool.h"

/* The one that is missed least by a domain whose shelf is `own` (NULL: by nobody in particular): of other
 * colours first, the oldest first. With `warm_only`, of those that keep a descriptor. NULL when nothing is
 * left. */
struct extent *reclaim_pick(const struct pool *pool, const struct pool_shelf *own, bool warm_only);
