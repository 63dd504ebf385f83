/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * An engine's KV memory as the broker lends it: a connection, a region, its blocks and their stamps. The
 * blocks are had through borrow_memory().
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "memory.h"
#include "model.h"

struct borrow;

struct borrow_options {
    const char *socket; /* NULL: as libkvclient finds it */
    const char *instance;
    const struct model *model;
    bool per_layer;      /* a segment for each layer */
    uint64_t page_bytes; /* of one segment; 0: as small as can be */
    uint64_t weights_bytes;
    bool deterministic; /* no library thread, no reserves: every page comes from the daemon, and goes there */
};

#define BORROW_ERROR_MAX 512

/* Connects, and puts the weights on the GPU. A negative errno with a sentence. */
int borrow_new(const struct borrow_options *options, struct borrow **ret_borrow,
               char error[static BORROW_ERROR_MAX]);
/* Whatever is still borrowed goes back. */
struct borrow *borrow_free(struct borrow *borrow);

DEFINE_CLEANUP(struct borrow *, borrow_free);

/* -EBADMSG from it is a wrong stamp; after any negative errno, borrow_error() says what happened. */
struct memory *borrow_memory(struct borrow *borrow);
const char *borrow_error(const struct borrow *borrow);

uint64_t borrow_budget_bytes(struct borrow *borrow);
uint64_t borrow_page_bytes(const struct borrow *borrow);  /* over all segments */
uint64_t borrow_block_bytes(const struct borrow *borrow); /* over all segments */

struct borrow_counts {
    uint64_t refusals; /* for want of memory */
    uint64_t stamps;   /* found to be right */
    uint64_t retries;  /* of driver calls that failed */
};
struct borrow_counts borrow_counts(const struct borrow *borrow);
