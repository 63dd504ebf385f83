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

static bool append_item(cJSON *array, cJSON *item)
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
        ok = append_item(array, peer_object(peers[i]));
    return finish(array, ok);
}

cJSON *json_instance(const Kvcached__InstanceInfo *instance)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_text(object, "ipc", instance->instance) &&
         add_text(object, "domain", instance->domain) &&
         add_u64(object, "limit_bytes", instance->limit_bytes) &&
         add_text(object, "limit_source", text_limit_source(instance->limit_source)) &&
         add_u64(object, "used_bytes", instance->used_bytes) &&
         add_u64(object, "granted_bytes", instance->granted_bytes) &&
         add_u64(object, "limbo_bytes", instance->limbo_bytes) &&
         add_u64(object, "pending_bytes", instance->pending_bytes) &&
         add_u64(object, "leased_bytes", instance->leased_bytes) &&
         add_bool(object, "over_limit", instance->over_limit) &&
         add_bool(object, "missed_notice", instance->missed_notice) &&
         add_bool(object, "frozen", instance->frozen) &&
         add_item(object, "peers", peer_array(instance->peers, instance->n_peers));
    return finish(object, ok);
}

cJSON *json_instances(Kvcached__InstanceInfo *const *instances, size_t n)
{
    cJSON *array = cJSON_CreateArray();
    bool ok = array != NULL;

    for (size_t i = 0; ok && i < n; i++)
        ok = append_item(array, json_instance(instances[i]));
    return finish(array, ok);
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
           add_u64(object, "destroying_bytes", info->destroying_bytes);
}

cJSON *json_daemon(const Kvcached__InfoReply *info, const char *socket_path)
{
    cJSON *object = cJSON_CreateObject();
    bool ok;

    ok = object && add_item(object, "gpu", gpu_object(info)) && add_text(object, "socket", socket_path) &&
         add_text(object, "daemon_version", info->daemon_version) &&
         add_u64(object, "protocol_version", info->protocol_version) && add_memory(object, info) &&
         add_u64(object, "instances", info->instances) && add_u64(object, "peers", info->peers);
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
