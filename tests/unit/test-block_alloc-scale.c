/* SPDX-License-Identifier: Apache-2.0 */

/* What taking and giving blocks costs must not depend on how many pages there are. */

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/arith.h"
#include "block-bench.h"
#include "test.h"

#define FEW 16
#define MANY 40000
#define EACH 4 /* blocks of a page */
#define STEP 8 /* pages that are mapped at once, and blocks of a batch */

/* A walk over the pages costs some hundred ns even where a word stands for 64 of them, so no single call is
 * timed. */
#define CALLS 64

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

/* All in use but for the last two pages, which whoever looks from the start finds last. */
static struct block_alloc *nearly_full(uint64_t pages)
{
    struct block_alloc *alloc = alloc_new(EACH * KIB, KIB, pages, false);

    for (uint64_t i = 0; i < pages; i += STEP) {
        map_pages(alloc, STEP);
        take(alloc, STEP * EACH);
    }
    give(alloc, (uint32_t)(pages - 2) * EACH, 2 * EACH, 0);
    check_eq(count(alloc).full_pages, pages - 2);
    return alloc;
}

/* Of one block, then of all that there are: from pages that are free, in use, and full, and back. */
static uint64_t cycles_ns(struct block_alloc *alloc)
{
    uint64_t start_ns = clock_ns();
    uint32_t ids[2 * EACH];

    for (unsigned i = 0; i < CALLS; i++)
        for (size_t n = 1; n <= 2 * EACH; n += 2 * EACH - 1) {
            check_eq(block_alloc_take(alloc, n, ids), 0);
            check_eq(block_alloc_give(alloc, ids, n, 0), 0);
        }
    return clock_ns() - start_ns;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

TEST(blocks_cost_the_same_among_many_pages)
{
    static uint64_t few_ns[201], many_ns[201];
    _cleanup_(block_alloc_freep) struct block_alloc *few = nearly_full(FEW), *many = nearly_full(MANY);
    const size_t middle = ARRAY_SIZE(few_ns) / 2;

    for (unsigned i = 0; i < ARRAY_SIZE(few_ns); i++) {
        few_ns[i] = cycles_ns(few);
        many_ns[i] = cycles_ns(many);
    }
    qsort(few_ns, ARRAY_SIZE(few_ns), sizeof(*few_ns), compare_u64);
    qsort(many_ns, ARRAY_SIZE(many_ns), sizeof(*many_ns), compare_u64);
    printf("# median of %d takes and gives: %" PRIu64 " ns, among many pages %" PRIu64 " ns\n", 2 * CALLS,
           few_ns[middle], many_ns[middle]);
    /* The trees are two levels higher. */
    check(many_ns[middle] <= 3 * few_ns[middle]);
    check_eq(count(many).used_blocks, (MANY - 2) * EACH);
}
