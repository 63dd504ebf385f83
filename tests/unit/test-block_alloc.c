/* SPDX-License-Identifier: Apache-2.0 */

/* Blocks: where they lie, and who has which. */

#include "block_alloc.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "block-bench.h"
#include "test.h"

/* ---- Host memory that runs out ---- */

void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);

static unsigned callocs_left = UINT32_MAX;

void *__wrap_calloc(size_t n, size_t size)
{
    if (callocs_left == 0)
        return NULL;
    callocs_left -= callocs_left < UINT32_MAX;
    return __real_calloc(n, size);
}

/* ---- Geometry ---- */

static void check_range(const struct block_alloc *alloc, uint64_t page, uint32_t first, uint32_t n)
{
    uint32_t is_first, is_n;

    block_alloc_range(alloc, page, &is_first, &is_n);
    check_eq(is_n, n);
    check_eq(is_first, first);
}

TEST(geometry_without_straddlers)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(2 * MIB, 16 * KIB, 40960, false);

    check_eq(count(alloc).page_blocks, 128);
    check_eq(count(alloc).total_blocks, 40960 * 128);
    check_eq(count(alloc).empty_pages, 40960);
    check_range(alloc, 0, 0, 128);
    check_range(alloc, 40959, 40959 * 128, 128);
    check_eq(block_alloc_page_of(alloc, 127), 0);
    check_eq(block_alloc_page_of(alloc, 128), 1);
    check_eq(block_alloc_page_of(alloc, 40960 * 128 - 1), 40959);
    check_eq(block_alloc_page_of(alloc, 40960 * 128), 40960);
    check_eq(block_alloc_missing(alloc, 1), 1);
    check_eq(block_alloc_missing(alloc, 128), 1);
    check_eq(block_alloc_missing(alloc, 129), 2);
    check_eq(block_alloc_missing(alloc, 40960 * 128 + 1), 40961);
    check_eq(block_alloc_missing(alloc, 40970 * 128), 40970); /* as if there were more of them */
    check(block_alloc_missing(alloc, UINT64_MAX) > 40960);
}

/* Blocks of 3 in pages of 10: | 0 1 2 (3| ) 4 5 (6 | ) 7 8 9 | 10 … */
TEST(geometry_with_straddlers)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(10, 3, 4, false);
    uint32_t ids[12];
    static const uint32_t should[] = {0, 1, 2, 4, 5, 7, 8, 9, 10, 11, 12};

    check_range(alloc, 0, 0, 3);
    check_range(alloc, 1, 4, 2);
    check_range(alloc, 2, 7, 3);
    check_range(alloc, 3, 10, 3);
    check_eq(count(alloc).page_blocks, 3);
    check_eq(count(alloc).total_blocks, 11);
    check_eq(block_alloc_page_of(alloc, 3), 0);
    check_eq(block_alloc_missing(alloc, 3), 1);
    check_eq(block_alloc_missing(alloc, 5), 2);
    check_eq(block_alloc_missing(alloc, 6), 3);
    check_eq(block_alloc_missing(alloc, 11), 4);
    check_eq(block_alloc_missing(alloc, 12), 5);
    map_pages(alloc, 4);
    check_eq(block_alloc_take(alloc, 12, ids), BLOCK_ALLOC_E_SHORT);
    check_eq(block_alloc_take(alloc, 11, ids), 0);
    for (unsigned i = 0; i < 11; i++)
        check_eq(ids[i], should[i]);
    for (uint32_t straddler = 3; straddler <= 6; straddler += 3)
        check_eq(block_alloc_give(alloc, &straddler, 1, 0), BLOCK_ALLOC_E_FOREIGN);
    check_eq(block_alloc_give(alloc, should, 11, 0), 0);
    check_eq(count(alloc).free_pages, 4);
}

