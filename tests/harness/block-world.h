/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A world around the block allocator: an engine that takes and gives blocks, right ones and wrong ones, and
 * an owner that maps and unmaps pages, or fails to. It keeps a row for each block and page, makes every sum
 * and choice anew from them, and compares. The random test and the fuzzer drive it through one function, so
 * that what one finds the other can replay.
 */

#include <stdint.h>

struct block_world;

enum block_world_op {
    BLOCK_WORLD_TAKE,
    BLOCK_WORLD_GIVE,
    BLOCK_WORLD_GIVE_ANY, /* among them what is not to be given */
    BLOCK_WORLD_GROW,     /* plans what is missing */
    BLOCK_WORLD_PLAN,
    BLOCK_WORLD_SHED,
    BLOCK_WORLD_SETTLE, /* the owner says what became of pages, mostly what is possible */
    BLOCK_WORLD_COMPLETE,
    BLOCK_WORLD_RESERVE,
    BLOCK_WORLD_RELEASE,
    BLOCK_WORLD_PIN,
    BLOCK_WORLD_UNPIN,
    BLOCK_WORLD_RESIZE,
    BLOCK_WORLD_CLEAR,
    _BLOCK_WORLD_N,
};

/* `seed` chooses the geometry. */
struct block_world *block_world_new(uint64_t seed);
struct block_world *block_world_free(struct block_world *world);

/* Does one thing; `arg` says which, how much, to what. NULL, or a sentence about what is wrong. */
const char *block_world_step(struct block_world *world, enum block_world_op op, uint32_t arg);

/* Gives everything back and lets every page go that can. NULL, or a sentence about what is wrong. */
const char *block_world_end(struct block_world *world);
