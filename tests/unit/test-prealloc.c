/* SPDX-License-Identifier: Apache-2.0 */
#include "prealloc.h"

#include "test.h"

#define SECOND PREALLOC_HALF_LIFE_NS

TEST(nothing_used)
{
    struct prealloc p;

    prealloc_init(&p, 5, 10);
    check_eq(prealloc_recent(&p, 0), 0);
    check_eq(prealloc_recent(&p, UINT64_MAX), 0);
    check_eq(prealloc_ready(&p, 7 * SECOND), 5);
    check_eq(prealloc_ahead(&p, 7 * SECOND), 0);
}

TEST(max_bounds_min)
{
    struct prealloc p;

    prealloc_init(&p, 5, 3);
    check_eq(prealloc_ready(&p, 0), 3);
    prealloc_used(&p, 100, 0);
    check_eq(prealloc_ready(&p, 0), 3);
    check_eq(prealloc_ahead(&p, 0), 3);
}

TEST(halves_with_time)
{
    struct prealloc p;

    prealloc_init(&p, 1, 1000);
    prealloc_used(&p, 64, 3 * SECOND);
    check_eq(prealloc_recent(&p, 3 * SECOND), 64);
    check_eq(prealloc_recent(&p, 3 * SECOND + SECOND / 2), 48);
    check_eq(prealloc_recent(&p, 4 * SECOND), 32);
    check_eq(prealloc_recent(&p, 4 * SECOND + SECOND / 2), 24);
    check_eq(prealloc_recent(&p, 9 * SECOND), 1);
    check_eq(prealloc_recent(&p, 20 * SECOND), 1);
    check_eq(prealloc_recent(&p, 30 * SECOND), 0);
    check_eq(prealloc_ready(&p, 30 * SECOND), 1);
    check_eq(prealloc_recent(&p, 2000 * SECOND), 0);
}

TEST(adds_up)
{
    struct prealloc p;

    prealloc_init(&p, 0, 1000);
    for (uint64_t i = 0; i < 4; i++)
        prealloc_used(&p, 10, i * SECOND);
    /* 10 + 5 + 2.5 + 1.25 */
    check_eq(prealloc_recent(&p, 3 * SECOND), 19);
    check_eq(prealloc_ready(&p, 3 * SECOND), 19);
    check_eq(prealloc_ahead(&p, 3 * SECOND), 19);
    check_eq(prealloc_ahead(&p, 4 * SECOND), 10);
}

TEST(bounded)
{
    struct prealloc p;

    prealloc_init(&p, 0, UINT64_MAX);
    for (int i = 0; i < 3; i++)
        prealloc_used(&p, UINT64_MAX, 5 * SECOND);
    check_eq(prealloc_recent(&p, 5 * SECOND), 1 << 24);
    check_eq(prealloc_recent(&p, 6 * SECOND), 1 << 23);
}

/* A coarse clock that is read by several threads. */
TEST(time_stands_still)
{
    struct prealloc p;

    prealloc_init(&p, 0, 100);
    prealloc_used(&p, 8, 5 * SECOND);
    prealloc_used(&p, 8, 4 * SECOND);
    check_eq(prealloc_recent(&p, 3 * SECOND), 16);
    check_eq(prealloc_recent(&p, 5 * SECOND), 16);
    check_eq(prealloc_recent(&p, 6 * SECOND), 8);
}
