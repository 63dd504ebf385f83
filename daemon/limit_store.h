/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Limit store: the limits that an administrator has set, which outlive the daemon. They are kept in
 * DIR/limits.json, which is replaced as a whole, so that a crash leaves either the old or the new list.
 * Limits of instances that nobody has opened are kept too.
 */

#include <stdint.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "broker.h"

#define LIMIT_STORE_ERROR_MAX 512
#define LIMIT_BYTES_MAX (UINT64_C(1) << 53) /* JSON's numbers are exact up to here */

/* Bytes, or a part of the device. */
struct limit {
    uint64_t bytes; /* UINT64_MAX where ppm is meant */
    uint32_t ppm;
};

struct limit_entry {
    struct list link;
    char domain[BROKER_DOMAIN_MAX + 1];
    char instance[BROKER_NAME_MAX + 1];
    struct limit limit;
};

struct limit_store {
    char *dir;
    struct list entries; /* in the order in which they were first set */
};

/* Reads DIR/limits.json; no file means no limits. 0, or negative with one sentence in `error`. */
int limit_store_load(const char *dir, struct limit_store **ret, char error[static LIMIT_STORE_ERROR_MAX]);
struct limit_store *limit_store_free(struct limit_store *store);
DEFINE_CLEANUP(struct limit_store *, limit_store_free);

const struct limit *limit_store_find(const struct limit_store *store, const char *domain,
                                     const char *instance);

/* Sets one limit (NULL: forgets it) here and on disk. 0; or negative with one sentence in `error`, and
 * nothing has changed. */
int limit_store_change(struct limit_store *store, const char *domain, const char *instance,
                       const struct limit *limit, char error[static LIMIT_STORE_ERROR_MAX]);

/* In bytes on a device of this size. */
uint64_t limit_bytes(const struct limit *limit, uint64_t total_bytes);
