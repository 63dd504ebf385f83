/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the tests of the block allocator share.
 */

#include "block_alloc.h"

struct block_alloc *alloc_new(uint64_t page_bytes, uint64_t block_bytes, uint64_t pages, bool null_block);

/* Of which all n pages are mapped, each of 4 blocks. */
struct block_alloc *mapped_new(uint64_t n);

/* Maps the n lowest pages that are empty. */
void map_pages(struct block_alloc *alloc, size_t n);

struct block_alloc_counts count(const struct block_alloc *alloc);
void take(struct block_alloc *alloc, size_t n);
void give(struct block_alloc *alloc, uint32_t first, uint32_t n, uint64_t epoch);
