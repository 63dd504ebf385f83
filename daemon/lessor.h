/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Lessor: what a client asks for ahead of its need, and what it is asked to give back.
 */

#include "peer.h"

struct grant;

/* Handlers of messages: see request.h. */
int lessor_ask(struct peer *peer, struct message *message);
int lessor_notice_acknowledged(struct peer *peer, struct message *message);

/* For a peer that was admitted: makes its lease file, if it knows leases, and adds a descriptor of it. */
int lessor_begin(struct peer *peer, struct fdset *fds);

/* A region that has just got its number; its line is clean from now on. 0 or negative. */
int lessor_open(struct peer *peer, uint32_t region);

/* Takes pages off a region's lease for a request that was refused: they are the pool's again. */
void lessor_forgo(struct peer *peer, const struct region *region, uint32_t pages);

/* The broker's answers and wishes. */
void lessor_granted(struct grant *grant);
void lessor_send_notice(const struct broker_action *action);
void lessor_note_scribble(struct server *server, const struct broker_peer *broker_peer);

/* After the last of the peer's leases. */
void lessor_end(struct peer *peer);
