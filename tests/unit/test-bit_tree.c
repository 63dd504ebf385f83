/* SPDX-License-Identifier: Apache-2.0 */
#include "bit_tree.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "test.h"

TEST(shapes)
{
    static const struct {
        uint64_t n_bits, n_words;
        unsigned n_levels;
    } cases[] = {
        {1, 1, 1},
        {64, 1, 1},
        {65, 2 + 1, 2},
        {4096, 64 + 1, 2},
        {4097, 65 + 2 + 1, 3},
        {UINT64_C(1) << 32, 68174085, 6},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bit_tree tree;

        bit_tree_init(&tree, cases[i].n_bits);
        check_eq(tree.n_words, cases[i].n_words);
        check_eq(tree.n_levels, cases[i].n_levels);
    }
}

TEST(three_levels)
{
    enum { N = 70000 };
    struct bit_tree tree;
    _cleanup_free_ uint64_t *words = NULL;

    bit_tree_init(&tree, N);
    words = calloc(tree.n_words, sizeof(*words));
    check(bit_tree_is_empty(&tree, words));
    check(bit_tree_next(&tree, words, 0) == BIT_TREE_NONE);
    check(bit_tree_last(&tree, words, N) == BIT_TREE_NONE);
    bit_tree_add(&tree, words, 69999);
    bit_tree_add(&tree, words, 63);
    bit_tree_add(&tree, words, 4096);
    bit_tree_add(&tree, words, 4096);
    check_eq(bit_tree_first(&tree, words), 63);
    check_eq(bit_tree_next(&tree, words, 0), 63);
    check_eq(bit_tree_next(&tree, words, 63), 63);
    check_eq(bit_tree_next(&tree, words, 64), 4096);
    check_eq(bit_tree_next(&tree, words, 4097), 69999);
    check(bit_tree_next(&tree, words, N) == BIT_TREE_NONE);
    check_eq(bit_tree_last(&tree, words, UINT64_MAX), 69999);
    check_eq(bit_tree_last(&tree, words, 69999), 4096);
    check_eq(bit_tree_last(&tree, words, 4096), 63);
    check(bit_tree_last(&tree, words, 63) == BIT_TREE_NONE);
    bit_tree_remove(&tree, words, 4096);
    bit_tree_remove(&tree, words, 4096);
    check_eq(bit_tree_next(&tree, words, 64), 69999);
    bit_tree_remove(&tree, words, 63);
    bit_tree_remove(&tree, words, 69999);
    check(bit_tree_is_empty(&tree, words));
}

TEST(fill)
{
    static const uint64_t sizes[] = {0, 1, 63, 64, 65, 4095, 4096, 4097, 5000};
    struct bit_tree tree;

    bit_tree_init(&tree, 5000);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        _cleanup_free_ uint64_t *words = calloc(tree.n_words, sizeof(*words));

        bit_tree_fill(&tree, words, sizes[i]);
        for (uint64_t bit = 0; bit < 5000; bit++) {
            check_eq(bit_tree_has(words, bit), bit < sizes[i]);
            bit_tree_remove(&tree, words, bit);
        }
        check(bit_tree_is_empty(&tree, words));
    }
}

/* Against an array of booleans. */
TEST(random_sets)
{
    enum { N = 4500 };
    uint64_t state = test_seed();
    bool naive[N] = {};
    struct bit_tree tree;
    _cleanup_free_ uint64_t *words = NULL;

    bit_tree_init(&tree, N);
    words = calloc(tree.n_words, sizeof(*words));
    for (unsigned step = 0; step < 30000; step++) {
        uint64_t bit = (test_random(&state) >> 32) % N, next = bit, last = bit;

        naive[bit] = step % 7 == 0;
        (naive[bit] ? bit_tree_add : bit_tree_remove)(&tree, words, bit);
        while (next < N && !naive[next])
            next++;
        while (last > 0 && !naive[last - 1])
            last--;
        check(bit_tree_next(&tree, words, bit) == (next < N ? next : BIT_TREE_NONE));
        check(bit_tree_last(&tree, words, bit) == (last > 0 ? last - 1 : BIT_TREE_NONE));
    }
}
