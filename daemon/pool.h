/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Pool: the table of all extents and the shelves on which the free ones lie, by class, colour and warmth.
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "ledger.h"

#define POOL_CLASSES_MAX 8

enum extent_state {
    EXTENT_UNUSED,   /* a slot of the table without an extent */
    EXTENT_LOOSE,    /* between two of the others: in no list */
    EXTENT_CREATING, /* for: the domain it was ordered for, or NULL */
    EXTENT_SHELVED,
    EXTENT_EXPORTING,   /* for: as above */
    EXTENT_EARMARKED,   /* for: the request that waits */
    EXTENT_LEASED,      /* for: the lease */
    EXTENT_GRANTED,     /* for: the peer */
    EXTENT_LIMBO,       /* for: the lost peer */
    EXTENT_DOOMED,      /* to be destroyed */
    EXTENT_UNCONFIRMED, /* destroyed, not proven free */
};

struct pool_shelf;

/* Kept small: there may be a hundred thousand. Addresses don't change. */
struct extent {
    struct list link; /* of the one list that its state says */
    struct ledger_charge charge;
    void *holder;             /* see the state */
    struct pool_shelf *shelf; /* its colour: the shelf on which it belongs */
    uint32_t index;
    uint32_t generation;
    uint32_t age; /* when it was shelved; wraps */
    uint8_t class_index;
    uint8_t state;
    bool descriptor : 1; /* the daemon has one, or is getting it */
    bool handed : 1;     /* somebody else may refer to the memory */
    bool sending : 1;    /* granted, the descriptor not yet out */
    bool marked : 1;     /* named once in the call at hand */
};

/* What lies free and has one colour; what was used by a domain, or, clean, by nobody. */
struct pool_shelf {
    struct list link;                         /* of those with something on them */
    struct list cold_link;                    /* of those with something cold */
    struct list extents[2][POOL_CLASSES_MAX]; /* cold and warm, oldest first */
    uint32_t n[2][POOL_CLASSES_MAX];
    uint32_t n_shelved[2];
    uint32_t n_coloured; /* extents of this colour, wherever they are */
};

struct pool {
    unsigned n_classes;
    uint64_t class_bytes[POOL_CLASSES_MAX];
    struct pool_shelf clean;
    struct list shelves, cold_shelves;
    uint32_t n_shelved[POOL_CLASSES_MAX]; /* by class, of all colours */
    uint64_t shelved_bytes, warm_bytes;   /* of what is shelved */
    uint32_t n_descriptors;
    uint32_t age;
    struct extent **blocks;
    uint32_t n_blocks, blocks_capacity;
    uint32_t n_extents;
    struct list unused;
};

void pool_init(struct pool *pool, unsigned n_classes, const uint64_t *class_bytes);
void pool_deinit(struct pool *pool);

void pool_shelf_init(struct pool_shelf *shelf);
void pool_shelf_deinit(struct pool_shelf *shelf);

/* A new extent, clean and loose. -ENOMEM. */
int pool_extent_new(struct pool *pool, unsigned class_index, struct extent **ret);
void pool_extent_free(struct pool *pool, struct extent *extent);

/* NULL where there is none of that index and generation. */
struct extent *pool_extent_find(const struct pool *pool, uint64_t id);

/* For walks over all: slots below pool_n_slots(), unused ones included. */
struct extent *pool_slot(const struct pool *pool, uint32_t index);
uint32_t pool_n_slots(const struct pool *pool);

static inline uint64_t extent_id(const struct extent *extent)
{
    return (uint64_t)extent->generation << 32 | extent->index;
}

static inline uint64_t extent_bytes(const struct pool *pool, const struct extent *extent)
{
    return pool->class_bytes[extent->class_index];
}

void pool_colour(struct extent *extent, struct pool_shelf *shelf);
void pool_set_descriptor(struct pool *pool, struct extent *extent, bool descriptor);

/* Puts a loose extent onto the shelf of its colour, as its youngest; warm if it has a descriptor. */
void pool_put(struct pool *pool, struct extent *extent);

/* Takes the youngest, or NULL; it is loose then. */
struct extent *pool_take(struct pool *pool, struct pool_shelf *shelf, bool warm, unsigned class_index);

/* Takes this one from its shelf. */
void pool_remove(struct pool *pool, struct extent *extent);
