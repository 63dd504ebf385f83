/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Peer: one connection, from accept to the proven end of its process, which may come much later.
 *
 *     HELLO → (CHALLENGED →) READY → GONE
 *
 * A peer that failed is doomed: it stays where it is until server_settle() disconnects it, so that nobody
 * loses it in the middle of handling it. A disconnected peer that still holds extents waits in limbo for its
 * process's end.
 */

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "flight.h"
#include "identity.h"
#include "listener.h"
#include "snapshot.h"
#include "wire/link.h"

#define PEER_REGIONS_MAX 256
#define PEER_TAKES_MAX 64
#define PEER_ORDERS_MAX 1024 /* that a scheduler has open, or a worker */

#define PEER_STOPPING "the daemon is stopping"

enum peer_state {
    PEER_HELLO = 1,
    PEER_CHALLENGED = 2,
    PEER_READY = 4,
    PEER_GONE = 8,
};

struct instance_status;
struct lease_line;
struct orders;

/* A peer's own, or a worker's to which a scheduler has attached. */
struct region {
    uint64_t capacity_pages, capacity_extents;
    uint64_t n_extents; /* held or asked for */
    uint32_t segments;
    uint32_t page_extents[BROKER_CLASSES_MAX];
    struct orders *orders;      /* NULL: the region is mapped by whom it belongs to */
    struct broker_lease *lease; /* NULL: the peer doesn't know leases */
    uint64_t n_leasing;         /* pages that Leases wait for */
    bool closed;                /* by its worker: it ends with the last extent that orders have brought */

    /* Of an attached one. */
    uint64_t session;
    uint64_t number;   /* of the last order */
    unsigned n_orders; /* not answered */
};

/* What a handshake needs until it is over. Of the Hello only what will be asked for is kept while the
 * challenge is out, because a parsed message may be a hundred times as large. */
struct peer_hello {
    uint32_t request;
    uint64_t features;
    uint32_t limit_ppm;
    Kvcached__Role role;
    char instance[BROKER_NAME_MAX + 1];
    uint8_t nonce[IDENTITY_NONCE_SIZE];
    uint64_t deadline_ns;
};

struct peer {
    struct list link;       /* of server.peers */
    struct list queue_link; /* of server.doomed */
    struct list hello_link; /* of server.handshakes */
    struct list stall_link; /* of server.stalled or server.throttled */
    struct list wait_link;  /* of server.keep_waiting */

    struct list follow_link; /* of server.followers, while its request for events waits */
    uint32_t follow_request;
    uint64_t follow_after;

    struct server *server;
    enum listener_kind kind;
    char *domain;
    struct identity identity;
    struct snapshot_peer facts;
    bool is_admin;
    uint64_t features; /* bits of Feature that hold */
    enum peer_state state;
    bool doomed, dead; /* to be disconnected; its process has ended */

    struct link *conn; /* NULL once disconnected */
    uv_poll_t poll, death;
    unsigned n_handles;
    int polled; /* events that are watched */

    struct peer_hello *hello; /* NULL after the handshake */
    struct broker_peer *broker_peer;
    struct flight_domain *flight;
    struct flight_charge in_flight; /* of the packet that waits for its acknowledgement */
    uint32_t ack_request;
    bool is_acknowledged;             /* by the peer, which may lie */
    bool is_noted, keeps_descriptors; /* when disconnected: whether some may lie unread in its socket */
    uint64_t waits_since_ns;
    struct list asked;     /* requests that the broker has not answered */
    struct list granted;   /* and those of which something is still to be sent, or an order's acknowledged */
    struct list attaching; /* regions that a scheduler waits for */
    struct list ordered;   /* a scheduler's orders that are not answered */
    struct list sent;      /* orders that a worker has not reported on */
    unsigned n_takes;      /* requests that wait, but for orders */
    struct broker_request *reservation; /* a controller's; NULL: none is open */
    uint32_t reserve_request;           /* 0: it is answered */
    unsigned n_orders;
    uint32_t n_ids;                           /* that were given to orders */
    struct lease_line *lines;                 /* NULL: the peer doesn't know leases */
    struct region *regions[PEER_REGIONS_MAX]; /* the wire's number is one more than the index */
};

/* A connection of a listener. The descriptor is consumed in every case. */
void peer_accept(struct server *server, const struct listener *listener, int fd);

/* Answers one request, or everybody (request 0). A failure dooms the peer. */
void peer_send(struct peer *peer, enum message_type type, uint32_t request, const ProtobufCMessage *body,
               struct fdset *fds);
void peer_refuse(struct peer *peer, uint32_t request, Kvcached__Error error, const char *format, ...)
    __attribute__((cold, format(printf, 4, 5)));

/* Dooms the peer, and tells it why. */
void peer_fail(struct peer *peer, Kvcached__Error error, const char *format, ...)
    __attribute__((cold, format(printf, 3, 4)));
void peer_doom(struct peer *peer);

/* For server_settle(): ends the connection of a doomed peer. */
void peer_disconnect(struct peer *peer);

/* Tries again what ETOOMANYREFS held back. */
void peer_flush(struct peer *peer);

/* The same, and what was held back until all of that had been read. */
void peer_go_on(struct peer *peer);

/* At the end of the daemon, whoever still lives: everything of the peer is given up. */
void peer_bury(struct peer *peer);

struct region *peer_region(const struct peer *peer, uint32_t number);

/* What is kept of a member's instance. */
struct instance_status *peer_instance(const struct peer *peer);
