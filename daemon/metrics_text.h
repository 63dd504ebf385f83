/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Metrics: the daemon's state in Prometheus' text format 0.0.4, or in OpenMetrics 1.0. Each is described in
 * docs/METRICS.md. Pure.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define METRICS_INSTANCES_MAX 1024 /* with series of their own: those that use most */

struct state;

/* What the system says of the process. */
struct process_stats {
    double cpu_seconds;
    double start_seconds; /* since 1970 */
    uint64_t resident_bytes, virtual_bytes, open_fds, max_fds;
};

/* Of the thread that answers. */
struct http_stats {
    unsigned n_connections;
    uint64_t n_requests; /* answered, whatever was said */
    uint64_t n_states;   /* that the loop was asked for */
};

struct metrics {
    const struct state *state;
    struct process_stats process;
    struct http_stats http;
};

/* 0 or -ENOMEM. The text is the caller's, to be freed. */
int metrics_text(const struct metrics *metrics, bool openmetrics, char **ret, size_t *ret_length);
