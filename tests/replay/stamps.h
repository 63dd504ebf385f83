/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Stamps in device memory: who holds a block, written at both ends of each of its pieces when it is taken and
 * checked when it is given back. Memory that was lent to two, or that lies where it should not, has a wrong
 * stamp.
 */

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "gpu.h"
#include "layout.h"

enum {
    STAMPS_E_WRONG = 1, /* stamps_complaint() says which, and whose stamp is there */
};

struct stamps;

/* Blocks of the region at `address`. `instance` is what tells this engine from others. All is borrowed. */
int stamps_new(struct gpu *gpu, const struct layout *layout, uint64_t address, uint64_t stride,
               uint32_t n_blocks, const char *instance, struct stamps **ret_stamps);
struct stamps *stamps_free(struct stamps *stamps);

DEFINE_CLEANUP(struct stamps *, stamps_free);

/* 0 or a negative errno. */
int stamps_write(struct stamps *stamps, const uint32_t *blocks, size_t n);

/* 0, STAMPS_E_WRONG, or a negative errno. */
int stamps_check(struct stamps *stamps, const uint32_t *blocks, size_t n);

const char *stamps_complaint(const struct stamps *stamps);

/* How many were found to be right. */
uint64_t stamps_checked(const struct stamps *stamps);
