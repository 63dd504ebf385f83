/* SPDX-License-Identifier: Apache-2.0 */
#include "block_geometry.h"

#include <stdbool.h>

#include "test.h"

/* Against every block of many small regions. */
TEST(as_counted)
{
    for (uint64_t page_bytes = 1; page_bytes <= 30; page_bytes++)
        for (uint64_t block_bytes = 1; block_bytes <= page_bytes; block_bytes++) {
            struct block_geometry geometry;
            uint64_t sum = 0, id = 0;

            check_eq(block_geometry_init(&geometry, page_bytes, block_bytes, 40, UINT64_MAX), 0);
            for (uint64_t page = 0; page < 40; page++) {
                uint32_t first, n, inside = 0;

                block_geometry_range(&geometry, page, &first, &n);
                check_eq(block_geometry_sum(&geometry, page), sum);
                for (; (id + 1) * block_bytes <= (page + 1) * page_bytes; id++) {
                    bool straddles = id * block_bytes < page * page_bytes;

                    check_eq(block_geometry_page_of(&geometry, (uint32_t)id), page - straddles);
                    check(straddles || id == first + inside);
                    inside += !straddles;
                }
                check_eq(n, inside);
                check(n <= geometry.page_blocks && n + 1 >= geometry.page_blocks);
                sum += n;
            }
            check_eq(block_geometry_sum(&geometry, 40), sum);
            check_eq(geometry.n_ids, id);
        }
}

TEST(largest)
{
    struct block_geometry geometry;
    uint32_t first, n;

    check_eq(block_geometry_init(&geometry, UINT32_MAX, 1, 1, UINT64_MAX), 0);
    block_geometry_range(&geometry, 0, &first, &n);
    check_eq(first, 0);
    check_eq(n, UINT32_MAX);
    check_eq(block_geometry_page_of(&geometry, UINT32_MAX - 1), 0);
    check_eq(block_geometry_init(&geometry, 1, 1, UINT32_MAX, UINT64_MAX), 0);
    check_eq(block_geometry_page_of(&geometry, UINT32_MAX - 1), UINT32_MAX - 1);
    check_eq(block_geometry_init(&geometry, UINT64_MAX, UINT64_MAX - 1, 1, UINT64_MAX), 0);
    check_eq(block_geometry_sum(&geometry, 1), 1);
    check_eq(block_geometry_init(&geometry, 1, 1, UINT64_C(1) << 32, UINT64_MAX), BLOCK_GEOMETRY_E_MANY);
}

/* Of each page as many as there are below the cut. */
static void compare_cut(const struct block_geometry *whole, uint64_t max_blocks)
{
    struct block_geometry cut;
    uint64_t sum = 0;
    uint32_t first, n, cut_first, cut_n, most = 0;

    check_eq(block_geometry_init(&cut, whole->page_bytes, whole->block_bytes, whole->pages, max_blocks), 0);
    check_eq(cut.n_ids, max_blocks < whole->n_ids ? max_blocks : whole->n_ids);
    for (uint64_t page = 0; page < whole->pages; page++) {
        block_geometry_range(whole, page, &first, &n);
        block_geometry_range(&cut, page, &cut_first, &cut_n);
        while (n > 0 && first + n > max_blocks)
            n--;
        check_eq(cut_n, n);
        check(n == 0 || (cut_first == first && page < cut.used_pages));
        check_eq(block_geometry_sum(&cut, page), sum);
        sum += n;
        most = n > most ? n : most;
        if (page == cut.used_pages - 1)
            check_eq(cut.last_blocks, n);
    }
    check_eq(block_geometry_sum(&cut, whole->pages), sum);
    check_eq(cut.page_blocks, most);
}

TEST(cut_off)
{
    struct block_geometry whole;

    for (uint64_t page_bytes = 1; page_bytes <= 20; page_bytes++)
        for (uint64_t block_bytes = 1; block_bytes <= page_bytes; block_bytes++) {
            check_eq(block_geometry_init(&whole, page_bytes, block_bytes, 6, UINT64_MAX), 0);
            for (uint64_t max_blocks = 1; max_blocks <= whole.n_ids + 2; max_blocks++)
                compare_cut(&whole, max_blocks);
        }
    check_eq(block_geometry_init(&whole, 1, 1, 1, 0), BLOCK_GEOMETRY_E_ZERO);
}
