/* SPDX-License-Identifier: Apache-2.0 */
#include "spaceworld.h"

struct kvc_region *open_with(struct kvc_client *client, uint32_t flags, uint64_t pages)
{
    const struct kvc_region_options options = {
        .size = sizeof(options),
        .segments = SEGMENTS,
        .page_bytes = PAGE,
        .pages = pages,
        .flags = flags,
    };
    struct kvc_region *region;

    check_ok(kvc_region_open(client, &options, &region));
    return region;
}

struct space space_join(struct fake *fake, int max_reserved_pages)
{
    struct space s = {.fake = fake, .client = open_caching(fake, 0, max_reserved_pages, 0)};

    s.emulator = emulator_open(s.client);
    return s;
}

struct space space_begin(int max_reserved_pages, uint32_t flags, uint64_t pages)
{
    struct space s = space_join(fake_start(NULL), max_reserved_pages);

    s.region = open_with(s.client, flags, pages);
    return s;
}

struct space space_begin_failing(const char *plan, int max_reserved_pages, uint32_t flags, uint64_t pages)
{
    check_eq(setenv("KVCACHED_EMULATE_FAULTS", plan, 1), 0);
    return space_begin(max_reserved_pages, flags, pages);
}

void space_end(struct space *s)
{
    emulator_close(s->emulator);
    kvc_close(s->client);
    check_eq(lent_bytes(s->fake), 0);
    fake_stop(s->fake);
}

void stamp_page(struct space *s, uint64_t page, uint32_t value)
{
    for (unsigned segment = 0; segment < SEGMENTS; segment++)
        stamp(s->emulator, s->region, PAGE, segment, page, value);
}

void check_page(struct space *s, uint64_t page, uint32_t value)
{
    for (unsigned segment = 0; segment < SEGMENTS; segment++)
        check_stamp(s->emulator, s->region, PAGE, segment, page, value);
}

uint64_t mapped(struct kvc_client *client)
{
    struct kvc_status status = {.size = sizeof(status)};

    check_ok(kvc_status(client, &status));
    return status.mapped_bytes / (PAGE * SEGMENTS);
}

void slow_memsets(void)
{
    emulate_costs("cuMemset call:300000\n");
}

bool is_whole(struct emulator *emulator)
{
    return emulator->driver->cuCtxSynchronize() == CUDA_SUCCESS;
}