/* Blocks of 7 in pages of 10: the second page, and every third after it, has none. */
TEST(pages_without_a_block_are_never_mapped)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(10, 7, 5, false);
    uint64_t pages[5];

    check_range(alloc, 0, 0, 1);
    check_range(alloc, 1, 2, 0);
    check_range(alloc, 2, 3, 1);
    check_range(alloc, 3, 5, 0);
    check_range(alloc, 4, 6, 1);
    check_eq(count(alloc).empty_pages, 3);
    check_eq(count(alloc).total_blocks, 3);
    check_eq(block_alloc_plan(alloc, 4, pages), BLOCK_ALLOC_E_FULL);
    check_eq(block_alloc_plan(alloc, 3, pages), 0);
    check_eq(pages[0], 0);
    check_eq(pages[1], 2);
    check_eq(pages[2], 4);
    block_alloc_resize(alloc, 2);
    check_eq(count(alloc).total_blocks, 1);
    check_eq(count(alloc).empty_pages, 0);
}

/* What the next pages would add, exactly, though every other one has a block less. */
TEST(gain_is_what_planning_brings)
{
    struct block_alloc *alloc = alloc_new(10, 4, 6, false);
    uint64_t before;

    check_eq(block_alloc_gain(alloc, 0), 0);
    check_eq(block_alloc_gain(alloc, UINT64_MAX), block_alloc_gain(alloc, 6));
    for (uint64_t n = 1; n < 4; n++) {
        uint64_t gain = block_alloc_gain(alloc, n);

        before = block_alloc_free_blocks(alloc);
        map_pages(alloc, n);
        check_eq(block_alloc_free_blocks(alloc) - before, gain);
    }
    check_eq(block_alloc_gain(alloc, 1), 0);
    block_alloc_free(alloc);
}

/* The page of every block, by division, where the reciprocal is rounded most. */
TEST(page_of_is_exact)
{
    static const uint64_t sizes[][2] = {
        {1, 1},         {2 * MIB, 2 * MIB},         {3, 2},   {1000003, 999983}, {2 * MIB, 100000},
        {2 * MIB, 333}, {UINT64_C(1) << 40, 65537}, {641, 7},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
        _cleanup_(block_alloc_freep) struct block_alloc *alloc = NULL;
        uint64_t page_bytes = sizes[i][0], block_bytes = sizes[i][1];
        uint64_t pages = u64_min(4000, UINT32_MAX * block_bytes / page_bytes),
                 n = pages * page_bytes / block_bytes;

        alloc = alloc_new(page_bytes, block_bytes, pages, false);
        for (uint64_t id = 0; id < n; id += 1 + n / 100000)
            check_eq(block_alloc_page_of(alloc, (uint32_t)id), id * block_bytes / page_bytes);
        for (uint64_t page = 0; page < pages; page++) {
            uint64_t id = page * page_bytes / block_bytes;

            check_eq(block_alloc_page_of(alloc, (uint32_t)id), id * block_bytes / page_bytes);
        }
    }
}

TEST(geometry_is_refused)
{
    static const struct {
        struct block_alloc_config config;
        int r;
    } cases[] = {
        {{.max_blocks = UINT64_MAX, .page_bytes = 0, .block_bytes = 1, .pages = 1}, BLOCK_ALLOC_E_ZERO},
        {{.max_blocks = UINT64_MAX, .page_bytes = 1, .block_bytes = 0, .pages = 1}, BLOCK_ALLOC_E_ZERO},
        {{.max_blocks = UINT64_MAX, .page_bytes = 1, .block_bytes = 1, .pages = 0}, BLOCK_ALLOC_E_ZERO},
        {{.max_blocks = 0, .page_bytes = 1, .block_bytes = 1, .pages = 1}, BLOCK_ALLOC_E_ZERO},
        {{.max_blocks = UINT64_MAX, .page_bytes = 10, .block_bytes = 11, .pages = 1}, BLOCK_ALLOC_E_LARGE},
        {{.max_blocks = UINT64_MAX, .page_bytes = 2 * MIB, .block_bytes = 1, .pages = 2048},
         BLOCK_ALLOC_E_MANY},
        {{.max_blocks = UINT64_MAX,
          .page_bytes = UINT64_C(1) << 32,
          .block_bytes = GIB,
          .pages = UINT64_C(1) << 32},
         BLOCK_ALLOC_E_MANY},
        {{.max_blocks = UINT64_MAX, .page_bytes = UINT64_MAX, .block_bytes = UINT64_MAX, .pages = 2},
         BLOCK_ALLOC_E_MANY},
        {{.max_blocks = UINT64_MAX, .page_bytes = UINT64_MAX, .block_bytes = UINT64_MAX, .pages = 1}, 0},
        {{.max_blocks = UINT64_MAX, .page_bytes = UINT64_C(1) << 63, .block_bytes = GIB, .pages = 1},
         BLOCK_ALLOC_E_MANY},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct block_alloc *alloc = NULL;

        check_eq(block_alloc_new(&cases[i].config, &alloc), cases[i].r);
        check(!alloc == (cases[i].r != 0));
        block_alloc_free(alloc);
    }
}

