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

            check_eq(block_geometry_init(&geometry, page_bytes, block_bytes, 40), 0);
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

    check_eq(block_geometry_init(&geometry, UINT32_MAX, 1, 1), 0);
    block_geometry_range(&geometry, 0, &first, &n);
    check_eq(first, 0);
    check_eq(n, UINT32_MAX);
    check_eq(block_geometry_page_of(&geometry, UINT32_MAX - 1), 0);
    check_eq(block_geometry_init(&geometry, 1, 1, UINT32_MAX), 0);
    check_eq(block_geometry_page_of(&geometry, UINT32_MAX - 1), UINT32_MAX - 1);
    check_eq(block_geometry_init(&geometry, UINT64_MAX, UINT64_MAX - 1, 1), 0);
    check_eq(block_geometry_sum(&geometry, 1), 1);
    check_eq(block_geometry_init(&geometry, 1, 1, UINT64_C(1) << 32), BLOCK_GEOMETRY_E_MANY);
}
