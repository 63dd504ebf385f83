/* SPDX-License-Identifier: Apache-2.0 */
#include "pool.h"

#include "base/arith.h"
#include "test.h"

static const uint64_t sizes[] = {2 * MIB, 8 * MIB};

static struct extent *make(struct pool *pool, unsigned class_index, bool descriptor)
{
    struct extent *extent = NULL;

    check_eq(pool_extent_new(pool, class_index, &extent), 0);
    check_eq(extent->state, EXTENT_LOOSE);
    pool_set_descriptor(pool, extent, descriptor);
    return extent;
}

static void drop(struct pool *pool, struct extent *extent)
{
    check(extent);
    pool_extent_free(pool, extent);
}

TEST(ids_never_repeat)
{
    struct extent *first, *again;
    struct pool pool;
    uint64_t id;

    pool_init(&pool, 2, sizes);
    first = make(&pool, 0, false);
    id = extent_id(first);
    check(id >> 32);
    check(pool_extent_find(&pool, id) == first);
    drop(&pool, first);
    check(!pool_extent_find(&pool, id));
    again = make(&pool, 1, false);
    check(again == first);
    check_eq((uint32_t)extent_id(again), (uint32_t)id);
    check(extent_id(again) != id);
    check(!pool_extent_find(&pool, id));
    drop(&pool, again);
    pool_deinit(&pool);
}

TEST(a_slot_whose_generations_are_used_up_stays_empty)
{
    struct extent *last, *other;
    struct pool pool;

    pool_init(&pool, 2, sizes);
    last = make(&pool, 0, false);
    last->generation = UINT32_MAX;
    drop(&pool, last);
    for (unsigned i = 0; i < 600; i++) {
        other = make(&pool, 0, false);
        check(other != last);
    }
    for (uint32_t i = 0; i < pool_n_slots(&pool); i++)
        if (pool_slot(&pool, i)->state != EXTENT_UNUSED)
            drop(&pool, pool_slot(&pool, i));
    pool_deinit(&pool);
}

TEST(what_is_unknown_is_not_found)
{
    struct pool pool;

    pool_init(&pool, 2, sizes);
    check(!pool_extent_find(&pool, 0));
    check(!pool_extent_find(&pool, UINT64_MAX));
    drop(&pool, make(&pool, 0, false));
    check(!pool_extent_find(&pool, 0));
    check(!pool_extent_find(&pool, UINT64_C(1) << 32));
    check(!pool_extent_find(&pool, UINT64_C(1) << 32 | 5));
    check(!pool_extent_find(&pool, UINT64_C(1) << 32 | 5000));
    pool_deinit(&pool);
}

TEST(addresses_do_not_change)
{
    static struct extent *extents[5000];
    struct pool pool;

    pool_init(&pool, 2, sizes);
    for (unsigned i = 0; i < 5000; i++)
        extents[i] = make(&pool, i % 2, false);
    for (unsigned i = 0; i < 5000; i++)
        check(pool_extent_find(&pool, extent_id(extents[i])) == extents[i]);
    check_eq(pool.n_extents, 5000);
    for (unsigned i = 0; i < 5000; i++)
        drop(&pool, extents[i]);
    pool_deinit(&pool);
}

TEST(the_youngest_is_taken_and_kinds_are_apart)
{
    struct extent *cold, *warm1, *warm2, *large;
    struct pool pool;

    pool_init(&pool, 2, sizes);
    pool_put(&pool, cold = make(&pool, 0, false));
    pool_put(&pool, warm1 = make(&pool, 0, true));
    pool_put(&pool, warm2 = make(&pool, 0, true));
    pool_put(&pool, large = make(&pool, 1, true));
    check_eq(pool.shelved_bytes, 14 * MIB);
    check_eq(pool.warm_bytes, 12 * MIB);
    check_eq(pool.n_descriptors, 3);
    check_eq(pool.n_shelved[0], 3);
    check(pool_take(&pool, &pool.clean, true, 0) == warm2);
    check(pool_take(&pool, &pool.clean, true, 0) == warm1);
    check(!pool_take(&pool, &pool.clean, true, 0));
    check(pool_take(&pool, &pool.clean, true, 1) == large);
    check(!pool_take(&pool, &pool.clean, false, 1));
    check(pool_take(&pool, &pool.clean, false, 0) == cold);
    check_eq(pool.shelved_bytes, 0);
    check_eq(pool.warm_bytes, 0);
    drop(&pool, cold);
    drop(&pool, warm1);
    drop(&pool, warm2);
    drop(&pool, large);
    check_eq(pool.n_descriptors, 0);
    pool_deinit(&pool);
}

TEST(shelves_are_listed_while_something_lies_on_them)
{
    struct extent *cold, *warm;
    struct pool_shelf shelf;
    struct pool pool;

    pool_init(&pool, 2, sizes);
    pool_shelf_init(&shelf);
    check(list_is_empty(&pool.shelves));
    cold = make(&pool, 0, false);
    warm = make(&pool, 1, true);
    pool_colour(cold, &shelf);
    pool_colour(warm, &shelf);
    check_eq(shelf.n_coloured, 2);
    check_eq(pool.clean.n_coloured, 0);
    pool_put(&pool, cold);
    pool_put(&pool, warm);
    check(pool.shelves.next == &shelf.link && shelf.link.next == &pool.shelves);
    check(pool.cold_shelves.next == &shelf.cold_link);
    check(!pool_take(&pool, &pool.clean, true, 1));
    pool_remove(&pool, cold);
    check(list_is_empty(&pool.cold_shelves));
    check(!list_is_empty(&pool.shelves));
    pool_remove(&pool, warm);
    check(list_is_empty(&pool.shelves));
    drop(&pool, cold);
    drop(&pool, warm);
    pool_shelf_deinit(&shelf);
    pool_deinit(&pool);
}