/* ---- Blocks ---- */

TEST(nothing_is_mapped_at_first)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(40, 10, 3, false);
    uint32_t id = 77;

    check_eq(block_alloc_take(alloc, 1, &id), BLOCK_ALLOC_E_SHORT);
    check_eq(id, 77);
    check_eq(block_alloc_take(alloc, 0, NULL), 0);
    check_eq(block_alloc_give(alloc, NULL, 0, 0), 0);
    id = 0;
    check_eq(block_alloc_give(alloc, &id, 1, 0), BLOCK_ALLOC_E_FOREIGN);
    check_eq(block_alloc_free_blocks(alloc), 0);
    check(!block_alloc_free(NULL));
}

TEST(the_fullest_page_is_taken_from_first)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(4);
    uint32_t ids[8];
    static const uint32_t should[] = {9, 1, 3, 4, 5, 6, 7, 12};

    take(alloc, 12);
    give(alloc, 9, 1, 0); /* page 2: 3 are used */
    give(alloc, 1, 1, 0); /* page 0: 2 */
    give(alloc, 3, 1, 0);
    give(alloc, 4, 4, 0); /* page 1: none, as page 3 */
    check_eq(count(alloc).partly_pages, 2);
    check_eq(count(alloc).free_pages, 2);
    check_eq(block_alloc_free_pages(alloc), 2);
    check_eq(block_alloc_free_blocks(alloc), 11);
    check_eq(block_alloc_take(alloc, 8, ids), 0);
    for (unsigned i = 0; i < 8; i++)
        check_eq(ids[i], should[i]);
    check_eq(count(alloc).full_pages, 3);
    check_eq(count(alloc).used_blocks, 13);
    check_eq(block_alloc_free_blocks(alloc), 3);
}

/* A page of more blocks than a word has bits, and than a word of words. */
TEST(large_pages)
{
    enum { PAGE_BLOCKS = 10000 };
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(PAGE_BLOCKS, 1, 2, false);
    _cleanup_free_ uint32_t *ids = malloc(2 * PAGE_BLOCKS * sizeof(*ids));
    uint32_t odd = 9999, id;

    map_pages(alloc, 2);
    check_eq(block_alloc_take(alloc, 2 * PAGE_BLOCKS, ids), 0);
    for (uint32_t i = 0; i < 2 * PAGE_BLOCKS; i++)
        check_eq(ids[i], i);
    check_eq(block_alloc_take(alloc, 1, &id), BLOCK_ALLOC_E_SHORT);
    check_eq(block_alloc_give(alloc, &odd, 1, 0), 0);
    check_eq(block_alloc_give(alloc, &odd, 1, 0), BLOCK_ALLOC_E_FREE);
    check_eq(block_alloc_take(alloc, 1, &id), 0);
    check_eq(id, odd);
    for (uint32_t i = 0; i < PAGE_BLOCKS; i++) {
        uint32_t swapped = ids[i];

        ids[i] = ids[2 * PAGE_BLOCKS - 1 - i];
        ids[2 * PAGE_BLOCKS - 1 - i] = swapped;
    }
    check_eq(block_alloc_give(alloc, ids, 2 * PAGE_BLOCKS, 0), 0);
    check_eq(count(alloc).free_pages, 2);
}

