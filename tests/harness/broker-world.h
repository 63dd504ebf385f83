/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A world around the broker: peers that come, ask, lie and die, a driver with foreign memory on it that
 * carries out actions late and fails, and an administrator. It keeps its own naive books and compares. The
 * random test and the fuzzer drive it through one function, so that what one finds the other can replay.
 */

#include <stdbool.h>
#include <stdint.h>

struct world;

enum world_op {
    WORLD_JOIN,
    WORLD_TAKE,
    WORLD_SENT, /* a granted request has been carried out */
    WORLD_RETURN,
    WORLD_RETURN_BAD,
    WORLD_WITHDRAW,
    WORLD_DRIVE, /* the driver carries out some of what it was told */
    WORLD_PASS,  /* time passes */
    WORLD_LOSE,
    WORLD_DIE,
    WORLD_LIMIT,
    WORLD_DELETE,
    WORLD_OPEN, /* a lease */
    WORLD_CLOSE,
    WORLD_ASK,   /* for pages of it */
    WORLD_CLAIM, /* what is offered, or the other way round */
    WORLD_SPEND, /* claims, and take their memory */
    WORLD_HINT,  /* what could be given back */
    WORLD_ACK,   /* a notice */
    WORLD_RESERVE,
    WORLD_RELEASE,
    WORLD_LOAD,   /* a part of what was expected of the driver's memory is taken */
    WORLD_UNLOAD, /* and given back */
    _WORLD_N_HONEST,
    WORLD_BUDGET = _WORLD_N_HONEST,
    WORLD_FAIL, /* the driver begins or ceases to fail */
    WORLD_LIE,  /* a peer keeps references to what it returns, or drops them */
    WORLD_FREEZE,
    WORLD_SCRIBBLE, /* over the word of a lease */
    _WORLD_N_LYING,
    WORLD_FOREIGN = _WORLD_N_LYING, /* others take or free memory */
    _WORLD_N,
};

/*
 * In an honest world nothing lies or fails, so nobody accepted is refused. In a lying one free memory still
 * is what we and our peers have left, so bytes that somebody holds are seen in it. In a hostile one anything
 * may happen.
 */
enum world_kind {
    WORLD_HONEST,
    WORLD_LYING,
    WORLD_HOSTILE,
    _WORLD_KINDS,
};

/* `seed` chooses the configuration. */
struct world *world_new(uint64_t seed, enum world_kind kind);
struct world *world_free(struct world *world);

/* Does one thing; `arg` says which, how much, to whom. NULL, or a sentence about what is wrong. */
const char *world_step(struct world *world, enum world_op op, uint32_t arg);

/* Lets everything under way end. Everybody has an answer then, and nothing but what is held or lied about
 * keeps the broker awake. */
const char *world_quiesce(struct world *world);

/* Ends all peers, drains, and compares the device with the beginning. */
const char *world_end(struct world *world);
