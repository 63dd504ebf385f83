/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Counters: what the daemon counts, beside the broker's own (broker.h). */

#include "histogram.h"

/* What the driver is asked for, by urgency. */
enum backing_type {
    BACKING_EXPORT,
    BACKING_CREATE,
    BACKING_LOOK,
    BACKING_RELEASE,
    _BACKING_TYPES,
};

/* Of the calls that were made so far, by type. */
struct backing_stats {
    uint64_t n_failed[_BACKING_TYPES]; /* a full device is no failure */
    struct histogram times[_BACKING_TYPES];
    uint64_t busy_ns; /* how long the call that is being made has taken so far; 0: there is none */
};

/* Since the daemon's start. */
struct server_counters {
    uint64_t n_connections[2], n_rejected[2]; /* by enum listener_kind */
    uint64_t n_violations;                    /* of the protocol */
    uint64_t n_joined, n_left, n_lost;        /* processes; lost: with something in their hands */
    uint64_t n_reloads, n_reloads_failed;
    uint64_t n_suppressed; /* events that were not noted, for being too many */
};