TEST(a_wrong_give_changes_nothing)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(2);
    static const struct {
        uint32_t ids[4];
        int r;
    } cases[] = {
        {{3, 0, 5, 3}, BLOCK_ALLOC_E_FREE},    /* named twice */
        {{3, 3, 5, 0}, BLOCK_ALLOC_E_FREE},    /* at once */
        {{3, 0, 5, 6}, BLOCK_ALLOC_E_FREE},    /* never taken */
        {{3, 0, 5, 8}, BLOCK_ALLOC_E_FOREIGN}, /* no such block */
        {{3, 0, 6, 8}, BLOCK_ALLOC_E_FREE},    /* the first that is wrong counts */
        {{UINT32_MAX, 0, 5, 3}, BLOCK_ALLOC_E_FOREIGN},
    };
    static const uint32_t good[] = {3, 0, 5, 1};
    struct block_alloc_counts before;

    take(alloc, 6);
    before = count(alloc);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        struct block_alloc_counts after;

        check_eq(block_alloc_give(alloc, cases[i].ids, 4, 7), cases[i].r);
        after = count(alloc);
        check_eq(after.used_blocks, 6);
        check_eq(after.free_blocks, before.free_blocks);
        check_eq(after.partly_pages, before.partly_pages);
        check_eq(after.full_pages, before.full_pages);
    }
    check_eq(block_alloc_give(alloc, good, 4, 0), 0);
    give(alloc, 2, 1, 0);
    check_eq(count(alloc).sheddable_pages, 1); /* nor has it an epoch */
}

TEST(null_block)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(40, 10, 2, true);
    uint64_t page = 0, pages[2];
    uint32_t ids[3], null = 0, with_null[2] = {1, 0}, used;

    check_eq(block_alloc_page_state(alloc, 0), BLOCK_ALLOC_MAPPING);
    check_eq(count(alloc).total_blocks, 7);
    check_eq(count(alloc).empty_pages, 1);
    check_eq(block_alloc_mapped(alloc, &page, 1), 0);
    check_eq(block_alloc_free_blocks(alloc), 3);
    check_eq(count(alloc).partly_pages, 1);
    check_eq(count(alloc).used_blocks, 0);
    check_eq(block_alloc_take(alloc, 3, ids), 0);
    check_eq(ids[0], 1);
    check_eq(block_alloc_give(alloc, &null, 1, 0), BLOCK_ALLOC_E_FOREIGN);
    check_eq(block_alloc_give(alloc, with_null, 2, 0), BLOCK_ALLOC_E_FOREIGN);
    check_eq(block_alloc_occupancy(alloc, &page, 1, &used), 0);
    check_eq(used, 3);
    check_eq(block_alloc_used_of(alloc, 0, 3, ids), 3);
    check_eq(ids[0], 1);
    check_eq(block_alloc_give(alloc, ids, 3, 0), 0);
    block_alloc_clear(alloc, 0);
    block_alloc_resize(alloc, 0);
    check_eq(count(alloc).total_blocks, 0);
    check_eq(block_alloc_shed(alloc, 0, 2, pages), 0);
    check_eq(block_alloc_page_state(alloc, 0), BLOCK_ALLOC_MAPPED);
}

TEST(null_block_whose_page_could_not_be_mapped)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(40, 10, 2, true);
    uint64_t page = 0, planned;

    check_eq(block_alloc_unmapped(alloc, &page, 1), 0);
    check_eq(block_alloc_plan(alloc, 1, &planned), 0);
    check_eq(planned, 0);
    check_eq(block_alloc_mapped(alloc, &page, 1), 0);
    check_eq(block_alloc_free_blocks(alloc), 3);
}

