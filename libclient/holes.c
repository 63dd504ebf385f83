/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kernels that touch padding need something behind every address. One zero page does for all holes; and since
 * handles are only ever mapped whole here, it has an extent of each size that the region's pages are made of,
 * borrowed like any memory, and charged: two megabytes where pages consist of small extents, 136 where they
 * are of 128 and 8. It is this process' and this region's own, for it can be written: what falls into a hole
 * is seen through all of the region's holes, and nowhere else.
 *
 * It costs a mapping for each extent of each page that is not mapped, and one to three more driver calls for
 * each segment of each page that is mapped or unmapped.
 */

#include "holes.h"

#include "borrow.h"
#include "clear.h"
#include "region.h"

struct holes {
    struct kvc_region *store;             /* without addresses: its one page is an extent of each size */
    struct backing *zero;                 /* that page's memory */
    uint32_t of_class[SHAPE_CLASSES_MAX]; /* which extent of it */
    bool closing;
};

struct holes *holes_forget(struct holes *holes)
{
    if (!holes)
        return NULL;
    free(holes->zero);
    region_forget(holes->store);
    free(holes);
    return NULL;
}

uint64_t holes_mappings(uint32_t flags, const struct shape *shape)
{
    return flags & KVC_REGION_HOLES_ZERO ? shape->pages * shape->n_slots : 0;
}

/* ---- Mapping ---- */

static CUdeviceptr address_of(const struct kvc_region *region, uint64_t page, uint64_t segment)
{
    return region->address + segment * region->shape->stride_bytes + page * region->shape->page_bytes;
}

static int unmap_segment(struct kvc_region *region, uint64_t page, uint64_t segment)
{
    struct gpu *gpu = region->client->gpu;

    return gpu_result(gpu,
                      gpu->driver->cuMemUnmap(address_of(region, page, segment), region->shape->page_bytes),
                      "cuMemUnmap");
}

static int map_parts(struct kvc_region *region, CUdeviceptr address, uint32_t *ret_n)
{
    const struct shape *shape = region->shape;
    const struct holes *holes = region->holes;
    struct gpu *gpu = region->client->gpu;
    int r = 0;

    for (*ret_n = 0; *ret_n < shape->n_parts && r == 0; *ret_n += r == 0) {
        const struct shape_part *part = &shape->parts[*ret_n];
        const struct extent *extent = &holes->zero->extents[holes->of_class[part->class_index]];

        r = gpu_result(gpu, gpu->driver->cuMemMap(address + part->offset, part->bytes, 0, extent->handle, 0),
                       "cuMemMap");
    }
    return r;
}

static int allow_access(struct kvc_region *region, CUdeviceptr address)
{
    struct gpu *gpu = region->client->gpu;
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = gpu->device},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };

    return gpu_result(gpu, gpu->driver->cuMemSetAccess(address, region->shape->page_bytes, &access, 1),
                      "cuMemSetAccess");
}

/* All parts of it or none; else *torn. */
static int map_segment(struct kvc_region *region, uint64_t page, uint64_t segment, bool *torn)
{
    CUdeviceptr address = address_of(region, page, segment);
    uint32_t n_parts;
    int r;

    r = map_parts(region, address, &n_parts);
    if (r == 0)
        r = allow_access(region, address);
    if (r < 0 && n_parts > 0) {
        const struct shape_part *last = &region->shape->parts[n_parts - 1];
        CUresult undone = region->client->gpu->driver->cuMemUnmap(address, last->offset + last->bytes);

        *torn |= undone != CUDA_SUCCESS;
    }
    return r;
}

static int map_page(struct kvc_region *region, uint64_t page)
{
    bool torn = false;
    uint64_t segment;
    int r = 0;

    for (segment = 0; segment < region->shape->segments && r == 0; segment += r == 0)
        r = map_segment(region, page, segment, &torn);
    if (r == 0) {
        region->pages[page].hole = HOLE_MAPPED;
        return 0;
    }
    error_hold();
    while (segment-- > 0)
        if (unmap_segment(region, page, segment) < 0)
            torn = true;
    error_release();
    region->pages[page].hole = torn ? HOLE_TORN : HOLE_NONE;
    return r;
}

/* Where a segment stays, the others get theirs back. */
static int unmap_page(struct kvc_region *region, uint64_t page)
{
    bool torn = false;
    uint64_t segment;
    int r = 0;

    for (segment = 0; segment < region->shape->segments && r == 0; segment += r == 0)
        r = unmap_segment(region, page, segment);
    if (r == 0) {
        region->pages[page].hole = HOLE_NONE;
        return 0;
    }
    error_hold();
    while (segment-- > 0)
        if (map_segment(region, page, segment, &torn) < 0)
            torn = true;
    error_release();
    region->pages[page].hole = torn ? HOLE_TORN : HOLE_MAPPED;
    return r;
}

int holes_remove(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r = 0;

    for (size_t i = 0; i < n && r == 0; i++)
        if (region->pages[places[i].page].hole == HOLE_MAPPED)
            r = unmap_page(region, places[i].page);
    return r;
}

static bool are_wanted(const struct kvc_region *region)
{
    return region->holes && !region->holes->closing;
}

bool holes_cover(const struct kvc_region *region, uint64_t page)
{
    return !are_wanted(region) || region->pages[page].hole == HOLE_MAPPED;
}

