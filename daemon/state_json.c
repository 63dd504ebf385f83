/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Keys are only ever added, and mean what they mean in kvctl's. Bytes are written as the integers that they
 * are. Text from elsewhere is written as printable ASCII, any other byte as \x1b.
 */

#include "state_json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "state.h"
#include "text_buffer.h"
#include "wire/codec.h"

#define TEXT_MAX 4096

static bool add_u64(cJSON *object, const char *key, uint64_t value)
{
    char digits[24];

    snprintf(digits, sizeof(digits), "%" PRIu64, value);
    return cJSON_AddRawToObject(object, key, digits) != NULL;
}

static bool add_bool(cJSON *object, const char *key, bool value)
{
    return cJSON_AddBoolToObject(object, key, value) != NULL;
}

static bool add_text(cJSON *object, const char *key, const char *text)
{
    static const char digits[] = "0123456789abcdef";
    char clean[TEXT_MAX];
    size_t n = 0;

    for (; *text && n + 4 < sizeof(clean); text++) {
        unsigned char c = (unsigned char)*text;

        if (c >= 0x20 && c < 0x7f) {
            clean[n++] = *text;
            continue;
        }
        clean[n++] = '\\';
        clean[n++] = 'x';
        clean[n++] = digits[c >> 4];
        clean[n++] = digits[c & 15];
    }
    clean[n] = '\0';
    return cJSON_AddStringToObject(object, key, clean) != NULL;
}

/* ---- Parts ---- */

static bool add_gpu(cJSON *root, const struct state *state)
{
    cJSON *gpu = cJSON_AddObjectToObject(root, "gpu");

    return gpu && add_u64(gpu, "index", state->gpu_index) && add_text(gpu, "uuid", state->gpu_uuid) &&
           add_text(gpu, "name", state->gpu_name) && add_bool(gpu, "emulated", state->emulated);
}

static bool add_memory(cJSON *root, const struct broker_totals *totals)
{
    return add_u64(root, "total_bytes", totals->total_bytes) &&
           add_u64(root, "free_bytes", totals->free_bytes) &&
           add_u64(root, "foreign_bytes", totals->foreign_bytes) &&
           add_u64(root, "budget_bytes", totals->budget_bytes) &&
           add_u64(root, "headroom_bytes", totals->headroom_bytes) &&
           add_u64(root, "held_bytes", totals->held_bytes) &&
           add_u64(root, "creating_bytes", totals->creating_bytes) &&
           add_u64(root, "pool_bytes", totals->pool_bytes) &&
           add_u64(root, "warm_bytes", totals->warm_bytes) &&
           add_u64(root, "leased_bytes", totals->leased_bytes) &&
           add_u64(root, "granted_bytes", totals->granted_bytes) &&
           add_u64(root, "limbo_bytes", totals->limbo_bytes) &&
           add_u64(root, "destroying_bytes", totals->destroying_bytes) &&
           add_u64(root, "reserved_bytes", totals->reserved_bytes) &&
           add_u64(root, "expected_bytes", totals->expected_bytes);
}

static const char *name_of(enum broker_limit_source source)
{
    static const char *const names[] = {
        [BROKER_LIMIT_ADMIN] = "admin",
        [BROKER_LIMIT_CONFIG] = "config",
        [BROKER_LIMIT_ENGINE] = "engine",
        [BROKER_LIMIT_BUDGET] = "budget",
    };

    return names[source];
}

static bool add_instance(cJSON *array, const struct state_instance *instance)
{
    cJSON *object = cJSON_CreateObject();

    if (!object || !cJSON_AddItemToArray(array, object)) {
        cJSON_Delete(object);
        return false;
    }
    return add_text(object, "ipc", instance->name) && add_text(object, "domain", instance->domain) &&
           add_u64(object, "limit_bytes", instance->limit_bytes) &&
           add_text(object, "limit_source", name_of(instance->limit_source)) &&
           add_u64(object, "used_bytes", instance->used_bytes) &&
           add_u64(object, "granted_bytes", instance->granted_bytes) &&
           add_u64(object, "limbo_bytes", instance->limbo_bytes) &&
           add_u64(object, "pending_bytes", instance->pending_bytes) &&
           add_u64(object, "leased_bytes", instance->leased_bytes) &&
           add_u64(object, "reserved_bytes", instance->reserved_bytes) &&
           add_u64(object, "cached_bytes", instance->cached_bytes) &&
           add_u64(object, "pinned_bytes", instance->pinned_bytes) &&
           add_u64(object, "wanted_bytes", instance->wanted_bytes) &&
           add_u64(object, "total_granted_bytes", instance->total_granted_bytes) &&
           add_u64(object, "total_returned_bytes", instance->total_returned_bytes) &&
           add_u64(object, "refusals", instance->n_refused) &&
           add_u64(object, "processes", instance->n_peers) &&
           add_bool(object, "over_limit", instance->over_limit) &&
           add_bool(object, "missed_notice", instance->missed_notice) &&
           add_bool(object, "frozen", instance->frozen);
}

