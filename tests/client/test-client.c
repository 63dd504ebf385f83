/* SPDX-License-Identifier: Apache-2.0 */

/* The library against a daemon that does as it should. */

#include "support.h"

#include <poll.h>

#define PAGE (2 * MIB)

TEST(borrow_and_return)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 100);
    struct emulator *emulator = emulator_open(client);
    struct kvc_status status = {.size = sizeof(status)};

    check_ok(map_range(region, 3, 5));
    for (uint32_t i = 3; i < 8; i++)
        stamp(emulator, region, PAGE, 0, i, 1000 + i);
    check_ok(kvc_status(client, &status));
    check_eq(status.mapped_bytes, 5 * PAGE);
    check_eq(status.cached_bytes, 0);
    check_eq(status.used_bytes, 5 * PAGE);
    check_eq(status.limit_bytes, GIB);
    check(status.connected && !status.over_limit && !status.frozen);
    for (uint32_t i = 3; i < 8; i++)
        check_stamp(emulator, region, PAGE, 0, i, 1000 + i);
    check_eq(lent_bytes(fake), 5 * PAGE);
    check_ok(unmap_range(region, 4, 2));
    check_eq(lent_bytes(fake), 3 * PAGE);
    check_stamp(emulator, region, PAGE, 0, 7, 1007);
    emulator_close(emulator);
    check(!kvc_region_close(region));
    check_eq(lent_bytes(fake), 0);
    check(!kvc_close(client));
    fake_stop(fake);
}

/* 144 MiB is no class: 2 parts of 8 MiB and 1 of 2 in each of 3 segments, in that order. */
TEST(segments_and_classes)
{
    const uint64_t page = 18 * MIB;
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 3, page, 16);
    struct emulator *emulator = emulator_open(client);
    struct cuemu_stats stats;

    check_eq(kvc_region_stride(region), 16 * page);
    check_ok(map_range(region, 2, 4));
    check_eq(emulator->stats(&stats), 0);
    check_eq(stats.mappings, 4 * 3 * 3);
    check_eq(emulator->calls("cuMemSetAccess"), 3);
    for (unsigned s = 0; s < 3; s++)
        for (uint32_t i = 2; i < 6; i++)
            stamp(emulator, region, page, s, i, s * 100 + i);
    for (unsigned s = 0; s < 3; s++)
        for (uint32_t i = 2; i < 6; i++)
            check_stamp(emulator, region, page, s, i, s * 100 + i);
    check_ok(unmap_range(region, 2, 4));
    check_eq(emulator->calls("cuMemUnmap"), 3);
    check_eq(lent_bytes(fake), 0);
    emulator_close(emulator);
    kvc_region_close(region);
    kvc_close(client);
    fake_stop(fake);
}

/* More extents than a packet holds, and than the daemon hands out at once. */
TEST(many_extents)
{
    struct fake_settings settings = {.take_max = 200};
    struct fake *fake = fake_start(&settings);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 512);

    check_ok(map_range(region, 0, 450));
    check_eq(fake_count(fake).extents, 450);
    check_eq(fake_count(fake).unacknowledged, 0);
    check_ok(unmap_range(region, 0, 450));
    check_eq(lent_bytes(fake), 0);
    kvc_region_close(region);
    kvc_close(client);
    fake_stop(fake);
}

