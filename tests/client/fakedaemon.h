/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A daemon for tests of the library alone: a child process that lends memory of the emulated driver over a
 * real socket, says how much it has lent, and breaks the protocol in a given way when it is told to. It
 * trusts its clients and has no policy beyond one limit.
 */

#include <stdbool.h>
#include <stdint.h>

#include "wire/codec.h"

struct fake;

struct fake_settings {
    uint64_t total_bytes;    /* 0: 1 GiB */
    uint64_t told_total;     /* said in Welcome; 0: the truth */
    uint64_t limit_bytes;    /* 0: the total */
    uint64_t class_bytes[4]; /* 0, ...: 2 and 8 MiB */
    unsigned take_max;       /* extents of one Take, Lease or Map; 0: any number */
    unsigned lease_max;      /* extents in all leases; 0: any number */
    const char *uuid;        /* said in Welcome; NULL: the truth */
    bool falling_uuids;      /* each peer is told one that comes before those of the peers before it */
    bool even;               /* workers' regions all have the same number of pages */
    bool leases;             /* knows leases and notices */
    bool orders;             /* knows schedulers and workers; else it is an old daemon */
    bool reservations;       /* knows controllers */
};

enum fake_lie {
    FAKE_HONEST,
    FAKE_GARBAGE,       /* bytes without sense */
    FAKE_BAD_LENGTH,    /* a header that is wrong about its body */
    FAKE_BAD_BODY,      /* a body that is no protobuf */
    FAKE_BAD_VERSION,   /* another version in the header */
    FAKE_UNKNOWN_TYPE,  /* a message that doesn't exist */
    FAKE_WRONG_TYPE,    /* an answer to another question */
    FAKE_WRONG_ID,      /* an answer to nobody's question */
    FAKE_UNASKED,       /* request id 0, no Refused */
    FAKE_EXTRA_FD,      /* one descriptor more than announced */
    FAKE_MISSING_FD,    /* one descriptor less than announced */
    FAKE_NO_FDS,        /* announced none, sent none */
    FAKE_NOT_MEMORY,    /* descriptors of something else */
    FAKE_SMALL_EXTENTS, /* of the smallest class, whatever was wanted */
    FAKE_TOO_MANY,      /* more extents than wanted */
    FAKE_TOO_FEW,       /* an answer that ends before it is complete */
    FAKE_NO_EXTENTS,    /* an empty grant */
    FAKE_SILENCE,       /* no answer, now or later */
    FAKE_LATE,          /* the answer comes with fake_release() */
    FAKE_DISCONNECT,
    FAKE_LAST_WORD,     /* Refused with request id 0, then end-of-file */
    FAKE_REFUSE,        /* ERROR_RESOURCES */
    FAKE_REFUSE_WORKER, /* ERROR_WORKER */
    FAKE_WORKER_GONE,   /* ERROR_WORKER, for ever: at a Map or Unmap */
    FAKE_REFUSE_VERSION,
    FAKE_BAD_WELCOME, /* a GPU with no memory */
    FAKE_BAD_STATUS,  /* a status page that can be shortened */
    FAKE_CHALLENGE,   /* asks for a proof first; not a lie */
    FAKE_CHALLENGE_TWICE,
    FAKE_OTHER_LEASE, /* another number of pages than was asked for */
    FAKE_FORGET,      /* an offer that is not in the word */
    FAKE_NOISE, /* some bytes are others; from then on nothing that the client sends is held against it */
    FAKE_LIES,
};

#define FAKE_ASKERS 8

struct fake_counts {
    uint64_t peers;
    uint64_t regions;
    uint64_t extents; /* lent */
    uint64_t bytes;
    uint64_t takes, returns;     /* messages so far */
    uint64_t late;               /* answers held back */
    uint64_t unacknowledged;     /* grants and orders */
    uint64_t leases;             /* messages so far */
    uint64_t courtesies;         /* of them */
    uint64_t leased_takes;       /* messages so far, and leased Maps */
    uint64_t issued;             /* pages in leases */
    uint64_t acks;               /* of notices */
    uint64_t cached, pinned;     /* as the lease lines say, over all regions */
    uint64_t maps, unmaps;       /* of schedulers */
    uint64_t mapped;             /* pages at their workers */
    uint64_t reserves, releases; /* messages so far */
    uint64_t reserved, foreign;  /* bytes */
    uint64_t orders_done;        /* by workers */
    uint64_t lent_at_done;       /* extents, when the latest order was said to be done */
    int order_error;             /* said with it: Kvcached__Error */
    char order_reason[200];
    unsigned askers[FAKE_ASKERS]; /* who sent the first Leases: peers, counted as they said Hello */
};

#define FAKE_ORDER_PAGES 8

/* An order to a worker, with memory if it is one to map. */
struct fake_order {
    bool map;
    uint64_t session, number;
    uint64_t pages[FAKE_ORDER_PAGES];
    size_t n;
    unsigned packet_max; /* extents in a packet; 0: 64 */
    bool hold;           /* what comes behind its first packet comes with fake_release() */
    uint32_t region;     /* added to the true number */
    enum fake_lie lie;   /* told with its first packet */
};

/* In the test's folder; one at a time. Fails the test where it cannot start. */
struct fake *fake_start(const struct fake_settings *settings);

/* Ends it. */
void fake_stop(struct fake *fake);

const char *fake_socket(const struct fake *fake);

/* The next message of a type is answered with a lie; the ones after it honestly again. */
void fake_lie(struct fake *fake, enum fake_lie lie, enum message_type at);

/* The same for a later message of the type, after some that are answered honestly. */
void fake_lie_after(struct fake *fake, enum fake_lie lie, enum message_type at, unsigned after);

/* Orders the first worker that has opened a region for that. */
void fake_order(struct fake *fake, const struct fake_order *order);

/* Sends what was held back. */
void fake_release(struct fake *fake);

void fake_set_limit(struct fake *fake, uint64_t bytes);

/* Sends a notice to every peer that has acknowledged the last one. */
void fake_notice(struct fake *fake, uint64_t bytes, uint32_t deadline_ms, bool courtesy);

/* What the status page shows as asked for. */
void fake_press(struct fake *fake, uint64_t bytes);

/* Withdraws up to `pages` offers of every lease. */
void fake_withdraw(struct fake *fake, uint64_t pages);

/* Writes nonsense into every lease word: more than was issued. */
void fake_scribble(struct fake *fake);
struct fake_counts fake_count(struct fake *fake);

/* For SIGSTOP and SIGKILL. */
int fake_pid(const struct fake *fake);
