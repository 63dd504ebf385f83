/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What lies where in the device address space of one process: reserved ranges, and the mappings in them. Pure
 * bookkeeping; the host's page tables are the caller's business.
 */

#include <stdbool.h>
#include <stdint.h>

#include "handles.h"

struct range;

struct mapping {
    struct range *range;
    struct handle *handle;
    uint64_t base, size;
    uint8_t access[EMU_MAX_DEVICES]; /* by ordinal: CU_MEM_ACCESS_FLAGS_… */
    uint64_t busy_until_ns;          /* a stream sets it until then */
    const void *busy_context;        /* whose stream that is; not to be dereferenced */
};

struct range {
    uint64_t base, size;
    bool internal;  /* an allocation of cuMemAlloc: one mapping, not for the mapping calls */
    uint64_t asked; /* its size before rounding, of an internal one */
    uint32_t n_mappings;
    struct mapping **granules; /* the mapping that covers each granule, or NULL */
};

struct address_map {
    struct range **ranges; /* by rising base */
    uint32_t n_ranges, capacity;
    uint64_t n_mappings, n_internal;
};

/* Bases are multiples of the granule. NULL without memory. */
struct range *address_add(struct address_map *map, uint64_t base, uint64_t size);

/* The range must have no mappings. Always NULL. */
struct range *address_remove(struct address_map *map, struct range *range);

struct range *address_find(const struct address_map *map, uint64_t address);
struct mapping *address_mapping(const struct address_map *map, uint64_t address);

/* Is all of it inside one range, with nothing mapped? */
struct range *address_find_unmapped(const struct address_map *map, uint64_t base, uint64_t size);

/* Is all of it inside one range, and exactly a run of whole mappings without holes? */
struct range *address_find_run(const struct address_map *map, uint64_t base, uint64_t size);

/* Covers [base, base + size), which must be unmapped, by a new mapping. NULL without memory. */
struct mapping *address_map(struct address_map *map, struct range *range, uint64_t base, uint64_t size,
                            struct handle *handle);
struct mapping *address_unmap(struct address_map *map, struct mapping *mapping);

/* Frees everything; handles are not touched. */
void address_deinit(struct address_map *map);

/*
 * The mapping at *at, which moves behind it; NULL at `end`. For walking a run, the body may unmap the
 * mapping.
 */
struct mapping *address_next(const struct address_map *map, uint64_t *at, uint64_t end);
