/* SPDX-License-Identifier: Apache-2.0 */

/* Pages of the block allocator: which are given back, what keeps them, and what is asked about them. */

#include "block_alloc.h"

#include "block-bench.h"
#include "test.h"

TEST(shed_keeps_what_it_is_told)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(6);
    uint64_t pages[6], again[6];

    take(alloc, 1);
    check_eq(block_alloc_shed(alloc, 5, 6, pages), 0);
    check_eq(block_alloc_shed(alloc, 3, 1, pages), 1);
    check_eq(pages[0], 5);
    check_eq(block_alloc_page_state(alloc, 5), BLOCK_ALLOC_UNMAPPING);
    check_eq(block_alloc_shed(alloc, 1, 6, pages + 1), 3);
    check_eq(pages[1], 4);
    check_eq(pages[2], 3);
    check_eq(pages[3], 2);
    check_eq(block_alloc_free_pages(alloc), 1);
    check_eq(count(alloc).unmapping_pages, 4);
    check_eq(block_alloc_free_blocks(alloc), 7);
    /* One could not be unmapped. */
    check_eq(block_alloc_unmapped(alloc, pages, 3), 0);
    check_eq(block_alloc_keep(alloc, pages + 3, 1), 0);
    check_eq(block_alloc_free_blocks(alloc), 11);
    check_eq(count(alloc).empty_pages, 3);
    check_eq(block_alloc_plan(alloc, 2, again), 0);
    check_eq(again[0], 3);
    check_eq(again[1], 4);
}

TEST(epochs)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(4);
    uint64_t pages[4];

    take(alloc, 16);
    give(alloc, 0, 4, 3);
    give(alloc, 4, 3, 9);
    give(alloc, 7, 1, 2); /* the page's is 9 */
    give(alloc, 8, 4, 0);
    give(alloc, 12, 4, 5);
    check_eq(block_alloc_free_blocks(alloc), 16);
    check_eq(count(alloc).waiting_pages, 3);
    check_eq(count(alloc).sheddable_pages, 1);
    check_eq(block_alloc_shed(alloc, 0, 4, pages), 1);
    check_eq(pages[0], 2);
    block_alloc_complete(alloc, 8);
    block_alloc_complete(alloc, 1);
    check_eq(count(alloc).waiting_pages, 1);
    check_eq(block_alloc_shed(alloc, 0, 4, pages), 2);
    check_eq(pages[0], 3);
    check_eq(pages[1], 0);
    /* What waits can be taken, and waits no longer than it did. */
    take(alloc, 1);
    check_eq(count(alloc).waiting_pages, 0);
    give(alloc, 4, 1, 0);
    check_eq(count(alloc).waiting_pages, 1);
    block_alloc_complete(alloc, 9);
    check_eq(block_alloc_shed(alloc, 0, 4, pages), 1);
    check_eq(pages[0], 1);
}

TEST(pins)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(40, 10, 4, false);
    struct block_alloc_census census[4];
    uint64_t pages[4];

    map_pages(alloc, 3);
    check_eq(block_alloc_pin(alloc, 1, 3), BLOCK_ALLOC_E_STATE);
    check_eq(block_alloc_pin(alloc, 1, UINT64_MAX), BLOCK_ALLOC_E_PAGE);
    check_eq(block_alloc_pin(alloc, 4, 1), BLOCK_ALLOC_E_PAGE);
    check_eq(count(alloc).pinned_pages, 0);
    check_eq(block_alloc_pin(alloc, 1, 2), 0);
    check_eq(block_alloc_pin(alloc, 2, 1), 0);
    check_eq(count(alloc).pinned_pages, 2);
    check_eq(count(alloc).sheddable_pages, 1);
    check_eq(block_alloc_free_pages(alloc), 3);
    check_eq(block_alloc_shed(alloc, 3, 4, pages), 0);
    check_eq(block_alloc_shed(alloc, 0, 4, pages), 1);
    check_eq(pages[0], 0);
    take(alloc, 5);
    check_eq(block_alloc_census(alloc, 4, census), 0);
    check_eq(block_alloc_unpin(alloc, 1, 2), 0);
    check_eq(block_alloc_unpin(alloc, 1, 1), BLOCK_ALLOC_E_STATE);
    check_eq(block_alloc_census(alloc, 4, census), 1);
    check_eq(census[0].page, 1);
    block_alloc_clear(alloc, 0);
    check_eq(block_alloc_shed(alloc, 0, 4, pages), 1);
    check_eq(block_alloc_unpin(alloc, 2, 1), 0);
    check_eq(block_alloc_shed(alloc, 0, 4, pages), 1);
    check_eq(pages[0], 2);
}