static bool add_instances(cJSON *root, const struct state *state)
{
    cJSON *array = cJSON_AddArrayToObject(root, "instances");

    for (size_t i = 0; array && i < state->n_instances; i++)
        if (!add_instance(array, &state->instances[i]))
            return false;
    return array;
}

/* As many numbers for each of 900 samples would be as many nodes: one text is all that is needed. */
static bool add_history(cJSON *root, const struct state *state)
{
    _cleanup_(text_buffer_deinit) struct text_buffer text = {0};

    text_buffer_add(&text, "[");
    for (unsigned i = 0; i < state->n_samples; i++) {
        const struct history_sample *sample = &state->samples[i];
        uint64_t age_ms = u64_sub_floor(state->now_ns, sample->ns) / NSEC_PER_MSEC;
        const uint64_t numbers[] = {u64_sub_floor(state->realtime_ms, age_ms),
                                    sample->granted_bytes,
                                    sample->leased_bytes,
                                    sample->pool_bytes,
                                    sample->leaving_bytes,
                                    sample->foreign_bytes,
                                    sample->budget_bytes};

        text_buffer_add(&text, i ? ",[" : "[");
        for (size_t k = 0; k < ARRAY_SIZE(numbers); k++) {
            if (k > 0)
                text_buffer_add(&text, ",");
            text_buffer_add_u64(&text, numbers[k]);
        }
        text_buffer_add(&text, "]");
    }
    text_buffer_add(&text, "]");
    return !text.failed && cJSON_AddRawToObject(root, "history", text.data);
}

/* "EVENT_OVER_LIMIT" is "over_limit". */
static bool add_kind(cJSON *object, int kind)
{
    const ProtobufCEnumValue *value =
        protobuf_c_enum_descriptor_get_value(&kvcached__event_kind__descriptor, kind);
    const char *name = value ? value->name + strlen("EVENT_") : "UNSPECIFIED";
    char lower[32];
    size_t n = 0;

    for (; name[n] && n < sizeof(lower) - 1; n++)
        lower[n] = (char)(name[n] >= 'A' && name[n] <= 'Z' ? name[n] - 'A' + 'a' : name[n]);
    lower[n] = '\0';
    return add_text(object, "kind", lower);
}

static bool add_event(cJSON *array, const struct event *event)
{
    cJSON *object = cJSON_CreateObject();

    if (!object || !cJSON_AddItemToArray(array, object)) {
        cJSON_Delete(object);
        return false;
    }
    return add_u64(object, "number", event->number) && add_u64(object, "realtime_ms", event->realtime_ms) &&
           add_kind(object, event->kind) && add_text(object, "domain", event->domain) &&
           add_text(object, "ipc", event->instance) && add_u64(object, "pid", (uint64_t)event->pid) &&
           add_u64(object, "bytes", event->bytes) && add_text(object, "text", event->text);
}

static bool add_events(cJSON *root, const struct state *state)
{
    cJSON *array = cJSON_AddArrayToObject(root, "events");

    for (unsigned i = 0; array && i < state->n_recent; i++)
        if (!add_event(array, &state->recent[i]))
            return false;
    return array;
}

/* ---- The whole ---- */

static bool add_all(cJSON *root, const struct state *state)
{
    char life[24];

    snprintf(life, sizeof(life), "%016" PRIx64, state->life); /* no number to count with */
    return add_gpu(root, state) && add_text(root, "daemon_version", state->daemon_version) &&
           add_text(root, "life", life) && add_u64(root, "realtime_ms", state->realtime_ms) &&
           add_u64(root, "uptime_ms", state->uptime_ms) && add_bool(root, "draining", state->draining) &&
           add_bool(root, "driver_silent", state->look_failed) && add_memory(root, &state->totals) &&
           add_instances(root, state) && add_history(root, state) && add_events(root, state) &&
           add_u64(root, "last_event", state->n_events);
}

int state_json(const struct state *state, char **ret, size_t *ret_length)
{
    cJSON *root = cJSON_CreateObject();
    char *text = root && add_all(root, state) ? cJSON_PrintUnformatted(root) : NULL;

    cJSON_Delete(root);
    if (!text)
        return -ENOMEM;
    *ret = text;
    *ret_length = strlen(text);
    return 0;
}
