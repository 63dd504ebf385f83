/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Grants: requests for extents on their way from Take to the last acknowledged packet.
 */

#include "peer.h"

struct grant {
    struct list link; /* of its peer */
    struct peer *peer;
    uint32_t region;
    uint32_t number; /* of the Take on the wire */
    uint32_t n_sent;
    struct broker_request *request;
};

/* Asks the broker; the answer is sent when there is one. 0 or negative. */
int grant_ask(struct peer *peer, uint32_t region, const uint32_t counts[static BROKER_CLASSES_MAX],
              uint32_t number);

/* The broker's answers. */
void grant_granted(struct grant *grant);
void grant_refused(struct grant *grant, int broker_error);

/* The client has one packet. 0 or REQUEST_E_FAILED. */
int grant_acknowledged(struct peer *peer, uint32_t number);

/* Sends the next packet of the peer's oldest grant, if it may. */
void grant_send(struct peer *peer);

/* Withdraws everything of a peer that is gone. */
void grant_end_all(struct peer *peer);