TEST(resize)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(4);
    uint64_t pages[4];
    uint32_t id;

    take(alloc, 15);
    check_eq(block_alloc_reserve(alloc, 1), 0);
    block_alloc_resize(alloc, 2);
    check_eq(count(alloc).removed_pages, 2);
    check_eq(count(alloc).total_blocks, 8);
    check_eq(count(alloc).used_blocks, 15);
    check_eq(count(alloc).reserved_blocks, 0);
    check_eq(block_alloc_free_blocks(alloc), 0);
    check_eq(block_alloc_take(alloc, 1, &id), BLOCK_ALLOC_E_SHORT);
    /* Removed ones go first, whatever is to be kept. */
    give(alloc, 0, 4, 0);
    give(alloc, 8, 7, 0);
    check_eq(block_alloc_free_blocks(alloc), 4);
    check_eq(block_alloc_shed(alloc, 9, 4, pages), 2);
    check_eq(pages[0], 3);
    check_eq(pages[1], 2);
    check_eq(block_alloc_unmapped(alloc, pages, 2), 0);
    check_eq(count(alloc).empty_pages, 0);
    check_eq(block_alloc_plan(alloc, 1, pages), BLOCK_ALLOC_E_FULL);
    block_alloc_resize(alloc, 3);
    check_eq(count(alloc).empty_pages, 1);
    check_eq(block_alloc_plan(alloc, 1, pages), 0);
    check_eq(pages[0], 2);
}

TEST(removed_pages_come_back)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(3);

    take(alloc, 6);
    block_alloc_resize(alloc, 1);
    check_eq(block_alloc_free_blocks(alloc), 0);
    block_alloc_resize(alloc, UINT64_MAX);
    check_eq(block_alloc_free_blocks(alloc), 6);
    check_eq(block_alloc_free_pages(alloc), 1);
    check_eq(count(alloc).total_blocks, 12);
}

TEST(doubt_and_worse)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = alloc_new(40, 10, 4, false);
    uint64_t pages[4], twice[2] = {0, 0}, none = 4, mapped = 0;

    check_eq(block_alloc_plan(alloc, 4, pages), 0);
    check_eq(block_alloc_mapped(alloc, twice, 2), BLOCK_ALLOC_E_STATE);
    check_eq(block_alloc_mapped(alloc, &none, 1), BLOCK_ALLOC_E_PAGE);
    check_eq(block_alloc_keep(alloc, pages, 1), BLOCK_ALLOC_E_STATE);
    check_eq(count(alloc).mapping_pages, 4);
    check_eq(block_alloc_mapped(alloc, pages, 1), 0);
    check_eq(block_alloc_doubt(alloc, pages + 1, 2), 0);
    check_eq(block_alloc_broken(alloc, pages + 3, 1), 0);
    check_eq(block_alloc_doubt(alloc, &mapped, 1), BLOCK_ALLOC_E_STATE);
    check_eq(count(alloc).doubt_pages, 2);
    check_eq(count(alloc).broken_pages, 1);
    check_eq(block_alloc_free_blocks(alloc), 4);
    check_eq(block_alloc_mapped(alloc, pages + 1, 1), 0);
    check_eq(block_alloc_unmapped(alloc, pages + 2, 1), 0);
    check_eq(block_alloc_free_blocks(alloc), 8);
    check_eq(count(alloc).empty_pages, 1);
    check_eq(block_alloc_mapped(alloc, pages + 3, 1), BLOCK_ALLOC_E_STATE);
    check_eq(block_alloc_unmapped(alloc, pages + 3, 1), BLOCK_ALLOC_E_STATE);
    check_eq(block_alloc_keep(alloc, pages + 3, 1), BLOCK_ALLOC_E_STATE);
}

TEST(census)
{
    _cleanup_(block_alloc_freep) struct block_alloc *alloc = mapped_new(5);
    struct block_alloc_census census[5];
    uint64_t pages[3] = {3, 0, 4}, none = 5;
    uint32_t ids[4], used[3] = {7, 7, 7};

    take(alloc, 16);
    give(alloc, 1, 1, 0);  /* 3 of page 0 are used */
    give(alloc, 4, 3, 0);  /* 1 of page 1 */
    give(alloc, 12, 2, 0); /* 2 of page 3, which is removed */
    block_alloc_resize(alloc, 3);
    check_eq(block_alloc_census(alloc, 5, census), 4);
    check_eq(census[0].page, 1);
    check_eq(census[0].used, 1);
    check_eq(census[1].page, 3);
    check_eq(census[1].used, 2);
    check_eq(census[2].page, 0);
    check_eq(census[3].page, 2);
    check_eq(census[3].used, 4);
    check_eq(block_alloc_census(alloc, 2, census), 2);
    check_eq(census[1].page, 3);
    check_eq(block_alloc_occupancy(alloc, pages, 3, used), 0);
    check_eq(used[0], 2);
    check_eq(used[1], 3);
    check_eq(used[2], 0);
    check_eq(block_alloc_occupancy(alloc, &none, 1, used), BLOCK_ALLOC_E_PAGE);
    check_eq(used[0], 2);
    check_eq(block_alloc_used_of(alloc, 0, 4, ids), 3);
    check_eq(ids[0], 0);
    check_eq(ids[1], 2);
    check_eq(ids[2], 3);
    ids[1] = 77;
    check_eq(block_alloc_used_of(alloc, 0, 1, ids), 3);
    check_eq(ids[1], 77);
    check_eq(block_alloc_used_of(alloc, 4, 4, ids), 0);
    check_eq(block_alloc_used_of(alloc, 5, 4, ids), 0);
}
