/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The pool owns the extents: every one that exists or is being made has a slot in its table, whoever holds
 * it, and the free ones lie on shelves. A shelf has one colour (clean, or last used by some trust domain); on
 * it extents are sorted by class and by warmth, so that putting and taking need no search. The youngest is
 * taken first, since its memory and the driver's structures are the likeliest to be in some cache, and what
 * lies at the other end grows old and is what may be given up.
 *
 * The table grows in blocks that never move, so extents link to each other and are pointed at. A slot is used
 * again with a new generation; the pair is the extent's id, which therefore never repeats. A slot whose
 * generations are used up stays empty.
 *
 * Who may have which extent, and when, is decided by others.
 */

#include "pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define BLOCK_EXTENTS 512u

_Static_assert(sizeof(struct extent) <= 64, "an extent costs at most a cache line");

void pool_shelf_init(struct pool_shelf *shelf)
{
    *shelf = (struct pool_shelf){};
    list_init(&shelf->link);
    list_init(&shelf->cold_link);
    for (unsigned warm = 0; warm < 2; warm++)
        for (unsigned class_index = 0; class_index < POOL_CLASSES_MAX; class_index++)
            list_init(&shelf->extents[warm][class_index]);
}

void pool_shelf_deinit(struct pool_shelf *shelf)
{
    assert(shelf->n_coloured == 0);
    assert(list_is_empty(&shelf->link) && list_is_empty(&shelf->cold_link));
}

void pool_init(struct pool *pool, unsigned n_classes, const uint64_t *class_bytes)
{
    *pool = (struct pool){.n_classes = n_classes};
    for (unsigned i = 0; i < n_classes; i++)
        pool->class_bytes[i] = class_bytes[i];
    pool_shelf_init(&pool->clean);
    list_init(&pool->shelves);
    list_init(&pool->cold_shelves);
    list_init(&pool->unused);
}

void pool_deinit(struct pool *pool)
{
    assert(pool->n_extents == 0);
    pool_shelf_deinit(&pool->clean);
    for (uint32_t i = 0; i < pool->n_blocks; i++)
        free(pool->blocks[i]);
    free(pool->blocks);
}

uint32_t pool_n_slots(const struct pool *pool)
{
    return pool->n_blocks * BLOCK_EXTENTS;
}

struct extent *pool_slot(const struct pool *pool, uint32_t index)
{
    return &pool->blocks[index / BLOCK_EXTENTS][index % BLOCK_EXTENTS];
}

static int grow_blocks(struct pool *pool)
{
    uint32_t capacity = pool->blocks_capacity ? 2 * pool->blocks_capacity : 16;
    struct extent **blocks;

    if (pool->n_blocks < pool->blocks_capacity)
        return 0;
    if (capacity > UINT32_MAX / BLOCK_EXTENTS)
        return -ENOMEM;
    blocks = realloc(pool->blocks, capacity * sizeof(*blocks));
    if (!blocks)
        return -ENOMEM;
    pool->blocks = blocks;
    pool->blocks_capacity = capacity;
    return 0;
}

static int add_block(struct pool *pool)
{
    struct extent *block;
    int r;

    r = grow_blocks(pool);
    if (r < 0)
        return r;
    block = calloc(BLOCK_EXTENTS, sizeof(*block));
    if (!block)
        return -ENOMEM;
    for (uint32_t i = 0; i < BLOCK_EXTENTS; i++) {
        block[i].index = pool->n_blocks * BLOCK_EXTENTS + i;
        list_append(&pool->unused, &block[i].link);
    }
    pool->blocks[pool->n_blocks++] = block;
    return 0;
}

int pool_extent_new(struct pool *pool, unsigned class_index, struct extent **ret)
{
    struct extent *extent;
    int r;

    if (list_is_empty(&pool->unused)) {
        r = add_block(pool);
        if (r < 0)
            return r;
    }
    extent = list_first(&pool->unused, struct extent, link);
    list_unlink(&extent->link);
    extent->generation++;
    extent->class_index = class_index;
    extent->state = EXTENT_LOOSE;
    extent->shelf = &pool->clean;
    pool->clean.n_coloured++;
    pool->n_extents++;
    *ret = extent;
    return 0;
}

void pool_extent_free(struct pool *pool, struct extent *extent)
{
    assert(extent->state != EXTENT_UNUSED && extent->state != EXTENT_SHELVED);
    pool_set_descriptor(pool, extent, false);
    extent->shelf->n_coloured--;
    pool->n_extents--;
    list_unlink(&extent->link);
    *extent = (struct extent){.index = extent->index, .generation = extent->generation};
    list_init(&extent->link);
    if (extent->generation < UINT32_MAX)
        list_prepend(&pool->unused, &extent->link);
}

struct extent *pool_extent_find(const struct pool *pool, uint64_t id)
{
    uint32_t index = (uint32_t)id;
    struct extent *extent;

    if (index >= pool_n_slots(pool))
        return NULL;
    extent = pool_slot(pool, index);
    return extent->state != EXTENT_UNUSED && extent->generation == id >> 32 ? extent : NULL;
}

void pool_colour(struct extent *extent, struct pool_shelf *shelf)
{
    assert(extent->state != EXTENT_SHELVED);
    extent->shelf->n_coloured--;
    extent->shelf = shelf;
    shelf->n_coloured++;
}

void pool_set_descriptor(struct pool *pool, struct extent *extent, bool descriptor)
{
    assert(extent->state != EXTENT_SHELVED);
    pool->n_descriptors = pool->n_descriptors - extent->descriptor + descriptor;
    extent->descriptor = descriptor;
}

void pool_put(struct pool *pool, struct extent *extent)
{
    struct pool_shelf *shelf = extent->shelf;
    bool warm = extent->descriptor;

    assert(extent->state == EXTENT_LOOSE);
    extent->state = EXTENT_SHELVED;
    extent->holder = NULL;
    extent->age = pool->age++;
    list_append(&shelf->extents[warm][extent->class_index], &extent->link);
    shelf->n[warm][extent->class_index]++;
    if (list_is_empty(&shelf->link))
        list_append(&pool->shelves, &shelf->link);
    if (!warm && list_is_empty(&shelf->cold_link))
        list_append(&pool->cold_shelves, &shelf->cold_link);
    shelf->n_shelved[warm]++;
    pool->n_shelved[extent->class_index]++;
    pool->shelved_bytes += extent_bytes(pool, extent);
    if (warm)
        pool->warm_bytes += extent_bytes(pool, extent);
}

void pool_remove(struct pool *pool, struct extent *extent)
{
    struct pool_shelf *shelf = extent->shelf;
    bool warm = extent->descriptor;

    assert(extent->state == EXTENT_SHELVED);
    list_unlink(&extent->link);
    shelf->n[warm][extent->class_index]--;
    shelf->n_shelved[warm]--;
    if (shelf->n_shelved[0] == 0)
        list_unlink(&shelf->cold_link);
    if (shelf->n_shelved[0] + shelf->n_shelved[1] == 0)
        list_unlink(&shelf->link);
    pool->n_shelved[extent->class_index]--;
    pool->shelved_bytes -= extent_bytes(pool, extent);
    if (warm)
        pool->warm_bytes -= extent_bytes(pool, extent);
    extent->state = EXTENT_LOOSE;
}

struct extent *pool_take(struct pool *pool, struct pool_shelf *shelf, bool warm, unsigned class_index)
{
    struct list *list = &shelf->extents[warm][class_index];
    struct extent *extent;

    if (list_is_empty(list))
        return NULL;
    extent = container_of(list->prev, struct extent, link);
    pool_remove(pool, extent);
    return extent;
}
