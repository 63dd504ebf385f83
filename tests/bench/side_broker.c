/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The broker's side: a region of libkvclient whose pages are one extent each, with no page kept by the
 * library, so that each call goes to the daemon.
 */

#include <stdlib.h>

#include "kvclient.h"
#include "side.h"

struct broker_side {
    struct kvc_client *client;
    struct kvc_region *region;
    struct kvc_device device;
    uint64_t pages[PAGES_MAX];
};

static void check(int r, const char *call)
{
    if (r < 0)
        die("%s: %s", call, kvc_last_error());
}

struct broker_side *broker_side_new(const char *socket_path)
{
    const struct kvc_options options = {
        .size = sizeof(options),
        .socket = socket_path,
        .instance = "bench",
        .min_reserved_pages = 0,
        .max_reserved_pages = 0,
    };
    const struct kvc_region_options region = {
        .size = sizeof(region),
        .page_bytes = PAGE_BYTES,
        .pages = PAGES_MAX,
    };
    struct broker_side *broker = calloc(1, sizeof(*broker));

    if (!broker)
        die("out of memory");
    check(kvc_open(&options, &broker->client), "kvc_open");
    check(kvc_region_open(broker->client, &region, &broker->region), "kvc_region_open");
    for (unsigned i = 0; i < PAGES_MAX; i++)
        broker->pages[i] = i;
    broker->device.size = sizeof(broker->device);
    check(kvc_device(broker->client, &broker->device), "kvc_device");
    return broker;
}

void broker_side_free(struct broker_side *broker)
{
    kvc_close(broker->client);
    free(broker);
}

const char *broker_side_uuid(struct broker_side *broker)
{
    return broker->device.uuid;
}

const char *broker_side_driver(struct broker_side *broker)
{
    return kvc_driver_path(broker->client);
}

static void map(void *state, unsigned n_pages)
{
    struct broker_side *broker = state;

    check(kvc_region_map(broker->region, broker->pages, n_pages), "kvc_region_map");
}

static void unmap(void *state, unsigned n_pages)
{
    struct broker_side *broker = state;

    check(kvc_region_unmap(broker->region, broker->pages, n_pages), "kvc_region_unmap");
}

struct side broker_side(struct broker_side *broker)
{
    return (struct side){.name = "broker", .map = map, .unmap = unmap, .state = broker};
}
