/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * State: everything that the daemon tells over HTTP, as it was at one moment. It refers to nothing outside of
 * itself, so another thread can put it into words while the loop goes on.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "broker.h"
#include "counters.h"
#include "events.h"
#include "history.h"

struct server;

#define STATE_EVENTS_MAX 128 /* the newest */

struct state_instance {
    const char *domain, *name;
    uint64_t serial;
    uint64_t limit_bytes, used_bytes, granted_bytes, limbo_bytes, pending_bytes, leased_bytes, reserved_bytes;
    uint64_t cached_bytes, pinned_bytes, wanted_bytes;
    uint64_t total_granted_bytes, total_returned_bytes, n_refused;
    enum broker_limit_source limit_source;
    unsigned n_peers; /* lost ones included */
    bool over_limit, missed_notice, frozen;
};

struct state {
    const char *gpu_uuid, *gpu_name, *daemon_version;
    unsigned gpu_index;
    bool emulated;
    uint64_t now_ns, realtime_ms; /* the same moment */
    uint64_t uptime_ms, life;
    bool draining, look_failed;

    struct broker_totals totals;
    struct broker_counters counters;
    struct server_counters server;
    struct backing_stats driver;
    uint64_t n_events;
    unsigned n_in_flight, in_flight_max; /* descriptors */

    size_t n_instances; /* those that kvctl lists, oldest first */
    struct state_instance *instances;

    unsigned n_samples;
    struct history_sample samples[HISTORY_MAX];
    unsigned n_recent; /* events, oldest first */
    struct event recent[STATE_EVENTS_MAX];
};

/* For the loop's thread. 0 or -ENOMEM. */
int state_take(struct server *server, struct state **ret);
struct state *state_free(struct state *state);
DEFINE_CLEANUP(struct state *, state_free);