int holes_restore(struct kvc_region *region, const struct placement *places, size_t n)
{
    int r = 0;

    if (!are_wanted(region))
        return 0;
    for (size_t i = 0; i < n; i++) {
        const struct backing *backing = places[i].backing;
        int one = 0;

        if (region->pages[places[i].page].hole == HOLE_NONE &&
            (!backing || !backing_has(backing, EXTENT_MAPPED)))
            one = map_page(region, places[i].page);
        r = r ? r : one;
    }
    return r;
}

/* ---- The zero page ---- */

/* A page with an extent of each size that the region's pages have. */
static int make_store(struct kvc_region *region)
{
    const struct kvc_device *device = &region->client->device;
    uint64_t sizes[SHAPE_CLASSES_MAX];
    struct kvc_region_options options = {.size = sizeof(options), .pages = 1, .extent_bytes = sizes};

    for (unsigned i = 0; i < region->shape->n_classes; i++) {
        if (region->shape->class_counts[i] == 0)
            continue;
        region->holes->of_class[i] = (uint32_t)options.n_extents;
        sizes[options.n_extents++] = device->class_bytes[i];
        options.page_bytes += device->class_bytes[i];
    }
    return region_open_store(region->client, &options, &region->holes->store);
}

static int borrow_zero(struct kvc_region *region)
{
    struct list got = LIST_INIT(got);
    int r = borrow_pages(region->holes->store, 1, &got);

    if (r < 0)
        return r;
    region->holes->zero = list_first(&got, struct backing, entry.link);
    list_unlink(&region->holes->zero->entry.link);
    return 0;
}

/* Every size of extent is somewhere in each segment. Other streams than the region's read holes too, so the
 * zeros must be there before anybody can. */
static int clear_zero(struct kvc_region *region)
{
    struct gpu *gpu = region->client->gpu;
    int r;

    region->clearing = CLEARING_STREAM;
    r = gpu_result(
        gpu,
        gpu->driver->cuMemsetD8Async(address_of(region, 0, 0), 0, region->shape->page_bytes, region->stream),
        "cuMemsetD8Async");
    return r == 0 ? clear_wait(region) : r;
}

static int map_all(struct kvc_region *region)
{
    CUcontext previous;
    int r;

    r = gpu_enter(region->client->gpu, &previous);
    if (r < 0)
        return r;
    for (uint64_t page = 0; page < region->shape->pages && r == 0; page++)
        r = map_page(region, page);
    if (r == 0)
        r = clear_zero(region);
    gpu_leave(region->client->gpu, previous);
    return r;
}

int holes_open(struct kvc_region *region)
{
    int r;

    if (!(region->flags & KVC_REGION_HOLES_ZERO))
        return 0;
    region->holes = calloc(1, sizeof(*region->holes));
    if (!region->holes)
        return error_nomem();
    r = make_store(region);
    if (r == 0)
        r = borrow_zero(region);
    return r == 0 ? map_all(region) : r;
}

static bool is_mapped(const struct cuda_driver *driver, CUdeviceptr address)
{
    CUmemGenericAllocationHandle handle;

    if (driver->cuMemRetainAllocationHandle(&handle, (void *)(uintptr_t)address) != CUDA_SUCCESS)
        return false;
    driver->cuMemRelease(handle);
    return true;
}

/* Nobody knows which parts are there, but the driver tells. */
static void unmap_torn(struct kvc_region *region, uint64_t page)
{
    const struct cuda_driver *driver = region->client->gpu->driver;
    const struct shape *shape = region->shape;
    bool left = false;

    for (uint32_t slot = 0; slot < shape->n_slots; slot++) {
        CUdeviceptr address = region->address + shape_offset(shape, page, slot);

        if (driver->cuMemUnmap(address, shape_slot_bytes(shape, slot)) != CUDA_SUCCESS)
            left |= is_mapped(driver, address);
    }
    region->pages[page].hole = left ? HOLE_TORN : HOLE_NONE;
}

/* Closing has no second chance later, so it takes one at once. */
static void unmap_all(struct kvc_region *region)
{
    bool still = clear_wait(region) == 0 || clear_wait(region) == 0;

    for (uint64_t page = 0; page < region->shape->pages && still; page++) {
        if (region->pages[page].hole == HOLE_MAPPED)
            unmap_page(region, page);
        if (region->pages[page].hole == HOLE_MAPPED)
            unmap_page(region, page);
        if (region->pages[page].hole == HOLE_TORN)
            unmap_torn(region, page);
    }
}

static void unmap_holes(struct kvc_region *region)
{
    struct gpu *gpu = region->client->gpu;
    CUcontext previous;

    if (gpu_enter(gpu, &previous) < 0 && gpu_enter(gpu, &previous) < 0)
        return;
    unmap_all(region);
    gpu_leave(gpu, previous);
}

static bool is_anywhere(const struct kvc_region *region)
{
    for (uint64_t page = 0; page < region->shape->pages; page++)
        if (region->pages[page].hole != HOLE_NONE)
            return true;
    return false;
}

/* What could not be unmapped stays borrowed until the process ends. */
void holes_close(struct kvc_region *region)
{
    struct holes *holes = region->holes;
    struct list leaving = LIST_INIT(leaving);

    if (!holes)
        return;
    holes->closing = true;
    if (region->pages)
        unmap_holes(region);
    if (holes->zero && (!region->pages || !is_anywhere(region))) {
        list_append(&leaving, &holes->zero->entry.link);
        holes->zero = NULL;
        borrow_return(region->client, &leaving, true);
    }
    if (holes->store)
        region_close_store(holes->store);
    holes->store = NULL;
}
