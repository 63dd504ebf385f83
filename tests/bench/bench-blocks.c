/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Measures what an engine's scheduler calls all the time, each in batches, because one call is shorter than a
 * look at the clock:
 *
 *     small   16 blocks allocated and freed again, where 16 pages are mapped and half used
 *     large   the same, where 4096 are
 *     available   a look at how many blocks there are
 *     clock   the look at the cheapest clock that this cannot do without: a promise has an end
 *     remap   a page given up to the library's cache and another one mapped from it
 *     driver  the driver's calls that this cannot do without: unmap, map, set access
 *
 * All take turns in every round. The library has its own thread, which no side has a reason to wake. Prints
 * one line for each measurement, SIDE NANOSECONDS for one operation.
 * With --count SIDE it measures nothing: it does that side's batch as often as --rounds says, for somebody
 * who counts system calls or instructions. It says "ready" before and "done" after that, and waits for a line
 * each time.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "kvclient.h"
#include "side.h"

#define BATCH 1000
#define BLOCKS 16 /* in one call */
#define BLOCK_BYTES (UINT64_C(16) << 10)
#define BLOCKS_PER_PAGE (PAGE_BYTES / BLOCK_BYTES)
#define SMALL_PAGES 16
#define LARGE_PAGES 4096

struct arguments {
    const char *socket, *uuid, *count;
    unsigned rounds;
    int processor;
};

/* Blocks in mapped pages, of which every second one is in use. */
struct half_used {
    struct kvc_region *region;
    struct kvc_blocks *blocks;
};

struct driver_remap {
    struct cuda_driver *cuda;
    CUdevice device;
    CUcontext context;
    CUdeviceptr address;
    CUmemGenericAllocationHandle handle;
    unsigned at;
};

struct bench {
    struct kvc_client *client;
    struct half_used small, large;
    struct kvc_region *remapped;
    uint64_t remapped_at;
    struct driver_remap driver;
};

static void check(int r, const char *call)
{
    if (r < 0)
        die("%s: %s", call, kvc_last_error());
}

/* ---- Opening ---- */

static struct kvc_region *open_region(struct bench *bench, uint64_t pages)
{
    const struct kvc_region_options options = {
        .size = sizeof(options),
        .page_bytes = PAGE_BYTES,
        .pages = pages,
    };
    struct kvc_region *region;

    check(kvc_region_open(bench->client, &options, &region), "kvc_region_open");
    return region;
}

static void fill_half(struct half_used *half, uint64_t pages)
{
    uint64_t n = pages * BLOCKS_PER_PAGE;
    uint32_t *ids = calloc(n, sizeof(*ids));

    if (!ids)
        die("out of memory");
    check(kvc_blocks_alloc(half->blocks, n, ids), "kvc_blocks_alloc");
    for (uint64_t i = 0; i < n / 2; i++)
        ids[i] = ids[2 * i];
    check(kvc_blocks_free(half->blocks, ids, n / 2, 0), "kvc_blocks_free");
    free(ids);
}

static void open_half(struct bench *bench, struct half_used *half, uint64_t pages)
{
    const struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK_BYTES};

    half->region = open_region(bench, pages);
    check(kvc_blocks_open(&half->region, 1, &options, &half->blocks), "kvc_blocks_open");
    fill_half(half, pages);
}

static void open_driver(struct driver_remap *driver, const char *path, const char *uuid)
{
    CUmemAllocationProp prop = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE},
    };

    driver_open(path, uuid, &driver->cuda, &driver->device);
    prop.location.id = driver->device;
    driver_check(driver->cuda, driver->cuda->cuDevicePrimaryCtxRetain(&driver->context, driver->device),
                 "cuDevicePrimaryCtxRetain");
    driver_check(driver->cuda, driver->cuda->cuCtxSetCurrent(driver->context), "cuCtxSetCurrent");
    driver_check(driver->cuda, driver->cuda->cuMemAddressReserve(&driver->address, 2 * PAGE_BYTES, 0, 0, 0),
                 "cuMemAddressReserve");
    driver_check(driver->cuda, driver->cuda->cuMemCreate(&driver->handle, PAGE_BYTES, &prop, 0),
                 "cuMemCreate");
    driver_check(driver->cuda, driver->cuda->cuMemMap(driver->address, PAGE_BYTES, 0, driver->handle, 0),
                 "cuMemMap");
}

static void close_driver(struct driver_remap *driver)
{
    driver_check(driver->cuda,
                 driver->cuda->cuMemUnmap(driver->address + driver->at * PAGE_BYTES, PAGE_BYTES),
                 "cuMemUnmap");
    driver_check(driver->cuda, driver->cuda->cuMemRelease(driver->handle), "cuMemRelease");
    driver_check(driver->cuda, driver->cuda->cuMemAddressFree(driver->address, 2 * PAGE_BYTES),
                 "cuMemAddressFree");
    driver_check(driver->cuda, driver->cuda->cuCtxSetCurrent(NULL), "cuCtxSetCurrent");
    driver_check(driver->cuda, driver->cuda->cuDevicePrimaryCtxRelease(driver->device),
                 "cuDevicePrimaryCtxRelease");
    cuda_driver_unload(driver->cuda);
}

