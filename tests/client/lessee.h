/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A client with blocks over a region for which its daemon sets memory aside, and may ask for it.
 */

#include "support.h"

#define PAGE (2 * MIB)
#define BLOCK (256 * KIB)
#define EACH 8
#define PAGES 16

struct lessee {
    struct fake *fake;
    struct kvc_client *client;
    struct kvc_region *region;
    struct kvc_blocks *blocks;
    uint64_t asked_bytes; /* of the engine, last */
    unsigned n_asked;
    int own_thread;
};

struct lessee *lessee_open(unsigned report_ms, int own_thread);
struct lessee *lessee_open_with(struct fake_settings settings, unsigned report_ms, int own_thread);
void lessee_close(struct lessee *lessee);

struct kvc_blocks_status lessee_status(struct lessee *lessee);

/* Must have all of them. */
void lessee_want(struct lessee *lessee, uint64_t n);

/* Takes a page's blocks. Memory that was taken out of the lease for later is not here so far. */
void lessee_wait_for_refill(struct lessee *lessee, uint32_t *ids);
