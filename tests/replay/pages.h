/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which blocks of a region are in use: the addresses, not the memory. A page holds a fixed number of blocks;
 * it has to be mapped while any of them is in use. Pure.
 *
 * Block b is the (b mod k)-th block of page b / k, where k is the number of blocks in a page.
 */

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

#define PAGES_BLOCKS_MAX 64 /* in a page */

struct pages;

/* -ENOMEM, or -EINVAL for more blocks in a page than PAGES_BLOCKS_MAX. */
int pages_new(uint32_t n_pages, uint32_t blocks_per_page, struct pages **ret_pages);
struct pages *pages_free(struct pages *pages);

DEFINE_CLEANUP(struct pages *, pages_free);

/*
 * Pages that have to be mapped before n more blocks can be taken; they stay free until pages_add(). The array
 * is valid until the next call. -ENOSPC when the region has no such number of pages left.
 */
int pages_wanted(struct pages *pages, size_t n_blocks, const uint64_t **ret_pages, size_t *ret_n);

/* The first n of what pages_wanted() named are mapped now. */
void pages_add(struct pages *pages, size_t n);

/* Free blocks of mapped pages: there must be that many. */
void pages_take(struct pages *pages, size_t n_blocks, uint32_t *ret_blocks);

/*
 * Returns the pages that became empty by it; they are to be unmapped, and free from now on. The array is
 * valid until the next call.
 */
void pages_give(struct pages *pages, const uint32_t *blocks, size_t n, const uint64_t **ret_pages,
                size_t *ret_n);
