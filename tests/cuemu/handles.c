/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The table of handles. A value is the entry's index and the number of its use, mixed with a salt of the
 * process, so that a stale value and another process's value are both recognised, not obeyed.
 */

#include "handles.h"

#include <stdlib.h>

#define INDEX_BITS 24

static bool grow(struct handle_table *table)
{
    uint32_t n = table->n_entries ? table->n_entries * 2 : 64;
    struct handle **entries;
    uint32_t *numbers;

    entries = realloc(table->entries, n * sizeof(*entries));
    if (!entries)
        return false;
    table->entries = entries;
    numbers = realloc(table->generations, n * sizeof(*numbers));
    if (!numbers)
        return false;
    table->generations = numbers;
    numbers = realloc(table->free_list, n * sizeof(*numbers));
    if (!numbers)
        return false;
    table->free_list = numbers;
    for (uint32_t i = n; i-- > table->n_entries;) {
        table->entries[i] = NULL;
        table->generations[i] = 0;
        table->free_list[table->n_free++] = i;
    }
    table->n_entries = n;
    return true;
}

static uint64_t value_of(const struct handle_table *table, uint32_t index)
{
    return ((uint64_t)table->generations[index] << INDEX_BITS | index) ^ table->salt;
}

struct handle *handle_new(struct handle_table *table)
{
    struct handle *handle;
    uint32_t index;

    if (table->n_free == 0 && (table->n_entries == 1u << INDEX_BITS || !grow(table)))
        return NULL;
    handle = calloc(1, sizeof(*handle));
    if (!handle)
        return NULL;
    index = table->free_list[--table->n_free];
    table->generations[index]++;
    table->entries[index] = handle;
    table->n_live++;
    handle->value = value_of(table, index);
    handle->refs = 1;
    return handle;
}

struct handle *handle_find(const struct handle_table *table, uint64_t value)
{
    uint64_t index = (value ^ table->salt) & ((1u << INDEX_BITS) - 1);

    if (index >= table->n_entries || !table->entries[index] || table->entries[index]->value != value)
        return NULL;
    return table->entries[index];
}

struct handle *handle_free(struct handle_table *table, struct handle *handle)
{
    uint32_t index;

    if (!handle)
        return NULL;
    index = (uint32_t)((handle->value ^ table->salt) & ((1u << INDEX_BITS) - 1));
    table->entries[index] = NULL;
    table->free_list[table->n_free++] = index;
    table->n_live--;
    free(handle);
    return NULL;
}

void handle_table_deinit(struct handle_table *table)
{
    for (uint32_t i = 0; i < table->n_entries; i++)
        free(table->entries[i]);
    free(table->entries);
    free(table->generations);
    free(table->free_list);
    *table = (struct handle_table){0};
}