TEST(reserve)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(3);
    uint64_t pages[3];

    check_eq(block_alloc_reserve(alloc, 13), BLOCK_ALLOC_E_SHORT);
    check_eq(block_alloc_reserve(alloc, 3), 0);
    check_eq(block_alloc_reserve(alloc, 4), 0);
    check_eq(block_alloc_reserve(alloc, UINT64_MAX), BLOCK_ALLOC_E_SHORT);
    check_eq(block_alloc_reserve(alloc, 6), BLOCK_ALLOC_E_SHORT);
    check_eq(count(alloc).reserved_blocks, 7);
    check_eq(block_alloc_free_blocks(alloc), 12);
    check_eq(block_alloc_missing(alloc, 12), 0);
    /* Two pages hold the seven. */
    check_eq(block_alloc_shed(alloc, 0, 3, pages), 1);
    check_eq(pages[0], 2);
    take(alloc, 5);
    check_eq(count(alloc).reserved_blocks, 2);
    take(alloc, 3);
    check_eq(count(alloc).reserved_blocks, 0);
    give(alloc, 0, 8, 0);
    check_eq(block_alloc_reserve(alloc, 8), 0);
    check_eq(block_alloc_shed(alloc, 0, 3, pages), 0);
    block_alloc_release(alloc);
    check_eq(count(alloc).reserved_blocks, 0);
    check_eq(block_alloc_shed(alloc, 0, 3, pages), 2);
}

TEST(clear)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(3);
    uint64_t pages[3];

    take(alloc, 10);
    check_eq(block_alloc_reserve(alloc, 2), 0);
    block_alloc_resize(alloc, 2); /* page 2 has two of them */
    block_alloc_clear(alloc, 5);
    check_eq(count(alloc).used_blocks, 0);
    check_eq(count(alloc).reserved_blocks, 0);
    check_eq(block_alloc_free_blocks(alloc), 8);
    check_eq(count(alloc).waiting_pages, 3);
    check_eq(block_alloc_shed(alloc, 0, 3, pages), 0);
    block_alloc_complete(alloc, 5);
    check_eq(block_alloc_shed(alloc, 0, 3, pages), 3);
}

TEST(the_last_page_is_cut_short)
{
    struct block_alloc_config config = {
        .page_bytes = 40, .block_bytes = 10, .pages = 8, .max_pages = 8, .max_blocks = 9};
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = NULL;
    uint64_t pages[3];

    check_eq(block_alloc_new(&config, &alloc), 0);
    check_eq(count(alloc).empty_pages, 3);
    check_eq(block_alloc_gain(alloc, 2), 8);
    check_eq(block_alloc_gain(alloc, 3), 9);
    check_eq(block_alloc_missing(alloc, 9), 3);
    check_eq(block_alloc_missing(alloc, 10), 4);
    check_eq(block_alloc_missing(alloc, 13), 4);
    check_eq(block_alloc_missing(alloc, 14), 5);
    check_eq(block_alloc_plan(alloc, 2, pages), 0);
    check_eq(block_alloc_mapped(alloc, pages, 2), 0);
    check_eq(block_alloc_missing(alloc, 9), 1);
    check_eq(block_alloc_missing(alloc, 10), 2);
    block_alloc_resize(alloc, 2);
    check_eq(block_alloc_gain(alloc, 1), 0);
    check_eq(block_alloc_missing(alloc, 9), 1);
    check_eq(count(alloc).total_blocks, 8);
}

TEST(host_memory_runs_out)
{
    struct block_alloc_config config = {.page_bytes = 40,
                                        .block_bytes = 10,
                                        .pages = 8,
                                        .max_pages = 8,
                                        .max_blocks = 32,
                                        .null_block = true};
    struct block_alloc *alloc = NULL;
    uint64_t pages[7];
    unsigned n;

    for (n = 0; !alloc; n++) {
        callocs_left = n;
        check_eq(block_alloc_new(&config, &alloc), n < 10 ? -ENOMEM : 0);
    }
    check_eq(n, 11);
    for (n = 0; n < 7; n++) {
        callocs_left = n > 0; /* the tables of the last attempt are still there */
        check_eq(block_alloc_plan(alloc, 7, pages), -ENOMEM);
        check_eq(count(alloc).mapping_pages, 1);
        check_eq(count(alloc).empty_pages, 7);
    }
    callocs_left = 1;
    check_eq(block_alloc_plan(alloc, 7, pages), 0);
    callocs_left = 0;
    check_eq(block_alloc_mapped(alloc, pages, 7), 0);
    check_eq(block_alloc_free_blocks(alloc), 28);
    block_alloc_free(alloc);
}
