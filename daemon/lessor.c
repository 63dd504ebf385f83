/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The daemon's end of the lease file. Each region of a peer that knows leases has a lease from the beginning,
 * because its line also says what the client keeps and could return. What is leased is the broker's affair;
 * the words in the file are read and changed by nobody else here, and believed by nobody.
 *
 * A client takes pages off its word before it asks for them. Where that request is refused, whatever for and
 * however late, they go back to the pool: they are no longer in the word, and a client that has lost
 * patience, or is about to die, puts nothing back.
 */

#include "lessor.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "chronicle.h"
#include "grant.h"
#include "orders.h"
#include "region.h"
#include "request.h"
#include "server.h"
#include "wire/lease_file.h"

_Static_assert(LEASE_LINES == PEER_REGIONS_MAX, "each region has a line");

static int refuse(struct peer *peer, const struct message *message, Kvcached__Error error, const char *reason)
{
    peer_refuse(peer, message->request, error, "%s", reason);
    return 0;
}

/* ---- The file ---- */

int lessor_begin(struct peer *peer, struct fdset *fds)
{
    int fd, r;

    if (!(peer->features & KVCACHED__FEATURE__FEATURE_LEASES))
        return 0;
    r = lease_file_new(&peer->lines, &fd);
    if (r < 0)
        return r;
    r = fdset_consume(fds, fd);
    if (r < 0) {
        close_fd(fd);
        return r;
    }
    broker_peer_listens(peer->server->broker, peer->broker_peer,
                        peer->facts.role == KVCACHED__ROLE__ROLE_SCHEDULER,
                        peer->facts.role == KVCACHED__ROLE__ROLE_WORKER);
    return 0;
}

void lessor_end(struct peer *peer)
{
    peer->lines = lease_file_unmap(peer->lines);
}

int lessor_open(struct peer *peer, uint32_t number)
{
    struct region *region = peer_region(peer, number);
    struct lease_line *line;
    int r;

    if (!peer->lines)
        return 0;
    line = &peer->lines[number - 1];
    atomic_store(&line->word, 0);
    atomic_store(&line->cached_pages, 0);
    atomic_store(&line->pinned_pages, 0);
    r = broker_lease_new(peer->server->broker, peer->broker_peer, region->page_extents, line, &region->lease);
    return r <= 0 ? r : 0; /* pages that no lease can hold: see lessor_ask() */
}

/* ---- Asking ---- */

/* Held in it, or asked for; of an attached one that is the worker's affair. */
static uint64_t held_extents(const struct region *region)
{
    const struct orders *orders = region->orders;

    return orders && orders->worker ? peer_region(orders->worker, orders->region)->n_extents
                                    : region->n_extents;
}

static bool has_room(const struct region *region, uint32_t pages)
{
    uint64_t n_leased = (uint64_t)broker_lease_pages(region->lease) + region->n_leasing;
    uint64_t room = (region->capacity_extents - held_extents(region)) / region_page_extents(region);

    return n_leased + pages <= room;
}

int lessor_ask(struct peer *peer, struct message *message)
{
    const Kvcached__Lease *body = (const Kvcached__Lease *)message->body;
    struct region *region = region_find(peer, body->region);
    int r;

    if (!region)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, "there is no such region");
    if (body->pages < 1)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, "at least one page must be leased");
    if (!region->lease)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, "such pages cannot be leased");
    if (broker_lease_is_frozen(region->lease))
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID,
                      "the region's lease was scribbled over, so there are no more");
    if (!has_room(region, body->pages))
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, "the region has not so many pages left");
    if (peer->n_takes >= PEER_TAKES_MAX)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_RESOURCES,
                      "too many requests wait for their answers");
    r = grant_ask_lease(peer, body->region, body->pages, message->request, body->courtesy);
    if (r <= 0)
        return r;
    return request_refuse_memory(peer, message->request, r,
                                 region_page_bytes(region, &peer->server->settings.broker) * body->pages);
}

void lessor_granted(struct grant *grant)
{
    Kvcached__Leased answer = KVCACHED__LEASED__INIT;
    struct peer *peer = grant->peer;
    uint32_t number = grant->number;

    answer.pages = grant->pages;
    grant_withdraw(grant);
    peer_send(peer, MESSAGE_LEASED, number, &answer.base, NULL);
}

void lessor_forgo(struct peer *peer, const struct region *region, uint32_t pages)
{
    if (region->lease)
        broker_lease_forgo(peer->server->broker, region->lease, pages, server_now());
}

/* ---- Notices ---- */

static struct peer *peer_of(const struct broker_peer *broker_peer)
{
    struct snapshot_peer *facts = broker_peer->owner;

    return container_of(facts, struct peer, facts);
}

void lessor_send_notice(const struct broker_action *action)
{
    Kvcached__Notice body = KVCACHED__NOTICE__INIT;

    body.number = action->number;
    body.bytes = action->bytes;
    body.deadline_ms = (uint32_t)((action->deadline_ns + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC);
    body.courtesy = action->courtesy;
    peer_send(peer_of(action->peer), MESSAGE_NOTICE, 0, &body.base, NULL);
}

int lessor_notice_acknowledged(struct peer *peer, struct message *message)
{
    const Kvcached__NoticeAck *body = (const Kvcached__NoticeAck *)message->body;

    broker_notice_acked(peer->server->broker, peer->broker_peer, body->number, server_now());
    return 0;
}

void lessor_note_scribble(struct server *server, const struct broker_peer *broker_peer)
{
    const struct broker_instance *instance = broker_peer->instance;

    chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_SCRIBBLED, instance, peer_of(broker_peer)->facts.pid,
                   0, "A process has scribbled over a lease, and gets no more for that region");
    if (chronicle_may_log(server, broker_domain_name(instance->domain)))
        log_warning("Process %d of %s/%s has scribbled over a lease, and gets no more for that region",
                    peer_of(broker_peer)->facts.pid, broker_domain_name(instance->domain), instance->name);
}
