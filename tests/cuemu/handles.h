/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The allocation handles of one process: from the opaque values that callers hold to what they mean. A handle
 * lives while it has references (create, import, retain) or mappings; a value is never given out twice.
 */

#include <stdbool.h>
#include <stdint.h>

#include "registry.h"

struct handle {
    uint64_t value;
    unsigned device; /* in the folder */
    uint32_t id;     /* the extent */
    uint64_t size;
    struct extent_props props;
    uint32_t refs;
    uint32_t mappings;
    bool internal; /* backs cuMemAlloc; no caller has its value */
};

struct handle_table {
    uint64_t salt; /* keeps one process's values from meaning something in another */
    struct handle **entries;
    uint32_t *generations;
    uint32_t *free_list;
    uint32_t n_entries, n_free;
    uint64_t n_live;
};

/* A handle with one reference, its value set; NULL without memory. */
struct handle *handle_new(struct handle_table *table);

/* NULL for a value that is not, or no longer, a handle. */
struct handle *handle_find(const struct handle_table *table, uint64_t value);

/* Always NULL. */
struct handle *handle_free(struct handle_table *table, struct handle *handle);

void handle_table_deinit(struct handle_table *table);
