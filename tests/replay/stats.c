/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Percentiles, by sorting a copy.
 */

#include "stats.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/cleanup.h"

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double percentile(const double *sorted, size_t n, double p)
{
    size_t i = (size_t)((double)n * p);

    if (n == 0)
        return (double)NAN;
    return sorted[i < n ? i : n - 1];
}

int ttft_summarize(const double *const *series, const size_t *lengths, size_t n_series,
                   struct ttft_summary *ret)
{
    _cleanup_free_ double *all = NULL;
    size_t n = 0;

    for (size_t i = 0; i < n_series; i++)
        n += lengths[i];
    all = malloc((n + 1) * sizeof(*all));
    if (!all)
        return -ENOMEM;
    n = 0;
    for (size_t i = 0; i < n_series; i++) {
        memcpy(all + n, series[i], lengths[i] * sizeof(*all));
        n += lengths[i];
    }
    qsort(all, n, sizeof(*all), compare);
    *ret = (struct ttft_summary){
        .n = n,
        .p50_s = percentile(all, n, 0.5),
        .p90_s = percentile(all, n, 0.9),
        .p99_s = percentile(all, n, 0.99),
    };
    return 0;
}
