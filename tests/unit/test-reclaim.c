/* SPDX-License-Identifier: Apache-2.0 */
#include "reclaim.h"

#include "base/arith.h"
#include "test.h"

static const uint64_t sizes[] = {2 * MIB, 8 * MIB};

static struct extent *shelve(struct pool *pool, struct pool_shelf *shelf, unsigned class_index, bool warm)
{
    struct extent *extent = NULL;

    check_eq(pool_extent_new(pool, class_index, &extent), 0);
    pool_colour(extent, shelf);
    pool_set_descriptor(pool, extent, warm);
    pool_put(pool, extent);
    return extent;
}

/* Takes away what reclaim names, and says whether it is this. */
static bool goes(struct pool *pool, const struct pool_shelf *own, bool warm_only,
                 const struct extent *expected)
{
    struct extent *extent = reclaim_pick(pool, own, warm_only);

    if (!extent)
        return !expected;
    pool_remove(pool, extent);
    pool_extent_free(pool, extent);
    return extent == expected;
}

TEST(other_colours_go_first_then_the_oldest)
{
    struct extent *clean, *own, *other1, *other2, *third;
    struct pool_shelf a, b, c;
    struct pool pool;

    pool_init(&pool, 2, sizes);
    pool_shelf_init(&a);
    pool_shelf_init(&b);
    pool_shelf_init(&c);
    own = shelve(&pool, &a, 0, true);
    clean = shelve(&pool, &pool.clean, 1, false);
    other1 = shelve(&pool, &b, 1, true);
    third = shelve(&pool, &c, 0, false);
    other2 = shelve(&pool, &b, 0, false);
    check(goes(&pool, &a, false, other1));
    check(goes(&pool, &a, false, third));
    check(goes(&pool, &a, false, other2));
    check(goes(&pool, &a, false, own));
    check(goes(&pool, &a, false, clean));
    check(goes(&pool, &a, false, NULL));
    pool_deinit(&pool);
}

TEST(for_nobody_in_particular_age_alone_counts)
{
    struct extent *first, *second, *third;
    struct pool_shelf a, b;
    struct pool pool;

    pool_init(&pool, 2, sizes);
    pool_shelf_init(&a);
    pool_shelf_init(&b);
    first = shelve(&pool, &pool.clean, 1, true);
    second = shelve(&pool, &a, 0, false);
    third = shelve(&pool, &b, 0, true);
    check(goes(&pool, NULL, false, first));
    check(goes(&pool, NULL, false, second));
    check(goes(&pool, NULL, false, third));
    pool_deinit(&pool);
}

TEST(descriptors_are_freed_by_what_has_one)
{
    struct extent *cold, *own, *other;
    struct pool_shelf a, b;
    struct pool pool;

    pool_init(&pool, 2, sizes);
    pool_shelf_init(&a);
    pool_shelf_init(&b);
    cold = shelve(&pool, &b, 0, false);
    own = shelve(&pool, &a, 1, true);
    other = shelve(&pool, &b, 0, true);
    check(goes(&pool, &a, true, other));
    check(goes(&pool, &a, true, own));
    check(goes(&pool, &a, true, NULL));
    check(goes(&pool, &a, false, cold));
    pool_deinit(&pool);
}

TEST(ages_wrap)
{
    struct extent *before, *after;
    struct pool pool;

    pool_init(&pool, 2, sizes);
    pool.age = UINT32_MAX;
    before = shelve(&pool, &pool.clean, 0, true);
    after = shelve(&pool, &pool.clean, 1, true);
    check_eq(after->age, 0);
    check(goes(&pool, NULL, false, before));
    check(goes(&pool, NULL, false, after));
    pool_deinit(&pool);
}
