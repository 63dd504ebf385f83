/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A search climbs from its starting point until a word has a member in the direction that is wanted, and then
 * descends to it: two steps a level at most.
 */

#include "bit_tree.h"

void bit_tree_init(struct bit_tree *tree, uint64_t n_bits)
{
    uint64_t n = n_bits;

    *tree = (struct bit_tree){.n_bits = n_bits};
    do {
        n = (n + 63) / 64;
        tree->starts[tree->n_levels++] = tree->n_words;
        tree->n_words += n;
    } while (n > 1);
}

uint64_t bit_tree_next(const struct bit_tree *tree, const uint64_t *words, uint64_t from)
{
    unsigned level = 0;
    uint64_t bit = from, n = tree->n_bits, word;

    for (;; level++, bit = bit / 64 + 1, n = (n + 63) / 64) {
        if (level == tree->n_levels || bit >= n)
            return BIT_TREE_NONE;
        word = words[tree->starts[level] + bit / 64] >> bit % 64;
        if (word)
            break;
    }
    bit += (uint64_t)__builtin_ctzll(word);
    while (level-- > 0)
        bit = bit * 64 + (uint64_t)__builtin_ctzll(words[tree->starts[level] + bit]);
    return bit;
}

static uint64_t last_of(uint64_t word)
{
    return 63 - (uint64_t)__builtin_clzll(word);
}

uint64_t bit_tree_last(const struct bit_tree *tree, const uint64_t *words, uint64_t end)
{
    unsigned level = 0;
    uint64_t bit = end < tree->n_bits ? end : tree->n_bits, word = 0;

    for (;; level++, bit = (bit - 1) / 64) {
        if (level == tree->n_levels || bit == 0)
            return BIT_TREE_NONE;
        word = words[tree->starts[level] + (bit - 1) / 64] << (63 - (bit - 1) % 64);
        if (word)
            break;
    }
    bit -= 1 + (uint64_t)__builtin_clzll(word);
    while (level-- > 0)
        bit = bit * 64 + last_of(words[tree->starts[level] + bit]);
    return bit;
}

void bit_tree_fill(const struct bit_tree *tree, uint64_t *words, uint64_t n)
{
    for (unsigned level = 0; level < tree->n_levels; level++, n = (n + 63) / 64) {
        uint64_t *of_level = words + tree->starts[level];

        for (uint64_t i = 0; i < n / 64; i++)
            of_level[i] = UINT64_MAX;
        if (n % 64)
            of_level[n / 64] |= (UINT64_C(1) << n % 64) - 1;
    }
}
