/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The static split: a limit of an equal share for each engine, set by an administrator's means.
 */

#include <stddef.h>
#include <stdint.h>

#include "board.h"

#define SHARES_ERROR_MAX 512

/* The daemon's budget. -EIO with a sentence. */
int shares_budget(const char *socket, uint64_t *ret_bytes, char error[static SHARES_ERROR_MAX]);

/*
 * Limits each instance, which must be connected, to a whole number of pages: what the budget holds, divided
 * equally. The board says how much that is.
 */
int shares_set(const char *socket, struct board *board, uint64_t page_bytes,
               char error[static SHARES_ERROR_MAX]);

/* The daemon forgets the instances, which must be gone, and their limits. */
int shares_clear(const char *socket, const struct board *board, char error[static SHARES_ERROR_MAX]);
