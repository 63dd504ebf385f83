/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Commands of kvpeer about regions and their pages, and what is in them: through the driver, as an engine's
 * kernels would see it, or at the address itself.
 */

#include "kvpeer-regions.h"

#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define EXTENTS_MAX 64

struct named_region *find_region(const struct words *words)
{
    for (unsigned i = 0; words->n > 1 && i < REGIONS_MAX; i++)
        if (peer.regions[i].region && strcmp(peer.regions[i].name, words->word[1]) == 0)
            return &peer.regions[i];
    usage("There is no such region");
    return NULL;
}

static uint32_t region_flags(const struct words *words)
{
    uint32_t flags = 0;

    if (words_value(words, "zero"))
        flags |= KVC_REGION_ZERO_ON_MAP;
    if (words_value(words, "holes"))
        flags |= KVC_REGION_HOLES_ZERO;
    return flags;
}

static struct named_region *free_region(void)
{
    for (unsigned i = 0; i < REGIONS_MAX; i++)
        if (!peer.regions[i].region)
            return &peer.regions[i];
    return NULL;
}

static void do_region(const struct words *words)
{
    struct kvc_region_options options = {.size = sizeof(options)};
    struct named_region *slot = free_region();
    uint64_t extents[EXTENTS_MAX], segments = 1, rank = UINT64_MAX;
    int r;

    if (words->n < 2 || !slot || !words_size(words, "page", &options.page_bytes) ||
        !words_size(words, "pages", &options.pages) || !words_size(words, "segments", &segments) ||
        !words_size(words, "stride", &options.stride_bytes) || !words_size(words, "rank", &rank) ||
        !words_sizes(words, "extents", extents, EXTENTS_MAX, &options.n_extents)) {
        usage("region NAME page=SIZE pages=N [segments=N] [stride=SIZE] [extents=SIZE,...] [rank=N]");
        return;
    }
    options.flags = region_flags(words);
    options.segments = (uint32_t)segments;
    options.extent_bytes = options.n_extents ? extents : NULL;
    if (rank != UINT64_MAX) {
        options.flags = KVC_REGION_ORDERED;
        options.rank = (uint32_t)rank;
    }
    r = kvc_region_open(peer.client, &options, &slot->region);
    if (r < 0) {
        result(r);
        return;
    }
    snprintf(slot->name, sizeof(slot->name), "%s", words->word[1]);
    slot->page_bytes = options.page_bytes;
    ok("%" PRIu64 " %" PRIu64, kvc_region_address(slot->region), kvc_region_stride(slot->region));
}

static void do_attach(const struct words *words)
{
    struct named_region *slot = free_region();
    uint64_t rank;
    int timeout_ms = 0, r;

    if (!slot || !words_number(words, 2, &rank) || !words_int(words, "timeout", &timeout_ms)) {
        usage("attach NAME RANK [timeout=MS]");
        return;
    }
    r = kvc_region_attach(peer.client, 0, (uint32_t)rank, timeout_ms, &slot->region);
    if (r < 0) {
        result(r);
        return;
    }
    snprintf(slot->name, sizeof(slot->name), "%s", words->word[1]);
    ok("%" PRIu64 " %" PRIu64, kvc_region_pages(slot->region), kvc_region_page_bytes(slot->region));
}

static void do_close_region(const struct words *words)
{
    struct named_region *slot = find_region(words);

    if (!slot)
        return;
    free(slot->ids);
    slot->region = kvc_region_close(slot->region);
    memset(slot, 0, sizeof(*slot));
    done();
}

static void on_pages(const struct words *words, int (*call)(struct kvc_region *, const uint64_t *, size_t))
{
    struct named_region *slot = find_region(words);
    _cleanup_free_ uint64_t *pages = NULL;
    size_t n = 0;

    if (!slot)
        return;
    if (words->n > 2)
        pages = words_pages(words->word[2], &n);
    if (pages)
        result(call(slot->region, pages, n));
    else
        usage("Pages are like 0-15,20");
}

static void do_map(const struct words *words)
{
    on_pages(words, kvc_region_map);
}

static void do_unmap(const struct words *words)
{
    on_pages(words, kvc_region_unmap);
}

/* Address of the first (or last) four bytes that NAME PAGE SEGMENT means; 0 with a complaint. */
static CUdeviceptr address_of(const struct words *words, bool last)
{
    struct named_region *slot = find_region(words);
    uint64_t page, segment;

    if (!slot)
        return 0;
    if (!words_number(words, 2, &page) || !words_number(words, 3, &segment)) {
        usage("A region's name is followed by page and segment");
        return 0;
    }
    return kvc_region_address(slot->region) + segment * kvc_region_stride(slot->region) +
           page * slot->page_bytes + (last ? slot->page_bytes - sizeof(uint32_t) : 0);
}

static void do_write(const struct words *words)
{
    CUdeviceptr first = address_of(words, false);
    uint64_t value;
    CUresult r;

    if (!first)
        return;
    if (!words_number(words, 4, &value)) {
        usage("write NAME PAGE SEGMENT VALUE");
        return;
    }
    r = peer.driver->cuMemsetD32(first, (unsigned)value, 1);
    if (r == CUDA_SUCCESS)
        r = peer.driver->cuMemsetD32(address_of(words, true), (unsigned)value, 1);
    driver_result(r);
}

static void do_read(const struct words *words)
{
    CUdeviceptr address = address_of(words, false);
    uint32_t first, last;
    CUresult r;

    if (!address)
        return;
    r = peer.driver->cuMemcpyDtoH(&first, address, sizeof(first));
    if (r == CUDA_SUCCESS)
        r = peer.driver->cuMemcpyDtoH(&last, address_of(words, true), sizeof(last));
    if (r != CUDA_SUCCESS)
        driver_result(r);
    else if (first != last)
        ok("torn");
    else
        ok("%" PRIu32, first);
}

static sigjmp_buf probe_failed;

static void on_fault(int signal)
{
    siglongjmp(probe_failed, 1);
}

static void do_probe(const struct words *words)
{
    struct sigaction action = {.sa_handler = on_fault}, segv, bus;
    CUdeviceptr address = address_of(words, false);

    if (!address)
        return;
    sigaction(SIGSEGV, &action, &segv);
    sigaction(SIGBUS, &action, &bus);
    if (sigsetjmp(probe_failed, 1) == 0) {
        (void)*(volatile const uint32_t *)(uintptr_t)address;
        ok("mapped");
    } else {
        ok("fault");
    }
    sigaction(SIGSEGV, &segv, NULL);
    sigaction(SIGBUS, &bus, NULL);
}

const struct command regions_commands[N_REGIONS_COMMANDS] = {
    {"region", do_region, true}, {"attach", do_attach, true}, {"close-region", do_close_region, true},
    {"map", do_map, true},       {"unmap", do_unmap, true},   {"write", do_write, true},
    {"read", do_read, true},     {"probe", do_probe, true},
};
