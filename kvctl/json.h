/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What kvctl --json prints; docs/KVCTL-JSON.md is its contract. Pure. The functions return NULL when out of
 * memory; the result is the caller's (cJSON_Delete).
 */

#include <stddef.h>

#include <cjson/cJSON.h>

#include "wire/codec.h"

cJSON *json_instance(const Kvcached__InstanceInfo *instance);
cJSON *json_instances(Kvcached__InstanceInfo *const *instances, size_t n);
cJSON *json_daemon(const Kvcached__InfoReply *info, const char *socket_path);
cJSON *json_deletion(const char *instance, const Kvcached__DeleteReply *reply);
