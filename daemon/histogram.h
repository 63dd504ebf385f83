/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Histogram: how long things took, by powers of four from one microsecond to sixteen seconds, and their sum.
 * Pure.
 */

#include <stdint.h>

#define HISTOGRAM_BOUNDS 13 /* and one bucket more, of what is above all of them */

struct histogram {
    uint64_t n[HISTOGRAM_BOUNDS + 1];
    uint64_t sum_ns;
};

/* The upper bound of a bucket, inclusive: 1 µs, 4 µs, … 16.8 s. */
static inline uint64_t histogram_bound_ns(unsigned bucket)
{
    return UINT64_C(1000) << 2 * bucket;
}

static inline void histogram_add(struct histogram *histogram, uint64_t ns)
{
    unsigned bucket = 0;

    while (bucket < HISTOGRAM_BOUNDS && ns > histogram_bound_ns(bucket))
        bucket++;
    histogram->n[bucket]++;
    histogram->sum_ns += ns;
}

static inline uint64_t histogram_count(const struct histogram *histogram)
{
    uint64_t n = 0;

    for (unsigned i = 0; i <= HISTOGRAM_BOUNDS; i++)
        n += histogram->n[i];
    return n;
}