TEST(listed_extents)
{
    static const uint64_t order[] = {2 * MIB, 8 * MIB, 2 * MIB};
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region_options options = {
        .size = sizeof(options), .page_bytes = 12 * MIB, .pages = 4, .extent_bytes = order, .n_extents = 3};
    struct kvc_region *region;
    struct emulator *emulator = emulator_open(client);
    CUdeviceptr base;
    size_t size;

    check_ok(kvc_region_open(client, &options, &region));
    check_ok(map_range(region, 0, 2));
    check_eq(emulator->driver->cuMemGetAddressRange(&base, &size, kvc_region_address(region) + 13 * MIB),
             CUDA_SUCCESS);
    stamp(emulator, region, 12 * MIB, 0, 1, 7);
    check_stamp(emulator, region, 12 * MIB, 0, 1, 7);
    check_eq(lent_bytes(fake), 24 * MIB);
    emulator_close(emulator);
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

static void refused_region(struct kvc_client *client, struct kvc_region_options options, int error)
{
    struct kvc_region *region = NULL;

    options.size = sizeof(options);
    check_error(kvc_region_open(client, &options, &region), error);
    check(!region);
    check(strlen(kvc_last_error()) > 10 && !strchr(kvc_last_error(), '\n'));
}

TEST(regions_that_cannot_be)
{
    static const uint64_t odd[] = {4 * MIB};
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);

    refused_region(client, (struct kvc_region_options){.page_bytes = PAGE + 4096, .pages = 4}, KVC_E_INVALID);
    refused_region(client, (struct kvc_region_options){.page_bytes = 0, .pages = 4}, KVC_E_INVALID);
    refused_region(client, (struct kvc_region_options){.page_bytes = PAGE, .pages = 0}, KVC_E_INVALID);
    refused_region(client, (struct kvc_region_options){.page_bytes = PAGE, .pages = 4, .segments = 5000},
                   KVC_E_INVALID);
    refused_region(client,
                   (struct kvc_region_options){.page_bytes = PAGE, .pages = 4, .stride_bytes = 6 * MIB},
                   KVC_E_INVALID);
    refused_region(
        client, (struct kvc_region_options){.page_bytes = PAGE, .pages = 4, .stride_bytes = 9 * MIB + 4096},
        KVC_E_INVALID);
    refused_region(
        client,
        (struct kvc_region_options){.page_bytes = 4 * MIB, .pages = 4, .extent_bytes = odd, .n_extents = 1},
        KVC_E_INVALID);
    refused_region(client, (struct kvc_region_options){.page_bytes = 2 * GIB, .pages = 1}, KVC_E_BUDGET);
    check(strstr(kvc_last_error(), "budget"));
    refused_region(client, (struct kvc_region_options){.page_bytes = PAGE, .pages = UINT64_MAX / PAGE},
                   KVC_E_NOSPACE);
    refused_region(client, (struct kvc_region_options){.page_bytes = PAGE, .pages = UINT64_MAX / 2},
                   KVC_E_NOSPACE);
    refused_region(
        client,
        (struct kvc_region_options){.page_bytes = PAGE, .pages = 4, .stride_bytes = UINT64_C(1) << 60},
        KVC_E_NOSPACE);
    kvc_close(client);
    fake_stop(fake);
}

TEST(too_many_mappings)
{
    struct fake_settings settings = {.told_total = 4096 * GIB};
    struct fake *fake = fake_start(&settings);
    struct kvc_client *client = open_plain(fake);

    refused_region(client, (struct kvc_region_options){.page_bytes = PAGE, .pages = 1024 * 1024},
                   KVC_E_NOSPACE);
    check(strstr(kvc_last_error(), "520000"));
    kvc_close(client);
    fake_stop(fake);
}

TEST(pages_that_cannot_be)
{
    static const uint64_t twice[] = {5, 6, 5}, far[] = {1, 10}, mapped[] = {7, 0};
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 10);

    check_ok(map_range(region, 0, 2));
    check_error(kvc_region_map(region, twice, 3), KVC_E_MAPPED);
    check(strstr(kvc_last_error(), "Page 5"));
    check_error(kvc_region_map(region, mapped, 2), KVC_E_MAPPED);
    check_error(kvc_region_map(region, far, 2), KVC_E_MAPPED);
    check_error(kvc_region_map(region, far + 1, 1), KVC_E_INVALID);
    check_error(kvc_region_unmap(region, far, 2), KVC_E_INVALID);
    check_error(kvc_region_unmap(region, mapped, 2), KVC_E_NOT_MAPPED);
    check_error(kvc_region_unmap(region, twice, 3), KVC_E_NOT_MAPPED);
    check_error(kvc_region_map(region, NULL, 1), KVC_E_INVALID);
    check_error(kvc_region_map(NULL, far, 1), KVC_E_INVALID);
    check_ok(kvc_region_map(region, NULL, 0));
    check_eq(lent_bytes(fake), 2 * PAGE);
    check_ok(map_range(region, 2, 8));
    check_ok(unmap_range(region, 0, 10));
    kvc_close(client);
    fake_stop(fake);
}

TEST(limit_refuses_all)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 10);

    fake_set_limit(fake, 4 * PAGE);
    check_error(map_range(region, 0, 5), KVC_E_LIMIT);
    check_str(kvc_last_error(), "The limit cannot hold it");
    check_eq(lent_bytes(fake), 0);
    check_ok(map_range(region, 0, 4));
    check_error(map_range(region, 4, 1), KVC_E_LIMIT);
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

/* ---- Caches ---- */

