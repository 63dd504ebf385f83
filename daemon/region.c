/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Regions exist for accounting only: how many extents of which class a page takes, how many the region may
 * have at all, and that none is left when it closes. An ordered one can also be found by a scheduler, and a
 * worker that closes it cannot know what its orders bring meanwhile: so it is closed at once, and its number
 * is free again when that has come back.
 */

#include "region.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "lessor.h"
#include "orders.h"
#include "server.h"

#define SEGMENTS_MAX 4096

static int refuse(struct peer *peer, const struct message *message, Kvcached__Error error, const char *reason)
{
    peer_refuse(peer, message->request, error, "%s", reason);
    return 0;
}

struct region *region_free(struct peer *peer, struct region *region)
{
    if (!region)
        return NULL;
    broker_lease_free(peer->server->broker, region->lease);
    orders_unref(region->orders);
    free(region);
    return NULL;
}

struct region *region_find(const struct peer *peer, uint32_t number)
{
    struct region *region = peer_region(peer, number);

    return region && !region->closed ? region : NULL;
}

static void end_if_closed(struct peer *peer, uint32_t number)
{
    struct region *region = peer_region(peer, number);

    if (region->closed && region->n_extents == 0)
        peer->regions[number - 1] = region_free(peer, region);
}

void region_lose_extents(struct peer *peer, uint32_t number, uint64_t n)
{
    peer_region(peer, number)->n_extents -= n;
    end_if_closed(peer, number);
}

int region_free_number(const struct peer *peer, uint32_t *ret)
{
    for (uint32_t i = 0; i < PEER_REGIONS_MAX; i++) {
        if (!peer->regions[i]) {
            *ret = i + 1;
            return 0;
        }
    }
    return -ENOSPC;
}

uint64_t region_page_extents(const struct region *region)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++)
        n += region->page_extents[i];
    return n;
}

uint64_t region_page_bytes(const struct region *region, const struct broker_config *config)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < config->n_classes; i++)
        bytes += region->page_extents[i] * config->class_bytes[i];
    return bytes;
}

/* ---- Opening ---- */

/* NULL when the shape can be served. */
static const char *judge_shape(const struct server *server, const Kvcached__RegionOpen *body,
                               struct region *region)
{
    if (body->segments < 1 || body->segments > SEGMENTS_MAX)
        return "a region has 1 to 4096 segments";
    if (body->flags)
        return "the region has a flag that this daemon doesn't know";
    if (body->n_page_extents > server->settings.broker.n_classes)
        return "there are fewer classes of extents";
    for (size_t i = 0; i < body->n_page_extents; i++)
        region->page_extents[i] = body->page_extents[i];
    region->segments = body->segments;
    region->capacity_pages = body->capacity_pages;
    if (region_page_extents(region) == 0 || region_page_extents(region) > BROKER_REQUEST_EXTENTS_MAX)
        return "a page takes 1 to 65536 extents";
    if (!u64_mul(region_page_extents(region), body->capacity_pages, &region->capacity_extents))
        return "the region has more pages than can be counted";
    return NULL;
}

/* Where the feature doesn't hold, there is no such field. */
static bool is_ordered(const struct peer *peer, const Kvcached__RegionOpen *body)
{
    return body->ordered && (peer->features & KVCACHED__FEATURE__FEATURE_ORDERS);
}

/* NULL when a scheduler may find the region by these numbers. */
static const char *judge_order(const struct peer *peer, const Kvcached__RegionOpen *body)
{
    if (!is_ordered(peer, body))
        return NULL;
    if (peer->facts.role != KVCACHED__ROLE__ROLE_WORKER)
        return "only a worker has regions that a scheduler maps";
    if (orders_find(peer, body->group, body->rank))
        return "a worker of this instance has a region with this group and rank";
    return NULL;
}

int region_open(struct peer *peer, struct message *message)
{
    const Kvcached__RegionOpen *body = (const Kvcached__RegionOpen *)message->body;
    Kvcached__RegionOpened answer = KVCACHED__REGION_OPENED__INIT;
    struct server *server = peer->server;
    struct region region = {0};
    struct region *copy;
    const char *reason;
    int r;

    reason = judge_shape(server, body, &region) ?: judge_order(peer, body);
    if (reason)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, reason);
    if (region_page_bytes(&region, &server->settings.broker) > server->settings.broker.total_bytes)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_BUDGET,
                      "a page of this region is larger than the GPU");
    if (region_free_number(peer, &answer.region) < 0)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_RESOURCES, "a connection may have 256 regions");
    copy = malloc(sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    *copy = region;
    peer->regions[answer.region - 1] = copy;
    r = lessor_open(peer, answer.region);
    if (r < 0)
        return r;
    peer_send(peer, MESSAGE_REGION_OPENED, message->request, &answer.base, NULL);
    if (!is_ordered(peer, body))
        return 0;
    return orders_open(peer, answer.region, body->group, body->rank);
}

/* ---- Closing ---- */

/* NULL when it can be closed. */
static const char *judge_close(const struct region *region)
{
    if (!region)
        return "there is no such region";
    if (region->n_extents > orders_pages(region) * region_page_extents(region))
        return "the region's extents have not been returned";
    if (region->n_orders > 0)
        return "the region's orders have not been answered";
    if (region->n_leasing > 0)
        return "the region's leases have not been answered";
    return NULL;
}

int region_close(struct peer *peer, struct message *message)
{
    const Kvcached__RegionClose *body = (const Kvcached__RegionClose *)message->body;
    Kvcached__RegionClosed answer = KVCACHED__REGION_CLOSED__INIT;
    struct region *region = region_find(peer, body->region);
    const char *reason;

    if (peer->facts.role == KVCACHED__ROLE__ROLE_SCHEDULER &&
        !(peer->features & KVCACHED__FEATURE__FEATURE_ORDERS))
        return refuse(peer, message, KVCACHED__ERROR__ERROR_PERMISSION, "your role has no use for that");
    reason = judge_close(region);
    if (reason)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, reason);
    orders_close(peer, region);
    region->lease = broker_lease_free(peer->server->broker, region->lease);
    region->closed = true;
    end_if_closed(peer, body->region);
    peer_send(peer, MESSAGE_REGION_CLOSED, message->request, &answer.base, NULL);
    return 0;
}
