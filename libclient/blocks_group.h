/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Blocks over regions of workers elsewhere: pages are mapped out of leases, claimed at every daemon before
 * any worker is asked. What a worker has not answered, or cannot undo, is in doubt until it can be settled;
 * such pages hold no free blocks.
 *
 * Everything here waits for daemons and workers: with no lock held.
 */

#include <stddef.h>
#include <stdint.h>

#include "group.h"

struct kvc_blocks;

/* At all ranks, or at none unless something is in doubt. The allocator isn't told. 0 or KVC_E_*. */
int blocks_group_map(struct kvc_blocks *blocks, const uint64_t *pages, size_t n);
int blocks_group_unmap(struct kvc_blocks *blocks, const uint64_t *pages, size_t n);

/* Looks at what is in doubt, if anything is, and tells the allocator what has become of it. */
void blocks_group_settle(struct kvc_blocks *blocks);

/* Unmaps everything that any rank has; nobody is at work on the blocks any more. */
void blocks_group_empty(struct kvc_blocks *blocks);
