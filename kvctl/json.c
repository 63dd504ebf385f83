/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The stable form of what the daemon says. Keys are only ever added. Bytes are written as the integers that
 * they are: cJSON's own numbers are doubles, which round above 2^53.
 */

#include "json.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>

#include "text.h"

static bool add_u64(cJSON *object, const char *key, uint64_t value)
{
    char digits[24];

    snprintf(digits, sizeof(digits), "%" PRIu64, value);
    return cJSON_AddRawToObject(object, key, digits) != NULL;
}

static bool add_text(cJSON *object, const char *key, const char *text)
{
    char clean[TEXT_MAX];

    return cJSON_AddStringToObject(object, key, text_clean(clean, text)) != NULL;
}

static bool add_bool(cJSON *object, const char *key, bool value)
{
    return cJSON_AddBoolToObject(object, key, value) != NULL;
}

/* Takes the item over, whatever happens. */
static bool add_item(cJSON *object, const char *key, cJSON *item)
{
    if (item && cJSON_AddItemToObject(object, key, item))
        return true;
    cJSON_Delete(item);
    return false;
}

bool json_append(cJSON *array, cJSON *item)
{
    if (item && cJSON_AddItemToArray(array, item))
        return true;
    cJSON_Delete(item);
    return false;
}

/* The object where all went well, else NULL. */
static cJSON *finish(cJSON *object, bool ok)
{
    if (ok)
        return object;
    cJSON_Delete(object);
    return NULL;
}

static cJSON *peer_object(const Kvcached__PeerInfo *peer)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && cJSON_AddNumberToObject(object, "pid", peer->pid) &&
         add_text(object, "role", text_role(peer->role)) && add_text(object, "program", peer->program) &&
         add_bool(object, "connected", peer->connected);
    return finish(object, ok);
}

static cJSON *peer_array(Kvcached__PeerInfo *const *peers, size_t n)
{
    cJSON *array = cJSON_CreateArray();
    bool ok = array != NULL;

    for (size_t i = 0; ok && i < n; i++)
        ok = json_append(array, peer_object(peers[i]));
    return finish(array, ok);
}

/* What the daemon is too old to know is null. */
static bool add_known_u64(cJSON *object, const char *key, uint64_t value, bool known)
{
    return known ? add_u64(object, key, value) : cJSON_AddNullToObject(object, key) != NULL;
}

static bool add_operations(cJSON *object, const Kvcached__InstanceInfo *instance, bool known)
{
    return add_known_u64(object, "cached_bytes", instance->cached_bytes, known) &&
           add_known_u64(object, "pinned_bytes", instance->pinned_bytes, known) &&
           add_known_u64(object, "wanted_bytes", instance->wanted_bytes, known) &&
           add_known_u64(object, "total_granted_bytes", instance->total_granted_bytes, known) &&
           add_known_u64(object, "total_returned_bytes", instance->total_returned_bytes, known) &&
           add_known_u64(object, "refusals", instance->refusals, known) &&
           add_known_u64(object, "serial", instance->serial, known);
}

cJSON *json_instance(const Kvcached__InstanceInfo *instance, const struct json_origin *origin)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_text(object, "ipc", instance->instance) &&
         add_text(object, "domain", instance->domain) && add_u64(object, "gpu", origin->gpu) &&
         add_u64(object, "limit_bytes", instance->limit_bytes) &&
         add_text(object, "limit_source", text_limit_source(instance->limit_source)) &&
         add_u64(object, "used_bytes", instance->used_bytes) &&
         add_u64(object, "granted_bytes", instance->granted_bytes) &&
         add_u64(object, "limbo_bytes", instance->limbo_bytes) &&
         add_u64(object, "pending_bytes", instance->pending_bytes) &&
         add_u64(object, "leased_bytes", instance->leased_bytes) &&
         add_u64(object, "reserved_bytes", instance->reserved_bytes) &&
         add_operations(object, instance, origin->operations) &&
         add_bool(object, "over_limit", instance->over_limit) &&
         add_bool(object, "missed_notice", instance->missed_notice) &&
         add_bool(object, "frozen", instance->frozen) &&
         add_item(object, "peers", peer_array(instance->peers, instance->n_peers));
    return finish(object, ok);
}

bool json_add_instances(cJSON *array, Kvcached__InstanceInfo *const *instances, size_t n,
                        const struct json_origin *origin)
{
    bool ok = array != NULL;

    for (size_t i = 0; ok && i < n; i++)
        ok = json_append(array, json_instance(instances[i], origin));
    return ok;
}

static cJSON *gpu_object(const Kvcached__InfoReply *info)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_u64(object, "index", info->gpu_index) && add_text(object, "uuid", info->gpu_uuid) &&
         add_text(object, "name", info->gpu_name) &&
         add_bool(object, "emulated", info->emulated_folder[0] != '\0') &&
         add_text(object, "emulated_folder", info->emulated_folder);
    return finish(object, ok);
}

static bool add_memory(cJSON *object, const Kvcached__InfoReply *info)
{
    return add_u64(object, "total_bytes", info->total_bytes) &&
           add_u64(object, "free_bytes", info->free_bytes) &&
           add_u64(object, "foreign_bytes", info->foreign_bytes) &&
           add_u64(object, "budget_bytes", info->budget_bytes) &&
           add_u64(object, "headroom_bytes", info->headroom_bytes) &&
           add_u64(object, "held_bytes", info->held_bytes) &&
           add_u64(object, "creating_bytes", info->creating_bytes) &&
           add_u64(object, "pool_bytes", info->pool_bytes) &&
           add_u64(object, "warm_bytes", info->warm_bytes) &&
           add_u64(object, "leased_bytes", info->leased_bytes) &&
           add_u64(object, "granted_bytes", info->granted_bytes) &&
           add_u64(object, "limbo_bytes", info->limbo_bytes) &&
           add_u64(object, "destroying_bytes", info->destroying_bytes) &&
           add_u64(object, "reserved_bytes", info->reserved_bytes) &&
           add_u64(object, "expected_bytes", info->expected_bytes);
}

