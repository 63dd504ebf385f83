/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The daemon's end of reservations: what a controller has asked for, and holds.
 */

#include "peer.h"

/* Handlers of messages: see request.h. */
int controller_reserve(struct peer *peer, struct message *message);
int controller_release(struct peer *peer, struct message *message);

/* The broker's answers to a peer's Reserve. */
void controller_reserved(struct peer *peer);
void controller_refused(struct peer *peer, int broker_error);

/* Gives up what a peer that is gone has asked for. */
void controller_end(struct peer *peer);