static uint64_t cached_pages(struct kvc_client *client)
{
    struct kvc_status status = {.size = sizeof(status)};

    check_ok(kvc_status(client, &status));
    return status.cached_bytes / PAGE;
}

TEST(cached_page_costs_nothing)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 0, 4, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, 10);
    struct emulator *emulator = emulator_open(client);
    uint64_t maps, unmaps;
    struct fake_counts before, after;

    check_ok(map_range(region, 0, 4));
    stamp(emulator, region, PAGE, 0, 2, 22);
    before = fake_count(fake);
    maps = emulator->calls("cuMemMap");
    check_ok(unmap_range(region, 0, 4));
    check_eq(cached_pages(client), 4);
    check_ok(map_range(region, 0, 4));
    check_eq(cached_pages(client), 0);
    check_stamp(emulator, region, PAGE, 0, 2, 22);
    check_eq(emulator->calls("cuMemMap"), maps);
    check_eq(emulator->calls("cuMemUnmap"), 0);
    check_ok(unmap_range(region, 1, 2));
    check_ok(map_range(region, 5, 2));
    unmaps = emulator->calls("cuMemUnmap");
    check_eq(unmaps, 1);
    check_eq(emulator->calls("cuMemMap"), maps + 2);
    check_eq(emulator->calls("cuMemImportFromShareableHandle"), 4);
    after = fake_count(fake);
    check_eq(after.takes, before.takes);
    check_eq(after.returns, before.returns);
    emulator_close(emulator);
    kvc_close(client);
    fake_stop(fake);
}

TEST(cache_bounds)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 0, 4, 5 * PAGE);
    struct kvc_region *a = open_region(client, 1, PAGE, 10), *b = open_region(client, 1, PAGE, 10);

    check_ok(map_range(a, 0, 10));
    check_ok(map_range(b, 0, 10));
    check_ok(unmap_range(a, 0, 10));
    check_eq(cached_pages(client), 4);
    check_eq(lent_bytes(fake), 14 * PAGE);
    check_ok(unmap_range(b, 0, 10));
    check_eq(cached_pages(client), 5);
    check_eq(lent_bytes(fake), 5 * PAGE);
    check_ok(kvc_trim(client));
    check_eq(cached_pages(client), 0);
    check_eq(lent_bytes(fake), 0);
    kvc_close(client);
    fake_stop(fake);
}

/* Memory in one region's cache must not be what another is refused for. */
TEST(reserves_yield)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 0, 8, 0);
    struct kvc_region *a = open_region(client, 1, PAGE, 10), *b = open_region(client, 1, PAGE, 10);

    fake_set_limit(fake, 10 * PAGE);
    check_ok(map_range(a, 0, 8));
    check_ok(unmap_range(a, 0, 8));
    check_ok(map_range(b, 0, 10));
    check_eq(cached_pages(client), 0);
    check_error(map_range(a, 0, 1), KVC_E_LIMIT);
    kvc_close(client);
    fake_stop(fake);
}

TEST(lowered_limit_empties_caches)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 0, 8, 0);
    struct kvc_region *a = open_region(client, 1, PAGE, 10), *b = open_region(client, 1, PAGE, 10);
    struct kvc_status status = {.size = sizeof(status)};

    check_ok(map_range(a, 0, 5));
    check_ok(map_range(b, 0, 5));
    check_ok(unmap_range(a, 0, 3));
    fake_set_limit(fake, 0);
    check_ok(kvc_status(client, &status));
    check(status.over_limit);
    check_ok(unmap_range(b, 0, 1));
    check_eq(lent_bytes(fake), 6 * PAGE);
    check_error(map_range(b, 0, 1), KVC_E_LIMIT);
    kvc_close(client);
    fake_stop(fake);
}

TEST(refill_by_dispatch)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 3, 5, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, 10);

    check_eq(kvc_get_timeout(client), -1);
    check_ok(map_range(region, 0, 1));
    check_eq(kvc_get_timeout(client), 0);
    dispatch_until(client, cached_pages(client) == 3);
    check_eq(kvc_get_timeout(client), -1);
    check_eq(fake_count(fake).takes, 2);
    check_ok(map_range(region, 1, 3));
    check_eq(fake_count(fake).takes, 2);
    dispatch_until(client, cached_pages(client) == 3);
    /* A full region needs no reserve: two pages are left to map. */
    check_ok(map_range(region, 4, 5));
    dispatch_until(client, cached_pages(client) == 1);
    check_eq(kvc_get_timeout(client), -1);
    check_ok(kvc_trim(client));
    check_eq(kvc_get_timeout(client), -1);
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

