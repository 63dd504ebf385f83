/* SPDX-License-Identifier: Apache-2.0 */

/* Every call must succeed here: what is refused is for the tests to see. */

#include "block-bench.h"

#include "test.h"

struct block_alloc *alloc_new(uint64_t page_bytes, uint64_t block_bytes, uint64_t pages, bool null_block)
{
    struct block_alloc_config config = {.page_bytes = page_bytes,
                                        .block_bytes = block_bytes,
                                        .pages = pages,
                                        .max_pages = UINT64_MAX,
                                        .max_blocks = UINT64_MAX,
                                        .null_block = null_block};
    struct block_alloc *alloc;

    check_eq(block_alloc_new(&config, &alloc), 0);
    return alloc;
}

void map_pages(struct block_alloc *alloc, size_t n)
{
    uint64_t pages[64];

    check_eq(block_alloc_plan(alloc, n, pages), 0);
    check_eq(block_alloc_mapped(alloc, pages, n), 0);
}

struct block_alloc *mapped_new(uint64_t n)
{
    struct block_alloc *alloc = alloc_new(40, 10, n, false);

    map_pages(alloc, n);
    return alloc;
}

struct block_alloc_counts count(const struct block_alloc *alloc)
{
    struct block_alloc_counts counts;

    block_alloc_count(alloc, &counts);
    return counts;
}

void take(struct block_alloc *alloc, size_t n)
{
    uint32_t ids[64];

    check_eq(block_alloc_take(alloc, n, ids), 0);
}

void give(struct block_alloc *alloc, uint32_t first, uint32_t n, uint64_t epoch)
{
    for (uint32_t id = first; id < first + n; id++)
        check_eq(block_alloc_give(alloc, &id, 1, epoch), 0);
}
