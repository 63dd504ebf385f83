/* SPDX-License-Identifier: Apache-2.0 */
#include "pages.h"

#include <errno.h>
#include <string.h>

#include "test.h"

/* What a mapping client does; returns how many pages it mapped. */
static size_t take(struct pages *pages, size_t n, uint32_t *ret_blocks)
{
    const uint64_t *wanted;
    size_t n_wanted;

    check_eq(pages_wanted(pages, n, &wanted, &n_wanted), 0);
    pages_add(pages, n_wanted);
    pages_take(pages, n, ret_blocks);
    return n_wanted;
}

static size_t give(struct pages *pages, const uint32_t *blocks, size_t n)
{
    const uint64_t *empty;
    size_t n_empty;

    pages_give(pages, blocks, n, &empty, &n_empty);
    return n_empty;
}

TEST(one_block_to_a_page)
{
    _cleanup_(pages_freep) struct pages *pages = NULL;
    const uint64_t *named;
    uint32_t blocks[4];
    size_t n;

    check_eq(pages_new(4, 1, &pages), 0);
    check_eq(take(pages, 3, blocks), 3);
    check_eq(blocks[0], 0);
    check_eq(blocks[2], 2);
    pages_give(pages, &blocks[1], 1, &named, &n);
    check_eq(n, 1);
    check_eq(named[0], 1);
    check_eq(take(pages, 2, blocks), 2);
    check_eq(blocks[0], 1);
    check_eq(blocks[1], 3);
    check_eq(pages_wanted(pages, 1, &named, &n), -ENOSPC);
}

TEST(a_refused_map_changes_nothing)
{
    _cleanup_(pages_freep) struct pages *pages = NULL;
    const uint64_t *first, *second;
    size_t n;

    check_eq(pages_new(8, 2, &pages), 0);
    check_eq(pages_wanted(pages, 5, &first, &n), 0);
    check_eq(n, 3);
    check_eq(first[0], 0);
    check_eq(pages_wanted(pages, 1, &second, &n), 0);
    check_eq(n, 1);
    check_eq(second[0], 0);
}

TEST(pages_fill_up_before_others_are_begun)
{
    _cleanup_(pages_freep) struct pages *pages = NULL;
    uint32_t blocks[12];

    check_eq(pages_new(4, 4, &pages), 0);
    check_eq(take(pages, 5, blocks), 2);
    check_eq(take(pages, 3, blocks + 5), 0);
    check_eq(give(pages, blocks, 3), 0); /* the first page keeps one */
    check_eq(take(pages, 3, blocks), 0);
    check_eq(give(pages, blocks, 8), 2);
}

TEST(block_counts_refused)
{
    _cleanup_(pages_freep) struct pages *pages = NULL;

    check_eq(pages_new(4, 0, &pages), -EINVAL);
    check_eq(pages_new(4, PAGES_BLOCKS_MAX + 1, &pages), -EINVAL);
    check(!pages);
    check_eq(pages_new(4, PAGES_BLOCKS_MAX, &pages), 0);
}

/* Against a model that only knows who holds what: no block twice, a page mapped exactly while in use. */
TEST(random_use)
{
    enum { N_PAGES = 20, PER_PAGE = 3, N = N_PAGES * PER_PAGE };
    _cleanup_(pages_freep) struct pages *pages = NULL;
    uint64_t state = test_seed() | 1;
    uint32_t held[N];
    char taken[N] = {};
    size_t n_held = 0, n_mapped = 0;

    check_eq(pages_new(N_PAGES, PER_PAGE, &pages), 0);
    for (int round = 0; round < 20000; round++) {
        size_t n = test_random(&state) % 6, in_use = 0;

        if (test_random(&state) % 2 && n_held + n <= N) {
            n_mapped += take(pages, n, held + n_held);
            for (size_t i = 0; i < n; i++) {
                check(!taken[held[n_held + i]]);
                taken[held[n_held + i]] = 1;
            }
            n_held += n;
        } else if (n <= n_held) {
            for (size_t i = 0; i < n; i++) {
                size_t k = test_random(&state) % n_held;
                uint32_t block = held[k];

                held[k] = held[n_held - 1];
                held[--n_held] = block;
                taken[block] = 0;
            }
            n_mapped -= give(pages, held + n_held, n);
        }
        for (size_t p = 0; p < N_PAGES; p++)
            in_use += memchr(taken + p * PER_PAGE, 1, PER_PAGE) != NULL;
        check_eq(n_mapped, in_use);
    }
}