static void open_bench(struct bench *bench, const struct arguments *arguments)
{
    const struct kvc_options options = {
        .size = sizeof(options),
        .socket = arguments->socket,
        .instance = "bench",
        .own_thread = 1,
        .min_reserved_pages = 0,
        .max_reserved_pages = LARGE_PAGES,
    };

    check(kvc_open(&options, &bench->client), "kvc_open");
    open_half(bench, &bench->small, SMALL_PAGES);
    open_half(bench, &bench->large, LARGE_PAGES);
    bench->remapped = open_region(bench, 2);
    check(kvc_region_map(bench->remapped, &bench->remapped_at, 1), "kvc_region_map");
    open_driver(&bench->driver, kvc_driver_path(bench->client), arguments->uuid);
}

static void close_bench(struct bench *bench)
{
    close_driver(&bench->driver);
    kvc_blocks_close(bench->small.blocks);
    kvc_blocks_close(bench->large.blocks);
    kvc_close(bench->client);
}

/* ---- Sides ---- */

static void alloc_and_free(struct kvc_blocks *blocks)
{
    uint32_t ids[BLOCKS];

    check(kvc_blocks_alloc(blocks, BLOCKS, ids), "kvc_blocks_alloc");
    check(kvc_blocks_free(blocks, ids, BLOCKS, 0), "kvc_blocks_free");
}

static void go_small(struct bench *bench)
{
    alloc_and_free(bench->small.blocks);
}

static void go_large(struct bench *bench)
{
    alloc_and_free(bench->large.blocks);
}

static void go_available(struct bench *bench)
{
    if (kvc_blocks_available(bench->small.blocks) == 0)
        die("no block is available");
}

static void go_clock(struct bench *bench)
{
    struct timespec now;

    if (clock_gettime(CLOCK_MONOTONIC_COARSE, &now) < 0)
        die("clock_gettime: %m");
}

static void go_remap(struct bench *bench)
{
    check(kvc_region_unmap(bench->remapped, &bench->remapped_at, 1), "kvc_region_unmap");
    bench->remapped_at ^= 1;
    check(kvc_region_map(bench->remapped, &bench->remapped_at, 1), "kvc_region_map");
}

static void go_driver(struct bench *bench)
{
    struct driver_remap *driver = &bench->driver;
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = driver->device},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };
    CUdeviceptr address = driver->address + driver->at * PAGE_BYTES;

    driver_check(driver->cuda, driver->cuda->cuMemUnmap(address, PAGE_BYTES), "cuMemUnmap");
    driver->at ^= 1;
    address = driver->address + driver->at * PAGE_BYTES;
    driver_check(driver->cuda, driver->cuda->cuMemMap(address, PAGE_BYTES, 0, driver->handle, 0), "cuMemMap");
    driver_check(driver->cuda, driver->cuda->cuMemSetAccess(address, PAGE_BYTES, &access, 1),
                 "cuMemSetAccess");
}

static const struct side_of_blocks {
    const char *name;
    void (*go)(struct bench *bench);
} sides[] = {
    {"small", go_small}, {"large", go_large}, {"available", go_available},
    {"clock", go_clock}, {"remap", go_remap}, {"driver", go_driver},
};

#define SIDES (sizeof(sides) / sizeof(sides[0]))

/* ---- Measuring ---- */

static void go(struct bench *bench, size_t side)
{
    for (unsigned i = 0; i < BATCH; i++)
        sides[side].go(bench);
}

static void run(struct bench *bench, unsigned rounds)
{
    uint64_t *samples = calloc(rounds * SIDES, sizeof(*samples)), start;

    if (!samples)
        die("out of memory");
    for (size_t side = 0; side < SIDES; side++)
        go(bench, side);
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned turn = 0; turn < SIDES; turn++) {
            size_t side = (round + turn) % SIDES;

            start = now_ns();
            go(bench, side);
            samples[round * SIDES + side] = now_ns() - start;
        }
    }
    for (size_t i = 0; i < rounds * SIDES; i++)
        printf("%s %.2f\n", sides[i % SIDES].name, (double)samples[i] / BATCH);
    free(samples);
}

static void meet(const char *word)
{
    puts(word);
    fflush(stdout);
    getchar();
}

static void count(struct bench *bench, const char *name, unsigned rounds)
{
    size_t side = 0;

    while (side < SIDES && strcmp(sides[side].name, name) != 0)
        side++;
    if (side == SIDES)
        die("there is no side called %s", name);
    meet("ready");
    for (unsigned round = 0; round < rounds; round++)
        go(bench, side);
    meet("done");
}

static struct arguments parse(int argc, char **argv)
{
    struct arguments arguments = {.rounds = 1};
    const struct bench_option options[] = {
        {"socket", .text = &arguments.socket},
        {"uuid", .text = &arguments.uuid},
        {"count", .text = &arguments.count},
        {"rounds", .number = &arguments.rounds, .max = ROUNDS_MAX},
        {"processor", .processor = &arguments.processor},
        {0},
    };

    parse_options(argc, argv, options);
    if (!arguments.socket || !arguments.uuid)
        die("--socket and --uuid are needed");
    return arguments;
}

int main(int argc, char **argv)
{
    struct arguments arguments = parse(argc, argv);
    struct bench bench = {};

    pin_to(arguments.processor);
    open_bench(&bench, &arguments);
    if (arguments.count)
        count(&bench, arguments.count, arguments.rounds);
    else
        run(&bench, arguments.rounds);
    close_bench(&bench);
    end_output();
    return 0;
}
