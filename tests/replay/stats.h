/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Percentiles of times to first token. The p-th percentile of n sorted values is the one at index n × p,
 * rounded down. Pure.
 */

#include <stddef.h>

struct ttft_summary {
    size_t n;
    double p50_s, p90_s, p99_s; /* NAN where there are no values */
};

/* Of several series together; they stay as they are. -ENOMEM. */
int ttft_summarize(const double *const *series, const size_t *lengths, size_t n_series,
                   struct ttft_summary *ret);
