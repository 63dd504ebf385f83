/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A granted request, of a client or of a scheduler for it, leaves in packets of as many descriptors as a
 * packet may have, its domain's share of descriptors in flight permitting; one packet at a time, until the
 * client has acknowledged it. A descriptor that was sent is closed: the client's copy keeps the memory alive,
 * and ours would only fill the table. One that was sent alone is closed with the next event, since whoever it
 * was sent to may be waiting for our processor; but before the broker can want its extent destroyed.
 *
 * The broker's request lives until the last packet has left (an order's until it is acknowledged, because its
 * worker can't be done before): only then are the extents the peer's to return, and until then it holds a
 * part of the descriptors that everybody's requests share. So a client that doesn't acknowledge for a while
 * has its grant turned cold: the descriptors that are not yet sent are closed, the request ends, and should
 * the client go on after all, they are exported again, one packet's worth at a time.
 */

#include "grant.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "instance_status.h"
#include "memory.h"
#include "orders.h"
#include "region.h"
#include "request.h"
#include "server.h"

#define PATIENCE_NS NSEC_PER_SEC

static struct slot *slot_of(const struct grant *grant, uint32_t index)
{
    return slots_find(&grant->peer->server->slots, grant->extents[index]);
}

static void grant_free(struct grant *grant)
{
    list_unlink(&grant->link);
    if (grant->order)
        grant->order->grant = NULL;
    if (grant->kind != GRANT_ORDER)
        grant->peer->n_takes--;
    if (grant->request)
        broker_request_free(grant->peer->server->broker, grant->request);
    else
        free(grant->extents);
    free(grant);
}

static int ask_broker(struct peer *peer, const struct region *region, uint32_t pages,
                      struct broker_lease *lease, struct broker_request **ret)
{
    struct broker *broker = peer->server->broker;
    uint32_t counts[BROKER_CLASSES_MAX];

    if (region_page_extents(region) * pages > BROKER_REQUEST_EXTENTS_MAX)
        return BROKER_E_INVALID;
    if (lease)
        return broker_lease_take(broker, lease, peer->broker_peer, pages, server_now(), ret);
    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++)
        counts[i] = region->page_extents[i] * pages;
    return broker_take(broker, peer->broker_peer, counts, server_now(), ret);
}

static void enlist(struct grant *grant, struct peer *peer, uint32_t region, uint32_t pages, uint32_t number)
{
    grant->request->owner = grant;
    grant->peer = peer;
    grant->region = region;
    grant->pages = pages;
    grant->number = number;
    if (grant->kind != GRANT_ORDER)
        peer->n_takes++;
    list_append(&peer->asked, &grant->link);
}

int grant_ask(struct peer *peer, uint32_t number_of_region, uint32_t pages, uint32_t number,
              struct broker_lease *lease, struct order *order)
{
    struct region *region = peer_region(peer, number_of_region);
    struct grant *grant = malloc(sizeof(*grant));
    int r;

    if (!grant)
        return -ENOMEM;
    *grant = (struct grant){.kind = order ? GRANT_ORDER : GRANT_TAKE, .order = order};
    r = ask_broker(peer, region, pages, lease, &grant->request);
    if (r != 0) {
        free(grant);
        return r;
    }
    if (order)
        order->grant = grant;
    enlist(grant, peer, number_of_region, pages, number);
    region->n_extents += grant->request->n_extents;
    return 0;
}

int grant_ask_lease(struct peer *peer, uint32_t number_of_region, uint32_t pages, uint32_t number,
                    bool courtesy)
{
    struct region *region = peer_region(peer, number_of_region);
    struct grant *grant = malloc(sizeof(*grant));
    int r;

    if (!grant)
        return -ENOMEM;
    *grant = (struct grant){.kind = GRANT_LEASE};
    r = BROKER_E_INVALID;
    if (region_page_extents(region) * pages <= BROKER_REQUEST_EXTENTS_MAX)
        r = broker_lease_ask(peer->server->broker, region->lease, pages, courtesy, server_now(),
                             &grant->request);
    if (r != 0) {
        free(grant);
        return r;
    }
    enlist(grant, peer, number_of_region, pages, number);
    region->n_leasing += pages;
    return 0;
}

