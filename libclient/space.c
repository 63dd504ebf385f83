/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Calls cost more than bytes, so extents whose addresses follow on each other are made accessible, and
 * unmapped, as one run. Runs end with a segment: what lies behind is another page's share, or a hole.
 *
 * Every call's success is noted in the extents it concerns, so whoever has to undo a half-finished batch
 * needs nothing but the same list.
 */

#include "space.h"

#include <stdlib.h>

#include "clear.h"
#include "holes.h"

/* Within a segment, extents are counted through all pages of the batch. */
struct run {
    size_t begin, end;
    CUdeviceptr address;
    size_t bytes;
};

static int compare(const void *a, const void *b)
{
    const struct placement *x = a, *y = b;

    return x->page < y->page ? -1 : x->page > y->page;
}

void space_sort(struct placement *places, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if (places[i].page < places[i - 1].page) {
            qsort(places, n, sizeof(*places), compare);
            return;
        }
}

static struct extent *extent_at(const struct kvc_region *region, const struct placement *places,
                                uint32_t segment, size_t position)
{
    uint32_t n_parts = region->shape->n_parts;

    return &places[position / n_parts].backing->extents[segment * n_parts + position % n_parts];
}

static CUdeviceptr address_at(const struct kvc_region *region, const struct placement *places,
                              uint32_t segment, size_t position)
{
    uint32_t n_parts = region->shape->n_parts;

    return region->address + shape_offset(region->shape, places[position / n_parts].page,
                                          segment * n_parts + (uint32_t)(position % n_parts));
}

/* The first run of mapped extents at or after a position. */
static bool next_run(const struct kvc_region *region, const struct placement *places, size_t n,
                     uint32_t segment, size_t from, struct run *ret)
{
    uint32_t n_parts = region->shape->n_parts;
    size_t n_positions = n * n_parts;
    struct run run = {.begin = from};

    while (run.begin < n_positions && extent_at(region, places, segment, run.begin)->state != EXTENT_MAPPED)
        run.begin++;
    if (run.begin == n_positions)
        return false;
    run.address = address_at(region, places, segment, run.begin);
    for (run.end = run.begin; run.end < n_positions; run.end++) {
        if (extent_at(region, places, segment, run.end)->state != EXTENT_MAPPED)
            break;
        if (address_at(region, places, segment, run.end) != run.address + run.bytes)
            break;
        run.bytes += shape_slot_bytes(region->shape, segment * n_parts + (uint32_t)(run.end % n_parts));
    }
    *ret = run;
    return true;
}

static int map_page(struct kvc_region *region, const struct placement *place)
{
    struct gpu *gpu = region->client->gpu;

    for (uint32_t slot = 0; slot < region->shape->n_slots; slot++) {
        struct extent *extent = &place->backing->extents[slot];
        int r;

        if (extent->state != EXTENT_IMPORTED)
            continue;
        r = gpu_result(gpu,
                       gpu->driver->cuMemMap(region->address + shape_offset(region->shape, place->page, slot),
                                             shape_slot_bytes(region->shape, slot), 0, extent->handle, 0),
                       "cuMemMap");
        if (r < 0)
            return r;
        extent->state = EXTENT_MAPPED;
    }
    return 0;
}

static int allow_access(struct kvc_region *region, const struct placement *places, size_t n, uint32_t segment)
{
    struct gpu *gpu = region->client->gpu;
    CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = gpu->device},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    struct run run = {0};

    while (next_run(region, places, n, segment, run.end, &run)) {
        int r = gpu_result(gpu, gpu->driver->cuMemSetAccess(run.address, run.bytes, &access, 1),
                           "cuMemSetAccess");

        if (r < 0)
            return r;
    }
    return 0;
}

int space_attach(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r = holes_remove(region, places, n);

    for (size_t i = 0; i < n && r == 0; i++)
        r = map_page(region, &places[i]);
    for (uint32_t segment = 0; segment < region->shape->segments && r == 0; segment++)
        r = allow_access(region, places, n, segment);
    return r;
}

static int unmap_segment(struct kvc_region *region, const struct placement *places, size_t n,
                         uint32_t segment)
{
    struct gpu *gpu = region->client->gpu;
    struct run run = {0};
    int r = 0;

    while (next_run(region, places, n, segment, run.end, &run)) {
        int one = gpu_result(gpu, gpu->driver->cuMemUnmap(run.address, run.bytes), "cuMemUnmap");

        r = r ? r : one;
        if (one < 0)
            continue;
        for (size_t i = run.begin; i < run.end; i++)
            extent_at(region, places, segment, i)->state = EXTENT_IMPORTED;
    }
    return r;
}

static int unmap_segments(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r = 0;

    for (uint32_t segment = 0; segment < region->shape->segments; segment++) {
        int one = unmap_segment(region, places, n, segment);

        r = r ? r : one;
    }
    return r;
}

int space_detach(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r, one;

    r = clear_wait(region);
    if (r == 0)
        r = unmap_segments(region, places, n);
    one = holes_restore(region, places, n);
    return r ? r : one;
}

void space_reattach(struct kvc_region *region, const struct placement *places, size_t n)
{
    error_hold();
    for (size_t i = 0; i < n; i++)
        if (space_attach(region, &places[i], 1) < 0)
            space_detach(region, &places[i], 1);
    error_release();
}

static bool is_half(const struct placement *place)
{
    return backing_has(place->backing, EXTENT_MAPPED) && !backing_is(place->backing, EXTENT_MAPPED);
}

int space_vacate(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r = space_detach(region, places, n);

    if (r == 0)
        return 0;
    for (size_t i = 0; i < n; i++)
        if (places[i].backing && is_half(&places[i]))
            space_reattach(region, &places[i], 1);
    error_hold();
    holes_restore(region, places, n);
    error_release();
    return r;
}
