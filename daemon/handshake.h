/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Handshake: Hello, where needed Challenge, Welcome. Whoever has not finished it in time is disconnected.
 */

#include "peer.h"

/* Queues the peer among those that must say Hello soon. 0 or -ENOMEM. */
int handshake_begin(struct peer *peer);

/* Finished, or given up. */
void handshake_end(struct peer *peer);

/* Fails those whose time is over; returns when the next one's is, UINT64_MAX for nobody's. */
uint64_t handshake_expire(struct server *server, uint64_t now_ns);

/* Can an instance be called that? */
bool handshake_name_is_valid(const char *name);

int handshake_hello(struct peer *peer, struct message *message);
int handshake_reply(struct peer *peer, struct message *message);
