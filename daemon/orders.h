/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Orders: what a scheduler has mapped and unmapped in the regions of its instance's workers.
 */

#include "peer.h"

struct grant;

/* Of one region of a worker. Lives while the worker has it open, a scheduler is attached to it, or an order
 * is not reported on. */
struct orders {
    unsigned n_users;
    struct list link;    /* of its instance's, while it can be found */
    struct peer *worker; /* NULL: it is gone, or has closed the region */
    uint32_t region;     /* the worker's number */
    uint32_t group, rank;
    uint64_t session;    /* of the youngest attachment */
    struct list waiting; /* orders that have not been sent whole, the oldest first */
    unsigned n_open;     /* orders that have not been reported on */
};

struct order {
    struct list link; /* of orders.waiting, then of the worker's `sent` */
    struct list scheduler_link;
    struct orders *orders;
    struct peer *worker;
    struct peer *scheduler; /* NULL: it is gone, and nobody will be told */
    uint32_t request;       /* the scheduler's, and its number of the region */
    uint32_t region;
    uint32_t id;         /* on the worker's connection */
    struct grant *grant; /* of a Map that was begun and is not acknowledged */
    bool maps;
    bool is_sent; /* whole */
    bool leased;  /* its extents are still in the scheduler's lease */
    uint64_t session, number;
    size_t n_pages;
    uint64_t pages[];
};

/* Handlers of messages: see request.h. */
int orders_map(struct peer *peer, struct message *message);
int orders_unmap(struct peer *peer, struct message *message);
int orders_done(struct peer *peer, struct message *message);

/* A region of a worker that has just been opened; whoever waits for it is answered. 0 or -ENOMEM. */
int orders_open(struct peer *peer, uint32_t region, uint32_t group, uint32_t rank);

/* One that is about to be closed. What was granted is sent, and what was sent stays to be reported on. */
void orders_close(struct peer *peer, struct region *region);

/* Of Maps that were begun and are not reported on. */
uint64_t orders_pages(const struct region *region);

/* The open region of a worker of the peer's instance. NULL: there is none. */
struct orders *orders_find(const struct peer *peer, uint32_t group, uint32_t rank);
void orders_unref(struct orders *orders); /* NULL is fine */

/* For grants: sends the next so many of its extents; the last of them are sent; the broker has refused. */
void orders_send_part(const struct order *order, unsigned n, struct fdset *fds);
void orders_sent(struct order *order);
void orders_refused(struct order *order, int broker_error, uint64_t bytes);

/* The worker's socket has room again. */
void orders_resume(struct peer *peer);

/* The peer's connection is gone: as a scheduler it leaves its orders behind, as a worker it refuses them. */
void orders_end_all(struct peer *peer);
