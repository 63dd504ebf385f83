/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The keys of each kind of section: how a value is read into its field, and what is said of a wrong one.
 * Pure.
 */

#include "config.h"

/* Reads a value into a field. 0, -EINVAL or -ENOMEM. */
typedef int (*config_value_fn)(const char *value, void *field);

struct config_key {
    const char *name;
    config_value_fn read;
    size_t offset; /* in struct config, config_domain or config_limit */
    const char *accepts;
};

struct config_keys {
    const struct config_key *all;
    size_t n;
};

extern const struct config_keys config_daemon_keys; /* of [gpu], too */
extern const struct config_keys config_domain_keys;
extern const struct config_keys config_instance_keys;

const struct config_key *config_key_find(const struct config_keys *keys, const char *name);
void config_keys_list(const struct config_keys *keys, char *buf, size_t size); /* "socket, group" */

/* Whether something has been read into the field. */
bool config_key_is_given(const struct config_key *key, const void *field);
