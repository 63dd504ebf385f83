/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A page that is used tells that another one may be. What was used within about a second is what the next
 * second may want, and filling up takes less than that. Between two halvings the level falls along a straight
 * line, so that all of this is integer arithmetic and the same on every machine.
 */

#include "prealloc.h"

#include "base/arith.h"

#define ONE (UINT64_C(1) << 16)
#define LEVEL_MAX (UINT64_C(1) << 40) /* far more than any max, and far from overflow */

void prealloc_init(struct prealloc *prealloc, uint64_t min_pages, uint64_t max_pages)
{
    *prealloc = (struct prealloc){.min_pages = u64_min(min_pages, max_pages), .max_pages = max_pages};
}

static uint64_t level_at(const struct prealloc *prealloc, uint64_t now_ns)
{
    uint64_t passed_ns = u64_sub_floor(now_ns, prealloc->at_ns);
    uint64_t halvings = passed_ns / PREALLOC_HALF_LIFE_NS;
    uint64_t rest_us = passed_ns % PREALLOC_HALF_LIFE_NS / NSEC_PER_USEC;
    uint64_t level;

    if (halvings >= 63)
        return 0;
    level = prealloc->level >> halvings;
    return level - level * rest_us / (2 * PREALLOC_HALF_LIFE_NS / NSEC_PER_USEC);
}

void prealloc_used(struct prealloc *prealloc, uint64_t n, uint64_t now_ns)
{
    uint64_t level = level_at(prealloc, now_ns);

    prealloc->level = u64_min(level + u64_min(n, LEVEL_MAX / ONE) * ONE, LEVEL_MAX);
    prealloc->at_ns = u64_max(prealloc->at_ns, now_ns);
}

uint64_t prealloc_recent(const struct prealloc *prealloc, uint64_t now_ns)
{
    return (level_at(prealloc, now_ns) + ONE - 1) / ONE;
}

uint64_t prealloc_ready(const struct prealloc *prealloc, uint64_t now_ns)
{
    return u64_min(u64_max(prealloc_recent(prealloc, now_ns), prealloc->min_pages), prealloc->max_pages);
}

uint64_t prealloc_ahead(const struct prealloc *prealloc, uint64_t now_ns)
{
    return u64_min(prealloc_recent(prealloc, now_ns), prealloc->max_pages);
}
