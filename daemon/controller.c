/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A controller has one reservation at a time, which lives in its peer: asked for, then held, until Release or
 * the end of the connection. A Release that overtakes the answer withdraws what was asked for, so that a
 * controller that has lost patience knows where it stands.
 */

#include "controller.h"

#include "instance_status.h"
#include "request.h"
#include "server.h"

static int refuse(struct peer *peer, uint32_t request, const char *reason)
{
    peer_refuse(peer, request, KVCACHED__ERROR__ERROR_INVALID, "%s", reason);
    return 0;
}

int controller_reserve(struct peer *peer, struct message *message)
{
    const Kvcached__Reserve *body = (const Kvcached__Reserve *)message->body;
    int r;

    if (body->bytes == 0 && body->foreign_bytes == 0)
        return refuse(peer, message->request, "nothing is to be reserved");
    if (peer->reservation)
        return refuse(peer, message->request, "a reservation of yours is open already");
    r = broker_reserve(peer->server->broker, peer->broker_peer, body->bytes, body->foreign_bytes,
                       server_now(), &peer->reservation);
    if (r < 0)
        return r;
    if (r > 0)
        return request_refuse_reservation(peer, message->request, r, body->bytes, body->foreign_bytes);
    peer->reservation->owner = peer;
    peer->reserve_request = message->request;
    return 0;
}

void controller_reserved(struct peer *peer)
{
    Kvcached__Reserved answer = KVCACHED__RESERVED__INIT;
    uint32_t number = peer->reserve_request;

    peer->reserve_request = 0;
    instance_status_note_grant(peer->broker_peer->instance);
    peer_send(peer, MESSAGE_RESERVED, number, &answer.base, NULL);
}

void controller_end(struct peer *peer)
{
    peer->reservation = broker_request_free(peer->server->broker, peer->reservation);
    peer->reserve_request = 0;
}

void controller_refused(struct peer *peer, int broker_error)
{
    uint64_t bytes = peer->reservation->bytes, foreign_bytes = peer->reservation->foreign_bytes;
    uint32_t number = peer->reserve_request;

    controller_end(peer);
    request_refuse_reservation(peer, number, broker_error, bytes, foreign_bytes);
}

int controller_release(struct peer *peer, struct message *message)
{
    Kvcached__Released answer = KVCACHED__RELEASED__INIT;
    uint32_t number = peer->reserve_request;

    if (!peer->reservation)
        return refuse(peer, message->request, "nothing is reserved");
    controller_end(peer);
    if (number)
        refuse(peer, number, "it was released before there was an answer");
    peer_send(peer, MESSAGE_RELEASED, message->request, &answer.base, NULL);
    return 0;
}