static void forget_asked(struct grant *grant)
{
    if (grant->kind == GRANT_LEASE)
        peer_region(grant->peer, grant->region)->n_leasing -= grant->pages;
    else
        region_lose_extents(grant->peer, grant->region, grant->request->n_extents);
    grant_free(grant);
}

bool grant_withdraw(struct grant *grant)
{
    if (grant->n_extents > 0)
        return false;
    forget_asked(grant);
    return true;
}

void grant_refused(struct grant *grant, int broker_error)
{
    uint64_t bytes = grant->request->bytes;
    struct order *order = grant->order;
    struct peer *peer = grant->peer;
    uint32_t number = grant->number;

    forget_asked(grant);
    if (order)
        orders_refused(order, broker_error, bytes);
    else
        request_refuse_memory(peer, number, broker_error, bytes);
}

static struct grant *next_granted(struct peer *peer)
{
    return list_first(&peer->granted, struct grant, link);
}

/* A peer keeps descriptors waiting while the broker's part of one of its grants lives. Those that turned cold
 * stand in front of those that came later. */
static bool keeps_waiting(const struct peer *peer)
{
    return !list_is_empty(&peer->granted) &&
           container_of(peer->granted.prev, struct grant, link)->request != NULL;
}

static void note_progress(struct peer *peer)
{
    list_unlink(&peer->wait_link);
    if (!keeps_waiting(peer))
        return;
    peer->waits_since_ns = server_now();
    list_append(&peer->server->keep_waiting, &peer->wait_link);
}

void grant_granted(struct grant *grant)
{
    const struct broker_request *request = grant->request;
    struct peer *peer = grant->peer;

    grant->n_extents = request->n_extents;
    grant->extents = request->extents;
    for (uint32_t i = 0; i < grant->n_extents; i++) {
        struct slot *slot = slot_of(grant, i);

        slot->region = grant->region;
        slot->grant = grant;
    }
    list_unlink(&grant->link);
    list_append(&peer->granted, &grant->link);
    instance_status_note_grant(request->peer->instance);
    grant_send(peer);
    if (list_is_empty(&peer->wait_link))
        note_progress(peer);
}

bool grant_is_unsent(const struct slot *slot)
{
    return slot->grant != NULL;
}

/* ---- Packets ---- */

static void collect(struct grant *grant, unsigned n, struct fdset *fds)
{
    for (unsigned i = 0; i < n; i++) {
        struct slot *slot = slot_of(grant, grant->n_sent + i);

        fdset_consume(fds, slot->job.fd);
        slot->job.fd = -1;
        slot->grant = NULL;
    }
}

static void send_part(struct grant *grant, unsigned n, struct fdset *fds)
{
    Kvcached__Grant body = KVCACHED__GRANT__INIT;

    body.n_extents = n;
    body.extents = grant->extents + grant->n_sent;
    body.remaining = grant->n_extents - grant->n_sent - n;
    peer_send(grant->peer, MESSAGE_GRANT, grant->number, &body.base, fds);
}

/* What nothing needs any more but the charge of its last packet. */
static bool has_left(const struct grant *grant)
{
    return grant->kind != GRANT_ORDER && grant->n_sent == grant->n_extents &&
           link_queued(grant->peer->conn) == 0;
}

/* What a queue has taken is not in the set any more. */
static void close_behind(const struct peer *peer, struct fdset *fds)
{
    struct server *server = peer->server;

    if (fds->n == 1 && server->sent_fd < 0 && !peer->doomed) {
        server->sent_fd = fdset_steal(fds, 0);
        server->sent_turn = server->turn;
    }
    fdset_deinit(fds);
}

void grant_close_sent(struct server *server)
{
    server->sent_fd = close_fd(server->sent_fd);
}

/* So many are charged already. Ends the grant, perhaps. */
static void send_packet(struct grant *grant, unsigned n)
{
    struct peer *peer = grant->peer;
    struct fdset fds;

    collect(grant, n, fdset_init(&fds));
    peer->ack_request = grant->number;
    if (grant->order)
        orders_send_part(grant->order, n, &fds);
    else
        send_part(grant, n, &fds);
    close_behind(peer, &fds);
    grant->n_sent += n;
    if (grant->order && grant->n_sent == grant->n_extents)
        orders_sent(grant->order);
    if (has_left(grant))
        grant_free(grant);
    note_progress(peer);
}

