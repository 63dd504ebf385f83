/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One piece of memory: the state, its instances, and the strings of both. It is taken on the loop, so it
 * costs that as little as copying can; words are made of it elsewhere.
 */

#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "server.h"
#include "snapshot.h"

/* ---- Strings ---- */

static const char *put(char **to, const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = memcpy(*to, text, size);

    *to += size;
    return copy;
}

static size_t size_of_instances(struct broker *broker, size_t *ret_n)
{
    struct broker_instance *instance = NULL;
    size_t n = 0, size = 0;

    while ((instance = broker_instance_next(broker, instance))) {
        if (!snapshot_lists(instance))
            continue;
        size += strlen(broker_domain_name(instance->domain)) + strlen(instance->name) + 2;
        n++;
    }
    *ret_n = n;
    return size + n * sizeof(struct state_instance);
}

static size_t size_of_event(const struct event *event)
{
    return strlen(event->domain) + strlen(event->instance) + strlen(event->text) + 3;
}

/* ---- Copying ---- */

static unsigned n_peers(const struct broker_instance *instance)
{
    unsigned n = 0;

    list_for_each (it, &instance->peers)
        n++;
    return n;
}

static void copy_instance(struct broker *broker, const struct broker_instance *instance,
                          struct state_instance *ret, char **strings)
{
    struct broker_words words = broker_instance_words(broker, instance);
    const uint64_t *bytes = instance->account.bytes;

    *ret = (struct state_instance){
        .domain = put(strings, broker_domain_name(instance->domain)),
        .name = put(strings, instance->name),
        .serial = instance->serial,
        .used_bytes = broker_used(instance),
        .granted_bytes = bytes[LEDGER_GRANTED],
        .limbo_bytes = bytes[LEDGER_LIMBO] + bytes[LEDGER_DESTROYING],
        .pending_bytes = bytes[LEDGER_PENDING],
        .leased_bytes = bytes[LEDGER_LEASED],
        .reserved_bytes = bytes[LEDGER_RESERVED],
        .cached_bytes = words.cached_bytes,
        .pinned_bytes = words.pinned_bytes,
        .wanted_bytes = broker_wanted(instance),
        .total_granted_bytes = instance->total_granted_bytes,
        .total_returned_bytes = instance->total_returned_bytes,
        .n_refused = instance->n_refused,
        .n_peers = n_peers(instance),
        .missed_notice = instance->missed,
        .frozen = instance->frozen,
    };
    ret->limit_bytes = broker_limit(broker, instance, &ret->limit_source);
    ret->over_limit = ret->used_bytes > ret->limit_bytes;
}

static void copy_instances(struct broker *broker, struct state *state, char **strings)
{
    struct broker_instance *instance = NULL;
    size_t n = 0;

    while ((instance = broker_instance_next(broker, instance)))
        if (snapshot_lists(instance))
            copy_instance(broker, instance, &state->instances[n++], strings);
}

static void copy_events(const struct event *const *recent, unsigned n, struct state *state, char **strings)
{
    for (unsigned i = 0; i < n; i++) {
        struct event *copy = &state->recent[state->n_recent++];

        *copy = *recent[i];
        copy->domain = put(strings, recent[i]->domain);
        copy->instance = put(strings, recent[i]->instance);
        copy->text = put(strings, recent[i]->text);
    }
}

static void copy_device(const struct device_info *info, struct state *state, char **strings)
{
    state->gpu_uuid = put(strings, info->uuid);
    state->gpu_name = put(strings, info->name);
    state->gpu_index = info->index;
    state->emulated = *info->emulated_folder;
    state->daemon_version = KVCACHED_VERSION;
}

static uint64_t realtime_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / NSEC_PER_MSEC;
}

int state_take(struct server *server, struct state **ret)
{
    const struct device_info *info = device_info(server->device);
    const struct event *recent[STATE_EVENTS_MAX];
    unsigned n_recent = events_recent(&server->events, STATE_EVENTS_MAX, recent);
    size_t n_instances, size;
    struct state *state;
    char *strings;

    size = size_of_instances(server->broker, &n_instances) + strlen(info->uuid) + strlen(info->name) + 2;
    for (unsigned i = 0; i < n_recent; i++)
        size += size_of_event(recent[i]);
    state = malloc(sizeof(*state) + size);
    if (!state)
        return -ENOMEM;
    *state = (struct state){
        .now_ns = server_now(),
        .realtime_ms = realtime_ms(),
        .life = server->life,
        .draining = server->draining,
        .look_failed = server->look_failed,
        .counters = *broker_counters(server->broker),
        .server = server->counters,
        .n_in_flight = server->flight.n_in_flight,
        .in_flight_max = server->flight.max,
        .n_events = server->events.last,
        .n_instances = n_instances,
        .instances = (struct state_instance *)(state + 1),
    };
    state->uptime_ms = (state->now_ns - server->started_ns) / NSEC_PER_MSEC;
    strings = (char *)(state->instances + n_instances);
    broker_totals(server->broker, &state->totals);
    backing_stats(server->backing, &state->driver);
    copy_device(info, state, &strings);
    copy_instances(server->broker, state, &strings);
    copy_events(recent, n_recent, state, &strings);
    state->n_samples = history_copy(&server->history, state->samples);
    *ret = state;
    return 0;
}

struct state *state_free(struct state *state)
{
    free(state);
    return NULL;
}
