/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The address map: a sorted array of ranges, each with one pointer per granule. Looking up is a binary search
 * over few ranges and an index, whatever the number of mappings; the pointers of a large untouched range are
 * pages that the allocator has not touched either.
 */

#include "address.h"

#include <stdlib.h>
#include <string.h>

/* The first range that ends beyond the address. */
static uint32_t lower_bound(const struct address_map *map, uint64_t address)
{
    uint32_t low = 0, high = map->n_ranges;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (map->ranges[middle]->base + map->ranges[middle]->size <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool make_room(struct address_map *map)
{
    uint32_t capacity = map->capacity ? map->capacity * 2 : 16;
    struct range **ranges;

    if (map->n_ranges < map->capacity)
        return true;
    ranges = realloc(map->ranges, capacity * sizeof(*ranges));
    if (!ranges)
        return false;
    map->ranges = ranges;
    map->capacity = capacity;
    return true;
}

struct range *address_add(struct address_map *map, uint64_t base, uint64_t size)
{
    uint32_t at = lower_bound(map, base);
    struct range *range;

    if (!make_room(map))
        return NULL;
    range = calloc(1, sizeof(*range));
    if (!range)
        return NULL;
    range->granules = calloc((size + EMU_GRANULE - 1) / EMU_GRANULE, sizeof(*range->granules));
    if (!range->granules) {
        free(range);
        return NULL;
    }
    range->base = base;
    range->size = size;
    memmove(map->ranges + at + 1, map->ranges + at, (map->n_ranges - at) * sizeof(*map->ranges));
    map->ranges[at] = range;
    map->n_ranges++;
    return range;
}

struct range *address_remove(struct address_map *map, struct range *range)
{
    uint32_t at;

    if (!range)
        return NULL;
    at = lower_bound(map, range->base);
    map->n_ranges--;
    memmove(map->ranges + at, map->ranges + at + 1, (map->n_ranges - at) * sizeof(*map->ranges));
    free(range->granules);
    free(range);
    return NULL;
}

struct range *address_find(const struct address_map *map, uint64_t address)
{
    uint32_t at = lower_bound(map, address);

    return at < map->n_ranges && map->ranges[at]->base <= address ? map->ranges[at] : NULL;
}

struct mapping *address_mapping(const struct address_map *map, uint64_t address)
{
    struct range *range = address_find(map, address);

    return range ? range->granules[(address - range->base) / EMU_GRANULE] : NULL;
}

static struct range *find_covering(const struct address_map *map, uint64_t base, uint64_t size)
{
    struct range *range = address_find(map, base);

    return range && size > 0 && size <= range->base + range->size - base ? range : NULL;
}

struct range *address_find_unmapped(const struct address_map *map, uint64_t base, uint64_t size)
{
    struct range *range = find_covering(map, base, size);

    for (uint64_t at = base; range && at < base + size; at += EMU_GRANULE)
        if (range->granules[(at - range->base) / EMU_GRANULE])
            return NULL;
    return range;
}

struct range *address_find_run(const struct address_map *map, uint64_t base, uint64_t size)
{
    struct range *range = find_covering(map, base, size);
    uint64_t at = base;

    while (range && at < base + size) {
        const struct mapping *mapping = range->granules[(at - range->base) / EMU_GRANULE];

        if (!mapping || mapping->base != at || mapping->size > base + size - at)
            return NULL;
        at += mapping->size;
    }
    return range;
}

struct mapping *address_next(const struct address_map *map, uint64_t *at, uint64_t end)
{
    struct mapping *mapping = *at < end ? address_mapping(map, *at) : NULL;

    if (mapping)
        *at = mapping->base + mapping->size;
    return mapping;
}

static void cover(struct mapping *mapping, struct mapping *with)
{
    struct range *range = mapping->range;
    uint64_t first = (mapping->base - range->base) / EMU_GRANULE;

    for (uint64_t i = 0; i < mapping->size / EMU_GRANULE; i++)
        range->granules[first + i] = with;
}

struct mapping *address_map(struct address_map *map, struct range *range, uint64_t base, uint64_t size,
                            struct handle *handle)
{
    struct mapping *mapping = calloc(1, sizeof(*mapping));

    if (!mapping)
        return NULL;
    mapping->range = range;
    mapping->handle = handle;
    mapping->base = base;
    mapping->size = size;
    cover(mapping, mapping);
    range->n_mappings++;
    map->n_mappings++;
    return mapping;
}

struct mapping *address_unmap(struct address_map *map, struct mapping *mapping)
{
    if (!mapping)
        return NULL;
    cover(mapping, NULL);
    mapping->range->n_mappings--;
    map->n_mappings--;
    free(mapping);
    return NULL;
}

void address_deinit(struct address_map *map)
{
    for (uint32_t i = 0; i < map->n_ranges; i++) {
        struct range *range = map->ranges[i];

        for (uint64_t at = range->base; at < range->base + range->size && range->n_mappings > 0;
             at += EMU_GRANULE) {
            struct mapping *mapping = range->granules[(at - range->base) / EMU_GRANULE];

            if (mapping)
                address_unmap(map, mapping);
        }
        free(range->granules);
        free(range);
    }
    free(map->ranges);
    *map = (struct address_map){0};
}