static void export_packet(struct grant *grant, unsigned n)
{
    grant->n_exporting = grant->n_cold = n;
    for (unsigned i = 0; i < n; i++)
        memory_export_granted(grant->peer->server, slot_of(grant, grant->n_sent + i));
}

/* The peer's word that packets have come ends their charge when it is the kernel's, too: else descriptors
 * could be heaped up in its socket. What lies there may be newer, so the next packet may leave, as far as
 * there is room beside what is in doubt. */
static void end_flight(struct peer *peer)
{
    if (!peer->is_acknowledged || !peer->in_flight.domain || link_queued(peer->conn) > 0 ||
        !link_is_read(peer->conn))
        return;
    flight_charge_deinit(&peer->in_flight);
    peer->server->room_grew = true;
}

/* Nothing announces that something was read. */
static void wait_for_room(struct peer *peer)
{
    if (list_is_empty(&peer->stall_link))
        list_append(peer->in_flight.domain ? &peer->server->throttled : &peer->server->stalled,
                    &peer->stall_link);
}

void grant_send(struct peer *peer)
{
    struct grant *grant = next_granted(peer);
    unsigned n, room;

    if (!grant || peer->doomed || (peer->in_flight.domain && !peer->is_acknowledged))
        return;
    end_flight(peer);
    room = flight_room(peer->flight, &peer->in_flight);
    if (room == 0) {
        wait_for_room(peer);
        return;
    }
    n = grant->n_extents - grant->n_sent;
    if (n > FRAME_FDS_MAX)
        n = FRAME_FDS_MAX;
    if (n > room)
        n = room;
    flight_charge_add(&peer->in_flight, peer->flight, n);
    peer->is_acknowledged = false;
    if (grant->request)
        send_packet(grant, n);
    else
        export_packet(grant, n);
}

int grant_acknowledged(struct peer *peer, uint32_t number)
{
    struct grant *grant = next_granted(peer);

    if (!peer->in_flight.domain || peer->is_acknowledged || number != peer->ack_request ||
        (grant && grant->n_exporting)) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_PROTOCOL, "a GrantAck acknowledges nothing that was sent");
        return REQUEST_E_FAILED;
    }
    peer->is_acknowledged = true;
    if (grant && grant->n_sent == grant->n_extents)
        grant_free(grant);
    note_progress(peer);
    return 0;
}

void grant_go_on(struct peer *peer)
{
    if (!peer->is_acknowledged)
        return;
    end_flight(peer);
    grant_send(peer);
}

/* ---- Cold grants ---- */

static void make_cold(struct grant *grant)
{
    if (!grant->request)
        return;
    for (uint32_t i = grant->n_sent; i < grant->n_extents; i++) {
        struct slot *slot = slot_of(grant, i);

        slot->job.fd = close_fd(slot->job.fd);
    }
    grant->extents = broker_request_keep_extents(grant->peer->server->broker, steal_pointer(grant->request));
}

uint64_t grant_chill_due(const struct server *server)
{
    const struct peer *longest = list_first(&server->keep_waiting, struct peer, wait_link);

    return longest ? longest->waits_since_ns + PATIENCE_NS : UINT64_MAX;
}

void grant_chill(struct server *server, uint64_t now_ns)
{
    while (grant_chill_due(server) <= now_ns) {
        struct peer *peer = container_of(server->keep_waiting.next, struct peer, wait_link);

        list_unlink(&peer->wait_link);
        list_for_each (it, &peer->granted)
            make_cold(container_of(it, struct grant, link));
    }
}

void grant_exported(struct slot *slot)
{
    struct grant *grant = slot->grant;
    struct peer *peer = grant->peer;

    if (slot->job.r != 0) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_DRIVER, "the driver did not export memory: %s", slot->job.why);
        return;
    }
    if (--grant->n_exporting == 0 && !peer->doomed)
        send_packet(grant, grant->n_cold);
}

/* ---- The end ---- */

/* Extents that were not sent go the way of all that the peer holds; their descriptors go now, where they are
 * ours. */
static void close_unsent(struct grant *grant)
{
    for (uint32_t i = grant->n_sent; i < grant->n_extents; i++) {
        struct slot *slot = slot_of(grant, i);

        slot->grant = NULL;
        if (!slot->job.busy)
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
