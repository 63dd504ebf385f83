/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A granted request leaves in packets of as many descriptors as a packet may have, its domain's share of
 * descriptors in flight permitting; one packet at a time, until the client has acknowledged it. A descriptor
 * is closed as soon as it is sent: the client's copy keeps the memory alive, and ours would only fill the
 * table.
 *
 * What the broker has answered stays its request until the last packet is acknowledged, because only then are
 * the extents the peer's to return.
 */

#include "grant.h"

#include <errno.h>
#include <stdlib.h>

#include "instance_status.h"
#include "request.h"
#include "server.h"

static void grant_free(struct grant *grant)
{
    list_unlink(&grant->link);
    grant->peer->n_takes--;
    broker_request_free(grant->peer->server->broker, grant->request);
    free(grant);
}

static uint32_t sum(const uint32_t counts[static BROKER_CLASSES_MAX])
{
    uint32_t n = 0;

    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++)
        n += counts[i];
    return n;
}

static uint64_t bytes_of(const struct broker_config *config, const uint32_t counts[static BROKER_CLASSES_MAX])
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < config->n_classes; i++)
        bytes += counts[i] * config->class_bytes[i];
    return bytes;
}

int grant_ask(struct peer *peer, uint32_t region, const uint32_t counts[static BROKER_CLASSES_MAX],
              uint32_t number)
{
    struct server *server = peer->server;
    struct grant *grant = calloc(1, sizeof(*grant));
    int r;

    if (!grant)
        return -ENOMEM;
    r = broker_take(server->broker, peer->broker_peer, counts, server_now(), &grant->request);
    if (r != 0) {
        free(grant);
        if (r < 0)
            return r;
        return request_refuse_memory(peer, number, r, bytes_of(&server->broker_config, counts));
    }
    grant->request->owner = grant;
    grant->peer = peer;
    grant->region = region;
    grant->number = number;
    list_append(&peer->asked, &grant->link);
    peer->n_takes++;
    peer_region(peer, region)->n_extents += sum(counts);
    return 0;
}

void grant_refused(struct grant *grant, int broker_error)
{
    struct peer *peer = grant->peer;

    peer_region(peer, grant->region)->n_extents -= grant->request->n_extents;
    request_refuse_memory(peer, grant->number, broker_error, grant->request->bytes);
    grant_free(grant);
}

static struct grant *next_granted(struct peer *peer)
{
    return list_first(&peer->granted, struct grant, link);
}

void grant_granted(struct grant *grant)
{
    const struct broker_request *request = grant->request;

    for (uint32_t i = 0; i < request->n_extents; i++)
        slots_find(&grant->peer->server->slots, request->extents[i])->region = grant->region;
    list_unlink(&grant->link);
    list_append(&grant->peer->granted, &grant->link);
    instance_status_note_grant(request->peer->instance);
    grant_send(grant->peer);
}

static void collect(struct grant *grant, unsigned n, struct fdset *fds)
{
    struct slots *slots = &grant->peer->server->slots;

    for (unsigned i = 0; i < n; i++) {
        struct slot *slot = slots_find(slots, grant->request->extents[grant->n_sent + i]);

        fdset_consume(fds, slot->job.fd);
        slot->job.fd = -1;
    }
}

static void send_packet(struct grant *grant, unsigned n)
{
    struct peer *peer = grant->peer;
    Kvcached__Grant body = KVCACHED__GRANT__INIT;
    struct fdset fds = {0};

    collect(grant, n, &fds);
    body.n_extents = n;
    body.extents = grant->request->extents + grant->n_sent;
    grant->n_sent += n;
    body.remaining = grant->request->n_extents - grant->n_sent;
    peer->ack_request = grant->number;
    flight_charge_init(&peer->in_flight, peer->flight, n);
    peer_send(peer, MESSAGE_GRANT, grant->number, &body.base, &fds);
    fdset_deinit(&fds);
}

void grant_send(struct peer *peer)
{
    struct grant *grant = next_granted(peer);
    unsigned n, room;

    if (!grant || peer->doomed || peer->in_flight.domain)
        return;
    room = flight_room(peer->flight);
    if (room == 0) {
        if (list_is_empty(&peer->stall_link))
            list_append(&peer->server->stalled, &peer->stall_link);
        return;
    }
    n = grant->request->n_extents - grant->n_sent;
    if (n > FRAME_FDS_MAX)
        n = FRAME_FDS_MAX;
    send_packet(grant, n < room ? n : room);
}

int grant_acknowledged(struct peer *peer, uint32_t number)
{
    struct grant *grant = next_granted(peer);

    if (!peer->in_flight.domain || number != peer->ack_request) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_PROTOCOL, "a GrantAck acknowledges nothing that was sent");
        return REQUEST_E_FAILED;
    }
    flight_charge_deinit(&peer->in_flight);
    peer->server->room_grew = true;
    if (grant->n_sent == grant->request->n_extents)
        grant_free(grant);
    grant_send(peer);
    return 0;
}

/* Extents that were not sent go the way of all that the peer holds; their descriptors go now. */
static void close_unsent(struct grant *grant)
{
    const struct broker_request *request = grant->request;

    for (uint32_t i = grant->n_sent; i < request->n_extents; i++) {
        struct slot *slot = slots_find(&grant->peer->server->slots, request->extents[i]);

        slot->job.fd = close_fd(slot->job.fd);
    }
}

void grant_end_all(struct peer *peer)
{
    list_for_each_safe (it, &peer->granted) {
        close_unsent(container_of(it, struct grant, link));
        grant_free(container_of(it, struct grant, link));
    }
    list_for_each_safe (it, &peer->asked)
        grant_free(container_of(it, struct grant, link));
}
