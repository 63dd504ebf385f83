/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Preallocation: how many free pages to keep ready for an engine, by how fast it has been using them. Pure:
 * times are arguments, and averages are computed when they are read.
 */

#include <stdint.h>

/* An engine that stops using pages is half forgotten after this time. */
#define PREALLOC_HALF_LIFE_NS UINT64_C(1000000000)

struct prealloc {
    uint64_t min_pages, max_pages;
    uint64_t level; /* pages used of late, in units of 2^-16 */
    uint64_t at_ns; /* when it was that */
};

/* No more than `max` in any case. */
void prealloc_init(struct prealloc *prealloc, uint64_t min_pages, uint64_t max_pages);

/* The engine has begun to use n pages more. Time doesn't run backwards; where it seems to, it stands still.
 * */
void prealloc_used(struct prealloc *prealloc, uint64_t n, uint64_t now_ns);

/* Pages that were used of late, rounded up: each counts one at first, half after a half-life, and so on, down
 * to nothing. */
uint64_t prealloc_recent(const struct prealloc *prealloc, uint64_t now_ns);

/* Pages to have mapped and free: as many as were used of late, at least min, at most max. */
uint64_t prealloc_ready(const struct prealloc *prealloc, uint64_t now_ns);

/* Pages to have leased beyond those: as many as were used of late, at most max. */
uint64_t prealloc_ahead(const struct prealloc *prealloc, uint64_t now_ns);