/* A refill that is under way is waited for, when its memory is what a caller is short of. */
TEST(refill_yields)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 3, 5, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, 10);

    check_ok(map_range(region, 0, 1));
    fake_set_limit(fake, 4 * PAGE);
    check_ok(kvc_dispatch(client));
    check_ok(map_range(region, 1, 3));
    check_error(map_range(region, 4, 1), KVC_E_LIMIT);
    check_eq(kvc_get_timeout(client), -1);
    fake_set_limit(fake, 6 * PAGE);
    check_eq(kvc_get_timeout(client), 0);
    dispatch_until(client, cached_pages(client) == 2);
    kvc_close(client);
    fake_stop(fake);
}

/* A region takes memory for its pages, and no more: what is under way for it comes first. */
static void map_the_last_pages(bool abandon, uint64_t takes)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_caching(fake, 5, 10, 0);
    struct kvc_region *region = open_region(client, 1, PAGE, 6);

    check_ok(map_range(region, 0, 1));
    check_ok(kvc_dispatch(client));
    if (abandon)
        check_ok(kvc_trim(client));
    check_ok(map_range(region, 1, 5));
    check_eq(fake_count(fake).takes, takes);
    check_eq(lent_bytes(fake), 6 * PAGE);
    kvc_close(client);
    fake_stop(fake);
}

/* It is used, not asked for twice. */
TEST(refill_for_the_last_pages)
{
    map_the_last_pages(false, 2);
}

/* Where nobody wants it any more it has to go back first. */
TEST(abandoned_refill_for_the_last_pages)
{
    map_the_last_pages(true, 3);
}

TEST(refill_by_own_thread)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;
    struct kvc_region *region;

    options.own_thread = 1;
    options.min_reserved_pages = 3;
    options.max_reserved_pages = 5;
    check_ok(kvc_open(&options, &client));
    region = open_region(client, 1, PAGE, 10);
    check_ok(map_range(region, 0, 1));
    while (cached_pages(client) < 3)
        poll(NULL, 0, 1);
    check_eq(lent_bytes(fake), 4 * PAGE);
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}

TEST(structures_of_other_versions)
{
    struct fake *fake = fake_start(NULL);
    struct {
        struct kvc_options known;
        char unknown[16];
    } later = {.known = plain_options(fake)};
    struct kvc_client *client = NULL;
    struct kvc_status status = {.size = 8};
    struct kvc_device device = {.size = sizeof(device)};

    later.known.size = 8;
    check_error(kvc_open(&later.known, &client), KVC_E_INVALID);
    later.known.size = sizeof(later);
    later.unknown[3] = 1;
    check_error(kvc_open(&later.known, &client), KVC_E_INVALID);
    later.unknown[3] = 0;
    check_ok(kvc_open(&later.known, &client));
    check_error(kvc_status(client, &status), KVC_E_INVALID);
    check_ok(kvc_device(client, &device));
    check_eq(device.total_bytes, GIB);
    check_eq(device.n_classes, 2);
    check_eq(device.class_bytes[1], 8 * MIB);
    check(device.emulated && strncmp(device.uuid, "GPU-", 4) == 0);
    kvc_close(client);
    fake_stop(fake);
}

TEST(several_clients)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *a = open_plain(fake), *b = open_plain(fake);
    struct kvc_region *in_a = open_region(a, 1, PAGE, 10), *in_b = open_region(b, 1, PAGE, 10);

    check_ok(map_range(in_a, 0, 3));
    check_ok(map_range(in_b, 0, 3));
    kvc_close(a);
    check_eq(lent_bytes(fake), 3 * PAGE);
    check_ok(map_range(in_b, 3, 3));
    kvc_close(b);
    fake_stop(fake);
}

TEST(nothing_to_close)
{
    check(!kvc_close(NULL));
    check(!kvc_region_close(NULL));
    check_error(kvc_dispatch(NULL), KVC_E_INVALID);
    check_error(kvc_open(NULL, NULL), KVC_E_INVALID);
    check_eq(kvc_region_address(NULL), 0);
    check(!kvc_driver_path(NULL));
    check_str(kvc_strerror(0), "no error");
    check_str(kvc_strerror(1), "unknown error");
    check_str(kvc_strerror(-1000), "unknown error");
    for (int e = KVC_E_INVALID; e >= KVC_E_NOSPACE; e--)
        check(strlen(kvc_strerror(e)) > 8);
}
