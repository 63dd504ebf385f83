/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Bit tree: a set of small numbers with its first, next and last member in a handful of steps, however large
 * it is. Pure. Level 0 has one bit for each number, each further level one bit for each word below that is
 * not zero. Sets of one shape share it and are but an array of words, all zero when empty; the owner
 * allocates that.
 */

#include <stdbool.h>
#include <stdint.h>

#define BIT_TREE_LEVELS_MAX 6 /* 64^6 numbers */
#define BIT_TREE_NONE UINT64_MAX

struct bit_tree {
    uint64_t n_bits, n_words;
    uint64_t starts[BIT_TREE_LEVELS_MAX]; /* of the levels among the words */
    unsigned n_levels;
};

/* For numbers below n_bits, at most 2^32 of them. */
void bit_tree_init(struct bit_tree *tree, uint64_t n_bits);

/* The first member that is not below `from`, or BIT_TREE_NONE. */
uint64_t bit_tree_next(const struct bit_tree *tree, const uint64_t *words, uint64_t from);

/* The last member that is below `end`, or BIT_TREE_NONE. */
uint64_t bit_tree_last(const struct bit_tree *tree, const uint64_t *words, uint64_t end);

/* Adds all numbers below `n`; none of the set is at or above it. */
void bit_tree_fill(const struct bit_tree *tree, uint64_t *words, uint64_t n);

static inline bool bit_tree_has(const uint64_t *words, uint64_t bit)
{
    return words[bit / 64] >> bit % 64 & 1;
}

static inline bool bit_tree_is_empty(const struct bit_tree *tree, const uint64_t *words)
{
    return words[tree->n_words - 1] == 0;
}

/* Adding what is in the set, or removing what is not, changes nothing. */
static inline void bit_tree_add(const struct bit_tree *tree, uint64_t *words, uint64_t bit)
{
    for (unsigned level = 0; level < tree->n_levels; level++, bit /= 64) {
        uint64_t *word = &words[tree->starts[level] + bit / 64];
        uint64_t before = *word;

        *word = before | UINT64_C(1) << bit % 64;
        if (before)
            return;
    }
}

static inline void bit_tree_remove(const struct bit_tree *tree, uint64_t *words, uint64_t bit)
{
    for (unsigned level = 0; level < tree->n_levels; level++, bit /= 64) {
        uint64_t *word = &words[tree->starts[level] + bit / 64];

        *word &= ~(UINT64_C(1) << bit % 64);
        if (*word)
            return;
    }
}

/* The first member of a set that has one. */
static inline uint64_t bit_tree_first(const struct bit_tree *tree, const uint64_t *words)
{
    uint64_t bit = 0;

    for (unsigned level = tree->n_levels; level-- > 0;)
        bit = bit * 64 + (uint64_t)__builtin_ctzll(words[tree->starts[level] + bit]);
    return bit;
}
