/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the parts of the fake daemon share.
 */

#include "base/list.h"
#include "cuda/driver.h"
#include "fakedaemon.h"
#include "fakewire.h"
#include "test.h"
#include "wire/lease_file.h"
#include "wire/status.h"

#define PEERS_MAX 16
#define CLASSES_MAX 4
#define REGIONS_MAX 64
#define HELD_MAX 16
#define PUT_OFF_MAX 16

struct lent {
    struct list link;
    uint64_t id;
    unsigned class;
    int fd;
    bool sent;
    uint64_t *held; /* of the region; NULL: of none */
    CUmemGenericAllocationHandle handle;
};

/* An answer to Take, sent packet by packet. */
struct grant {
    struct list link;
    uint32_t request;
    bool held; /* until fake_release() */
    uint64_t n_left;
    struct list extents; /* struct lent, unsent */
    bool is_order;       /* not a grant, but this order to map */
    struct fake_order order;
};

/* A scheduler's region, whose worker is played by this daemon. */
struct attached {
    bool open;
    uint32_t rank;
    uint64_t number; /* of the latest Map or Unmap */
    uint64_t mapped; /* bit by page */
};

/* An answer that waits for fake_release(). */
struct held {
    int fd;
    uint16_t type;
    uint32_t request;
};

/* A Lease that is looked at with fake_release(). */
struct wish {
    uint32_t request, region, pages;
};

struct peer {
    int fd;
    bool awaits_ack;
    uint32_t hello;  /* of a challenged peer */
    unsigned number; /* as they said Hello */
    struct list grants;
    struct list extents; /* lent */
    uint32_t regions[REGIONS_MAX][CLASSES_MAX];
    uint64_t capacity[REGIONS_MAX]; /* extents */
    uint64_t held[REGIONS_MAX];     /* extents: lent, or on their way */
    bool region_open[REGIONS_MAX];
    bool region_ordered[REGIONS_MAX];
    struct attached attached[REGIONS_MAX];
    bool has_leases;
    struct lease_line *lines;
    uint32_t issued[REGIONS_MAX]; /* pages: offered, claimed, or on their way */
    uint32_t notices, acks;       /* of them */
    uint32_t last_done;           /* order */
    struct wish wishes[HELD_MAX];
    unsigned n_wishes;
    bool reserves;
    uint32_t reserve; /* is to be answered with fake_release(); 0: none */
};

struct daemon {
    struct fake_settings settings;
    char devices[96];
    char uuid[CUDA_UUID_MAX];
    struct cuda_driver *driver;
    CUdevice device;
    struct status_page *status;
    int status_fd, listener, control;
    unsigned n_classes;
    uint64_t last_id, limit, used, pressure;
    unsigned n_welcome;
    enum fake_lie lie;
    uint16_t lie_at;
    unsigned lie_after; /* messages of the type that are answered honestly before */
    bool noisy;         /* the client may be confused, and through no fault of its own */
    unsigned n_put_off; /* turns since the test could have been heard */
    struct fake_counts counts;
    uint32_t last_order; /* request ids of orders */
    uint64_t last_session;
    struct held held[HELD_MAX];
    unsigned n_held;
    struct peer *peers[PEERS_MAX];
};

/* ---- fakeanswers.c ---- */

void show_status(struct daemon *d);

/* Makes an extent, charged and in no list. */
struct lent *lend(struct daemon *d, unsigned class);

/* A message of the peer's, as it deserves or as the test has said. */
void answers_message(struct daemon *d, struct peer *peer, const struct message *m);

/* The next packet of the peer's oldest grant, unless one is unacknowledged. */
void answers_send_grants(struct daemon *d, struct peer *peer);

/* Sends what was held back. */
void answers_release(struct daemon *d, struct peer *peer);

/* The peer is gone: so is what it has, and what it waits for. */
void answers_end(struct daemon *d, struct peer *peer);

/* ---- fakeleases.c ---- */

/* Messages about leases and notices. False: it is none. */
bool leases_message(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie);

/* Takes pages that the client has spent out of a lease. False: they are not there. */
bool end_lease(struct daemon *d, struct peer *peer, uint32_t region, uint32_t pages);

/* Extents of so many pages. */
uint64_t extents_of(const struct daemon *d, const struct peer *peer, uint32_t region, uint64_t pages);

/* Up to so many pages of what each region is offered. */
void leases_withdraw(struct daemon *d, uint32_t pages);

/* All that is offered, unless there is room for so much without. */
void leases_withdraw_if_short(struct daemon *d, uint64_t bytes);

void leases_close_region(struct daemon *d, struct peer *peer, uint32_t region);

/* Looks at what was held back. */
void leases_release(struct daemon *d, struct peer *peer);

/* The peer is gone. */
void leases_end(struct daemon *d, struct peer *peer);

/* Those that have acknowledged the last notice get another. */
void leases_notify(struct daemon *d, uint64_t bytes, uint32_t deadline_ms, bool courtesy);

void leases_scribble(struct daemon *d);
void leases_count_hints(struct daemon *d);

/* ---- fakereservations.c ---- */

/* Messages of controllers. False: it is none. */
bool reservations_message(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie);

/* Sends what was held back. */
void reservations_release(struct daemon *d, struct peer *peer);

/* Nothing of the peer's is reserved any more. */
void reservations_end(struct daemon *d, struct peer *peer);

/* ---- fakeorders.c ---- */

/* Messages of schedulers, and of workers about orders. False: it is none. */
bool orders_message(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie);

/* What a scheduler asks, before anybody lies about it. */
void orders_note(struct daemon *d, struct peer *peer, const struct message *m);

/* What a refused Map has spent is in no lease any more. */
void orders_forgo(struct daemon *d, struct peer *peer, const struct message *m);

/* Refuses a Map or Unmap: the worker is gone, with all that was mapped there. */
void orders_lose_worker(struct daemon *d, struct peer *peer, const struct message *m);

/* The next packet of an order to map. */
void orders_send_packet(struct peer *peer, struct grant *grant, uint64_t *ids, const int *fds, unsigned n);

/* To the first worker that has opened an ordered region. */
void orders_give(struct daemon *d, const struct fake_order *order);

/* An answer that comes with fake_release(). */
void orders_hold(struct daemon *d, struct peer *peer, uint16_t type, uint32_t request);

void orders_release(struct daemon *d);
