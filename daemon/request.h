/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Requests: the table of everything that a peer may say, and the handlers of the engine socket. The common
 * checks (kind of socket, state, role, request number) happen once, in request_dispatch(); a handler holds
 * only meaning.
 *
 * A handler returns 0 when it has answered (a refusal is an answer), REQUEST_E_FAILED when it has failed the
 * peer with a reason, or negative when something of ours went wrong, which ends the peer too.
 */

#include "peer.h"

enum {
    _REQUEST_E_SUCCESS,
    REQUEST_E_FAILED,
};

void request_dispatch(struct peer *peer, struct message *message);

/* Refuses a request for what the broker said (positive), with the numbers that were in force. Returns 0. */
int request_refuse_memory(struct peer *peer, uint32_t request, int broker_error, uint64_t bytes);

/* The same where others are expected to take some memory besides. */
int request_refuse_reservation(struct peer *peer, uint32_t request, int broker_error, uint64_t bytes,
                               uint64_t foreign_bytes);
