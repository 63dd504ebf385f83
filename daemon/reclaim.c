/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Reclaim chooses among what lies free in the pool; what is earmarked, granted or on its way somewhere is not
 * on a shelf, and so out of reach. An extent coloured by another domain can never serve the one that waits,
 * so those go first; then what it could have used, had it asked for another class. Within each the oldest
 * goes first: it has been of no use for the longest time.
 *
 * How much has to go is the caller's arithmetic (policy); this only names the next.
 */

#include "reclaim.h"

#include <stddef.h>

static struct extent *older(struct extent *a, struct extent *b)
{
    if (!a || !b)
        return a ? a : b;
    /* Ages wrap, and all that are on shelves lie within half of their range. */
    return (int32_t)(a->age - b->age) <= 0 ? a : b;
}

static struct extent *oldest_of(const struct pool *pool, const struct pool_shelf *shelf, bool warm_only)
{
    struct extent *extent = NULL;

    for (unsigned warm = warm_only; warm < 2; warm++)
        for (unsigned i = 0; i < pool->n_classes; i++)
            extent = older(extent, list_first(&shelf->extents[warm][i], struct extent, link));
    return extent;
}

struct extent *reclaim_pick(const struct pool *pool, const struct pool_shelf *own, bool warm_only)
{
    struct extent *useless = NULL, *useful = NULL;

    list_for_each (it, &pool->shelves) {
        const struct pool_shelf *shelf = container_of(it, struct pool_shelf, link);
        struct extent *extent = oldest_of(pool, shelf, warm_only);

        if (shelf == own || (own && shelf == &pool->clean))
            useful = older(useful, extent);
        else
            useless = older(useless, extent);
    }
    return useless ? useless : useful;
}
