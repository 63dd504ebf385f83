/* SPDX-License-Identifier: Apache-2.0 */
#include "address.h"

#include <string.h>

#include "test.h"

#define BASE (UINT64_C(1) << 40)
#define G EMU_GRANULE

static struct address_map map;

static struct mapping *put(struct range *range, unsigned first, unsigned n)
{
    struct mapping *mapping = address_map(&map, range, range->base + first * G, n * G, NULL);

    check(mapping);
    return mapping;
}

TEST(ranges_stay_sorted)
{
    struct range *b = address_add(&map, BASE + 100 * G, 10 * G), *a = address_add(&map, BASE, 4 * G),
                 *c = address_add(&map, BASE + 110 * G, G);

    check(address_find(&map, BASE) == a);
    check(address_find(&map, BASE + 4 * G - 1) == a);
    check(address_find(&map, BASE + 4 * G) == NULL);
    check(address_find(&map, BASE - 1) == NULL);
    check(address_find(&map, BASE + 105 * G) == b);
    check(address_find(&map, BASE + 110 * G) == c);
    address_remove(&map, b);
    check(address_find(&map, BASE + 105 * G) == NULL);
    check(address_find(&map, BASE + 110 * G) == c);
    address_deinit(&map);
}

TEST(unmapped_is_within_one_range)
{
    struct range *a = address_add(&map, BASE, 4 * G);

    address_add(&map, BASE + 4 * G, 4 * G);
    put(a, 1, 1);
    check(address_find_unmapped(&map, BASE, G) == a);
    check(address_find_unmapped(&map, BASE, 2 * G) == NULL);
    check(address_find_unmapped(&map, BASE + 2 * G, 2 * G) == a);
    check(address_find_unmapped(&map, BASE + 2 * G, 3 * G) == NULL);
    check(address_find_unmapped(&map, BASE + 3 * G, 0) == NULL);
    check(address_find_unmapped(&map, BASE + 3 * G, UINT64_MAX) == NULL);
    address_deinit(&map);
}

TEST(runs_are_whole_mappings)
{
    struct range *a = address_add(&map, BASE, 16 * G);
    struct mapping *first = put(a, 2, 3), *second = put(a, 5, 1), *walked;
    uint64_t at = BASE + 2 * G;

    check(address_find_run(&map, BASE + 2 * G, 4 * G) == a);
    check(address_find_run(&map, BASE + 2 * G, 3 * G) == a);
    check(address_find_run(&map, BASE + 5 * G, G) == a);
    check(address_find_run(&map, BASE + 2 * G, 2 * G) == NULL);
    check(address_find_run(&map, BASE + 3 * G, 2 * G) == NULL);
    check(address_find_run(&map, BASE + 2 * G, 5 * G) == NULL);
    check(address_find_run(&map, BASE + 1 * G, 4 * G) == NULL);
    check(address_find_run(&map, BASE + 2 * G + 4096, 3 * G) == NULL);
    walked = address_next(&map, &at, BASE + 6 * G);
    check(walked == first);
    walked = address_next(&map, &at, BASE + 6 * G);
    check(walked == second);
    check(address_next(&map, &at, BASE + 6 * G) == NULL);
    address_deinit(&map);
}

#define N 64

/* Random mapping and unmapping, against an array of granules. */
TEST(random_against_an_array)
{
    uint64_t seed = test_seed();
    struct mapping *naive[N] = {0};
    struct range *range = address_add(&map, BASE, N * G);

    for (unsigned i = 0; i < 20000; i++) {
        unsigned at = test_random(&seed) % N, n = 1 + test_random(&seed) % 6;
        bool is_free = at + n <= N;
        struct mapping *mapping;

        for (unsigned j = at; j < at + n && j < N; j++)
            is_free &= !naive[j];
        check_eq(address_find_unmapped(&map, BASE + at * G, n * G) != NULL, is_free);
        check(address_mapping(&map, BASE + at * G + 77) == naive[at]);
        if (is_free) {
            mapping = put(range, at, n);
            for (unsigned j = at; j < at + n; j++)
                naive[j] = mapping;
        } else if (naive[at]) {
            mapping = naive[at];
            for (unsigned j = 0; j < N; j++)
                if (naive[j] == mapping)
                    naive[j] = NULL;
            address_unmap(&map, mapping);
        }
    }
    address_deinit(&map);
}