static bool add_known_text(cJSON *object, const char *key, const char *text, bool known)
{
    return known ? add_text(object, key, text) : cJSON_AddNullToObject(object, key) != NULL;
}

/* A number that JSON's readers would round. */
static bool add_life(cJSON *object, uint64_t life, bool known)
{
    char digits[24];

    snprintf(digits, sizeof(digits), "%016" PRIx64, life);
    return add_known_text(object, "life", digits, known);
}

cJSON *json_daemon(const Kvcached__InfoReply *info, const char *socket_path, const struct json_origin *origin)
{
    cJSON *object = cJSON_CreateObject();
    bool ok, known = origin->operations;

    ok = object && add_item(object, "gpu", gpu_object(info)) && add_text(object, "socket", socket_path) &&
         add_text(object, "daemon_version", info->daemon_version) &&
         add_u64(object, "protocol_version", info->protocol_version) && add_memory(object, info) &&
         add_known_u64(object, "cached_bytes", info->cached_bytes, known) &&
         add_known_u64(object, "wanted_bytes", info->wanted_bytes, known) &&
         add_u64(object, "instances", info->instances) && add_u64(object, "peers", info->peers) &&
         add_known_u64(object, "uptime_ms", info->uptime_ms, known) && add_life(object, info->life, known) &&
         add_known_text(object, "config_file", info->config_file, known) &&
         add_known_text(object, "metrics_address", info->metrics_address, known);
    return finish(object, ok);
}

cJSON *json_event(const Kvcached__Event *event, const struct json_origin *origin)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_u64(object, "gpu", origin->gpu) && add_u64(object, "number", event->number) &&
         add_u64(object, "realtime_ms", event->realtime_ms) &&
         add_text(object, "kind", text_event_kind(event->kind)) && add_text(object, "ipc", event->instance) &&
         add_text(object, "domain", event->domain) && cJSON_AddNumberToObject(object, "pid", event->pid) &&
         add_u64(object, "bytes", event->bytes) && add_text(object, "text", event->text);
    return finish(object, ok);
}

static cJSON *part_object(const Kvcached__WhyPart *part)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_text(object, "holding", text_holding(part->holding)) &&
         add_u64(object, "bytes", part->bytes) && add_u64(object, "for_ms", part->for_ms) &&
         add_item(object, "peer", part->peer ? peer_object(part->peer) : cJSON_CreateNull());
    return finish(object, ok);
}

static cJSON *limit_object(const Kvcached__WhyLimit *limit)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_text(object, "source", text_limit_source(limit->source)) &&
         add_u64(object, "bytes", limit->bytes);
    return finish(object, ok);
}

/* Since when, or null where it isn't so. */
static bool add_state(cJSON *object, const char *key, const Kvcached__WhyState *state)
{
    return add_known_u64(object, key, state ? state->for_ms : 0, state && state->holds);
}

static cJSON *parts_array(const Kvcached__WhyReply *reply)
{
    cJSON *array = cJSON_CreateArray();
    bool ok = array != NULL;

    for (size_t i = 0; ok && i < reply->n_parts; i++)
        ok = json_append(array, part_object(reply->parts[i]));
    return finish(array, ok);
}

static cJSON *limits_array(const Kvcached__WhyReply *reply)
{
    cJSON *array = cJSON_CreateArray();
    bool ok = array != NULL;

    for (size_t i = 0; ok && i < reply->n_limits; i++)
        ok = json_append(array, limit_object(reply->limits[i]));
    return finish(array, ok);
}

cJSON *json_why(const Kvcached__WhyReply *reply, const struct json_origin *origin)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_item(object, "instance", json_instance(reply->instance, origin)) &&
         add_item(object, "parts", parts_array(reply)) && add_item(object, "limits", limits_array(reply)) &&
         add_u64(object, "pressure_bytes", reply->pressure_bytes) &&
         add_state(object, "over_limit_for_ms", reply->over_limit) &&
         add_state(object, "missed_notice_for_ms", reply->missed_notice) &&
         add_state(object, "frozen_for_ms", reply->frozen);
    return finish(object, ok);
}

cJSON *json_reloaded(const Kvcached__Reloaded *reply, const struct json_origin *origin)
{
    cJSON *object = cJSON_CreateObject(), *warnings = cJSON_CreateArray();
    char clean[TEXT_MAX];
    bool ok = object && warnings;

    for (size_t i = 0; ok && i < reply->n_warnings; i++)
        ok = json_append(warnings, cJSON_CreateString(text_clean(clean, reply->warnings[i])));
    if (!object) {
        cJSON_Delete(warnings);
        return NULL;
    }
    ok = add_item(object, "warnings", warnings) && ok && add_u64(object, "gpu", origin->gpu);
    return finish(object, ok);
}

cJSON *json_version(const char *daemon_version, uint32_t protocol_version, const struct json_origin *origin)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_text(object, "kvctl_version", KVCACHED_VERSION) &&
         add_u64(object, "gpu", origin->gpu) && add_text(object, "daemon_version", daemon_version) &&
         add_u64(object, "protocol_version", protocol_version);
    return finish(object, ok);
}

cJSON *json_deletion(const char *instance, const Kvcached__DeleteReply *reply)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_text(object, "ipc", instance) &&
         add_item(object, "disconnected", peer_array(reply->peers, reply->n_peers));
    return finish(object, ok);
}
