/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A client with blocks over one region of two segments, and its daemon.
 */

#include "support.h"

#define PAGE (2 * MIB)
#define BLOCK (256 * KIB) /* eight in a page */
#define EACH 8
#define PAGES 16
#define SLOT (2 * PAGE) /* a page over both segments */

struct world {
    struct fake *fake;
    struct kvc_client *client;
    struct kvc_region *region;
    struct kvc_blocks *blocks;
};

struct world world_open(bool leases, int min, int max);
void world_close(struct world *w);

struct kvc_blocks *open_blocks(struct kvc_region *region, uint64_t block_bytes, int null_block);
struct kvc_blocks_status status_of(struct kvc_blocks *blocks);
