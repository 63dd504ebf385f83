/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * An engine's KV memory as the broker lends it: the blocks of libkvclient, and who stamps them. The blocks
 * are had through borrow_memory().
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "memory.h"
#include "remote.h"
#include "worker.h"

struct borrow;

#define BORROW_ERROR_MAX 640

/* Connects, and puts the weights on the GPU. With `workers` the scheduler is in this process and `remote` has
 * them; it is taken over, also on failure; else it is NULL. A negative errno with a sentence. */
int borrow_new(const struct worker_options *options, struct remote *remote, struct borrow **ret_borrow,
               char error[static BORROW_ERROR_MAX]);
/* Maps so many bytes of blocks, once, so that with `hold` nothing has to be mapped later. */
int borrow_fill(struct borrow *borrow, uint64_t bytes);

/* Whatever is still borrowed goes back. */
struct borrow *borrow_free(struct borrow *borrow);

DEFINE_CLEANUP(struct borrow *, borrow_free);

/* -EBADMSG from it is a wrong stamp, -EPROTO that less was granted than had been reported. After any negative
 * errno, borrow_error() says what happened. */
struct memory *borrow_memory(struct borrow *borrow);
const char *borrow_error(const struct borrow *borrow);

uint64_t borrow_budget_bytes(struct borrow *borrow);
uint64_t borrow_page_bytes(const struct borrow *borrow); /* over all segments and workers */

struct borrow_counts {
    uint64_t refusals; /* for want of memory */
    uint64_t promised; /* blocks taken that had been reported as available for the step */
    uint64_t stamps;   /* found to be right */
    uint64_t retries;  /* of driver calls that failed */
};
struct borrow_counts borrow_counts(const struct borrow *borrow);
