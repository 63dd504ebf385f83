/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Grants: requests for extents on their way from Take, Lease or an order until their last packet has left,
 * or, an order's, is acknowledged.
 */

#include "peer.h"
#include "slots.h"

struct order;

enum grant_kind {
    GRANT_TAKE,
    GRANT_ORDER, /* a scheduler's, for a worker */
    GRANT_LEASE, /* nothing is handed over; see lessor.h */
};

struct grant {
    struct list link; /* of its peer */
    struct peer *peer;
    enum grant_kind kind;
    uint32_t region;
    uint32_t pages;
    uint32_t number;     /* of the Take, order or Lease on the wire */
    struct order *order; /* NULL: there is none, or it is gone */
    uint32_t n_extents, n_sent;
    uint32_t n_cold, n_exporting;   /* extents of a cold grant's next packet, and those still to come */
    struct broker_request *request; /* NULL once the grant is cold */
    uint64_t *extents;              /* the request's; of a cold grant its own */
};

/* Asks the broker for pages of a region; the answer is sent when there is one. `lease`: where they come from;
 * NULL: wherever there are some. `order`: which they are for, or NULL. 0, BROKER_E_* (refused now), or
 * negative. */
int grant_ask(struct peer *peer, uint32_t region, uint32_t pages, uint32_t number, struct broker_lease *lease,
              struct order *order);

/* The same for more pages in the region's own lease. */
int grant_ask_lease(struct peer *peer, uint32_t region, uint32_t pages, uint32_t number, bool courtesy);

/* Ends it, if nothing was granted yet. */
bool grant_withdraw(struct grant *grant);

/* The broker's answers. */
void grant_granted(struct grant *grant);
void grant_refused(struct grant *grant, int broker_error);

/* The client has one packet. 0 or REQUEST_E_FAILED. */
int grant_acknowledged(struct peer *peer, uint32_t number);

/* After each of its messages, which may show that it has read what it was sent. */
void grant_go_on(struct peer *peer);

/* Sends the next packet of the peer's oldest grant, if it may. */
void grant_send(struct peer *peer);

/* Closes what was sent and left to be closed with the next event. */
void grant_close_sent(struct server *server);

/* A descriptor that a cold grant had asked for. */
void grant_exported(struct slot *slot);

/* Whether the extent was granted, and its descriptor is still to be sent. */
bool grant_is_unsent(const struct slot *slot);

/* Makes grants cold whose client has not acknowledged for too long. */
void grant_chill(struct server *server, uint64_t now_ns);

/* When that will be wanted next; UINT64_MAX: not at all. */
uint64_t grant_chill_due(const struct server *server);

/* Withdraws everything of a peer that is gone. */
void grant_end_all(struct peer *peer);
