/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What kvctl --json prints; docs/KVCTL-JSON.md is its contract. Pure. The functions return NULL when out of
 * memory; the result is the caller's (cJSON_Delete).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "wire/codec.h"

/* Which daemon said it, and whether it knows what was added with FEATURE_OPERATIONS: what it doesn't is
 * null. */
struct json_origin {
    uint32_t gpu;
    bool operations;
};

/* Takes the item over, whatever happens. False when out of memory, which an item of NULL is, too. */
bool json_append(cJSON *array, cJSON *item);

cJSON *json_instance(const Kvcached__InstanceInfo *instance, const struct json_origin *origin);
/* Appends to an array. False when out of memory. */
bool json_add_instances(cJSON *array, Kvcached__InstanceInfo *const *instances, size_t n,
                        const struct json_origin *origin);
cJSON *json_daemon(const Kvcached__InfoReply *info, const char *socket_path,
                   const struct json_origin *origin);
cJSON *json_event(const Kvcached__Event *event, const struct json_origin *origin);
cJSON *json_why(const Kvcached__WhyReply *reply, const struct json_origin *origin);
cJSON *json_reloaded(const Kvcached__Reloaded *reply, const struct json_origin *origin);
cJSON *json_version(const char *daemon_version, uint32_t protocol_version, const struct json_origin *origin);
cJSON *json_deletion(const char *instance, const Kvcached__DeleteReply *reply);
