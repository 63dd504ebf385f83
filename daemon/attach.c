/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A scheduler names a region of a worker by two numbers, and has one of its own from then on: as the worker's
 * is, but without extents, and with a session that makes all earlier ones old. A region that no worker has
 * opened yet is waited for, for as long as the scheduler's connection lasts.
 */

#include "attach.h"

#include <errno.h>
#include <stdlib.h>

#include "instance_status.h"
#include "lessor.h"
#include "orders.h"
#include "region.h"
#include "request.h"
#include "server.h"

/* A scheduler that waits for a region. */
struct attachment {
    struct list link;      /* of its instance's */
    struct list peer_link; /* of peer.attaching */
    struct peer *peer;
    uint32_t request;
    uint32_t group, rank;
};

static int attach(struct peer *peer, struct orders *orders, uint32_t request)
{
    Kvcached__RegionAttached answer = KVCACHED__REGION_ATTACHED__INIT;
    const struct region *theirs = peer_region(orders->worker, orders->region);
    struct region *region;
    int r;

    if (region_free_number(peer, &answer.region) < 0) {
        peer_refuse(peer, request, KVCACHED__ERROR__ERROR_RESOURCES, "a connection may have 256 regions");
        return 0;
    }
    region = malloc(sizeof(*region));
    if (!region)
        return -ENOMEM;
    *region = *theirs;
    region->n_extents = region->n_leasing = 0;
    region->lease = NULL;
    region->session = ++orders->session;
    orders->n_users++;
    peer->regions[answer.region - 1] = region;
    r = lessor_open(peer, answer.region);
    if (r < 0)
        return r;
    answer.capacity_pages = region->capacity_pages;
    answer.n_page_extents = peer->server->settings.broker.n_classes;
    answer.page_extents = region->page_extents;
    answer.session = region->session;
    answer.segments = region->segments;
    peer_send(peer, MESSAGE_REGION_ATTACHED, request, &answer.base, NULL);
    return 0;
}

static int attach_later(struct peer *peer, const struct message *message)
{
    const Kvcached__RegionAttach *body = (const Kvcached__RegionAttach *)message->body;
    struct attachment *attachment;

    if (peer->n_takes >= PEER_TAKES_MAX) {
        peer_refuse(peer, message->request, KVCACHED__ERROR__ERROR_RESOURCES, "%s",
                    "too many requests wait for their answers");
        return 0;
    }
    attachment = malloc(sizeof(*attachment));
    if (!attachment)
        return -ENOMEM;
    *attachment = (struct attachment){
        .peer = peer, .request = message->request, .group = body->group, .rank = body->rank};
    list_append(&peer_instance(peer)->attaching, &attachment->link);
    list_append(&peer->attaching, &attachment->peer_link);
    peer->n_takes++;
    return 0;
}

static void attachment_free(struct attachment *attachment)
{
    attachment->peer->n_takes--;
    list_unlink(&attachment->link);
    list_unlink(&attachment->peer_link);
    free(attachment);
}

int attach_region(struct peer *peer, struct message *message)
{
    const Kvcached__RegionAttach *body = (const Kvcached__RegionAttach *)message->body;
    struct orders *orders = orders_find(peer, body->group, body->rank);

    return orders ? attach(peer, orders, message->request) : attach_later(peer, message);
}

void attach_waiting(struct orders *orders)
{
    list_for_each_safe (it, &peer_instance(orders->worker)->attaching) {
        struct attachment *attachment = container_of(it, struct attachment, link);

        if (attachment->group != orders->group || attachment->rank != orders->rank)
            continue;
        if (attach(attachment->peer, orders, attachment->request) < 0)
            peer_fail(attachment->peer, KVCACHED__ERROR__ERROR_RESOURCES, "the daemon is short of memory");
        attachment_free(attachment);
    }
}

void attach_give_up(struct peer *peer)
{
    list_for_each_safe (it, &peer->attaching)
        attachment_free(container_of(it, struct attachment, peer_link));
}
