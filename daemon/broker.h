/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Broker: pool, ledger, policy and reclaim as one pure state machine. It decides who gets which extent and
 * which driver calls are to be made; it makes none, reads no clock and knows no socket. The server feeds it
 * events and carries out the actions that it returns, so that all of it can be replayed, model-tested and
 * fuzzed.
 *
 * Extents are named by 64-bit ids (generation << 32 | index), which never repeat; the lower half indexes
 * tables that the server keeps beside (handles, descriptors). Time is CLOCK_MONOTONIC nanoseconds, handed in.
 *
 * Life of an extent:
 *     creating → pool (cold ⇄ warm) → granted → pool, coloured by its trust domain
 *     pool (warm) → leased → granted         set aside for a region; or back to the pool, as it was
 *     pool → destroying → gone               destroying ends when the driver's free memory confirms it
 *     granted → limbo → destroying → gone    of a lost peer: never used again
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "histogram.h"
#include "ledger.h"
#include "wire/lease.h"

#define BROKER_CLASSES_MAX 8
#define BROKER_NAME_MAX 64    /* of an instance, without NUL */
#define BROKER_DOMAIN_MAX 511 /* of a trust domain; a container has its control group in it */
#define BROKER_REQUEST_EXTENTS_MAX 65536

enum {
    _BROKER_E_SUCCESS,
    BROKER_E_LIMIT,    /* the instance's limit cannot hold it */
    BROKER_E_BUDGET,   /* the daemon's budget cannot hold it */
    BROKER_E_DRIVER,   /* the driver gave less than budget and limit would have allowed */
    BROKER_E_FROZEN,   /* an administrator froze the instance */
    BROKER_E_IDENTITY, /* the name was opened by somebody else of the same domain */
    BROKER_E_NOT_HELD, /* an extent is not granted to this peer */
    BROKER_E_INVALID,  /* out of range */
    BROKER_E_HAS_PEERS,
    BROKER_E_NOT_FOUND,
    BROKER_E_NOT_LEASED,  /* a lease has not issued so much, or is closed: frozen, or its peer lost */
    BROKER_E_DESCRIPTORS, /* leases hold as many descriptors as they may */
    _BROKER_E_N,
};

struct broker_config {
    uint64_t total_bytes; /* of the device */
    unsigned n_classes;   /* smallest first; each a multiple of the one before and of the granularity */
    uint64_t class_bytes[BROKER_CLASSES_MAX];
    uint64_t budget_bytes;    /* fixed; 0: utilization × total − foreign */
    uint32_t utilization_ppm; /* millionths; without a fixed budget */
    uint64_t headroom_bytes;  /* of the driver's free memory that creates never touch */
    uint64_t reserve_bytes;   /* upper bound of what is kept ready per class for demand that is expected */
    unsigned
        warm_max; /* extents whose descriptors the daemon may hold at once, in the pool and for requests */
    unsigned lease_max;      /* extents that leases may hold besides, each with its descriptor */
    unsigned creating_max;   /* creates under way at once */
    uint64_t idle_ns;        /* without grants and returns for so long, the pool is given back */
    uint64_t look_ns;        /* between two looks at free memory while something depends on them */
    uint64_t budget_rise_ns; /* a larger budget must have been stable for so long */
    uint64_t patience_ns;    /* a request that the driver cannot satisfy for so long is refused */
    uint64_t notice_ns;      /* in which a notice about a limit should be met */
    uint64_t courtesy_ns;    /* in which one about others' needs should be answered */
};

enum broker_limit_source { /* as LimitSource of the protocol, strongest first */
                           BROKER_LIMIT_ADMIN = 1,
                           BROKER_LIMIT_CONFIG = 2,
                           BROKER_LIMIT_ENGINE = 3,
                           BROKER_LIMIT_BUDGET = 4,
};

struct broker;
struct broker_domain;
struct broker_lease; /* of a peer and one of its regions */

/* Fields are for reading. */
struct broker_instance {
    struct list link; /* of the broker's instances, in order of creation */
    struct list dirty_link;
    struct list peers;        /* broker_peer.link, lost ones included */
    struct list leases;       /* of its peers, those with something issued, longest unused first */
    struct list reservations; /* admitted and not ended, in that order */
    struct list pressed_link; /* while a notice about its limit runs */
    uint64_t pressed_ns;      /* when that ends */
    uint32_t n_undecided;     /* requests that its limit doesn't hold */
    uint32_t n_hopeful;       /* requests that limit or budget don't hold */
    uint64_t touched;         /* when anything about it has changed, as the broker counts such changes */
    uint32_t n_set_aside;     /* extents that leases have or wait for */
    uint64_t reserved_bytes;  /* what its reservations have left for its requests */
    struct broker_domain *domain;
    char name[BROKER_NAME_MAX + 1];
    uint64_t identity;                                  /* of who opened it; opaque */
    uint64_t serial;                                    /* grows; never repeats */
    uint64_t total_granted_bytes, total_returned_bytes; /* since it was made */
    uint64_t n_refused;                                 /* requests, likewise */
    bool has_limit[5];                                  /* by source; BUDGET is always there */
    uint64_t limit_of[5];
    struct ledger_account account; /* .bytes[LEDGER_GRANTED] and so on; broker_used() is the sum */
    bool frozen;
    bool missed; /* it was asked to meet its limit and has not, so far */
    void *owner; /* the server's */
};

struct broker_peer {
    struct list link;    /* of its instance */
    struct list extents; /* granted or limbo */
    struct list requests;
    struct list leases;
    struct broker_instance *instance;
    bool lost;
    bool schedules;      /* pages of its instance's workers */
    bool obeys;          /* a worker: what it holds is its scheduler's to give */
    bool controls;       /* reserves for the others, and holds nothing */
    uint64_t held_bytes; /* granted + limbo */
    uint64_t held_ns;    /* since when there are some */
    uint64_t issued_ns;  /* the same of its leases */
    uint64_t lost_ns;    /* when it was lost */
    uint32_t n_extents;
    uint32_t n_issued; /* pages of its leases */
    void *owner;

    /* Notices. */
    struct list listener_link; /* of all that can be sent some */
    struct list notice_link;   /* while one is to be sent, or is waited for */
    bool listens;
    bool noticed;            /* one is sent and not acknowledged */
    bool missed;             /* it let one's time pass; nobody waits for it */
    uint32_t notice_number;  /* of the last one sent */
    uint64_t notice_ns;      /* until when it is waited for */
    uint64_t notice_bytes;   /* of the last one */
    uint64_t asked_bytes;    /* by it, and not given so far */
    uint64_t asked_serial;   /* of the last need for which it was, or is to be, asked */
    uint64_t hinted_bytes;   /* what it could have given then */
    uint64_t courtesy_bytes; /* of the next notice */
    uint64_t limit_bytes;
};

enum broker_request_state {
    BROKER_REQUEST_UNDECIDED, /* limit or budget don't hold it; others have been asked to give back */
    BROKER_REQUEST_PARKED,    /* waits until the daemon may hold as many descriptors more */
    BROKER_REQUEST_WAITING,   /* collects extents */
    BROKER_REQUEST_PREPARING, /* reserves; until what is expected of others is free for them */
    BROKER_REQUEST_READY,     /* has it all; its GRANT action, or the like, comes next */
    BROKER_REQUEST_REFUSED,   /* its REFUSE action comes next */
    BROKER_REQUEST_ANSWERED,  /* the action is out; broker_request_free() is due */
};

/* A request for extents. From its GRANT action until broker_request_free() the extents are in `extents`,
 * largest class first. */
struct broker_request {
    enum broker_request_state state;
    struct list link;         /* of its domain's queue, or of the answers to give */
    struct list arrival_link; /* of all unanswered ones, oldest first */
    struct list stall_link;   /* of those that nothing under way can help */
    struct list peer_link;
    struct broker_peer *peer;    /* NULL after its death */
    struct broker_lease *lease;  /* that is to have the extents; NULL: the peer */
    uint32_t pages;              /* of the lease */
    bool courtesy;               /* gives way to every other need */
    bool promised;               /* comes out of a lease */
    bool reserves;               /* bytes, and no extents; held until broker_request_free() */
    uint64_t serial;             /* of the need, while undecided */
    struct ledger_charge charge; /* what is promised */
    uint64_t bytes;
    uint64_t drawn_bytes;   /* of these, what reservations have left to it */
    uint64_t foreign_bytes; /* expected of others, by one that reserves */
    uint32_t counts[BROKER_CLASSES_MAX];
    uint32_t n_extents; /* wanted */
    uint32_t ready[BROKER_CLASSES_MAX];
    uint32_t n_ready; /* earmarked so far */
    uint64_t *extents;
    uint64_t since_ns;
    uint64_t stalled_ns; /* while undecided: since when others are waited for, in this round */
    bool asks_all;       /* in the second */
    uint64_t judged_touches;
    int error; /* while undecided: what doesn't hold it */
    bool granted;
    void *owner;
};

enum broker_action_type {
    BROKER_ACTION_CREATE,    /* extent_index, class_index → broker_created() */
    BROKER_ACTION_EXPORT,    /* → broker_exported() */
    BROKER_ACTION_DESTROY,   /* release handle, close descriptor → broker_destroyed() */
    BROKER_ACTION_LOOK,      /* read free memory → broker_look(), always; one at a time */
    BROKER_ACTION_GRANT,     /* all extents are warm: hand them over, then broker_request_free() */
    BROKER_ACTION_REFUSE,    /* of a request that had been accepted: `error`; then broker_request_free() */
    BROKER_ACTION_RESERVED,  /* the request is held from now on, until broker_request_free() */
    BROKER_ACTION_STATUS,    /* limit, use or flags of an instance changed */
    BROKER_ACTION_LEASE,     /* what a lease asked for is offered: say so, then broker_request_free() */
    BROKER_ACTION_NOTICE,    /* to `peer`: number, bytes, deadline_ns, courtesy */
    BROKER_ACTION_SCRIBBLED, /* over a lease of `peer`, which is frozen now; once for each lease */
    BROKER_ACTION_FORGET,    /* an instance goes with the next call: let go of its owner pointer */
};

struct broker_action {
    enum broker_action_type type;
    uint64_t extent;
    unsigned class_index;
    int error;
    struct broker_request *request;
    struct broker_instance *instance;
    struct broker_peer *peer;
    uint32_t number;      /* to be named by broker_notice_acked() */
    uint64_t bytes;       /* that the peer should give back */
    uint64_t deadline_ns; /* from now */
    bool courtesy;
};

/* Since the broker was made. */
struct broker_counters {
    uint64_t n_grants, n_granted_extents, granted_bytes;
    uint64_t n_leases, leased_bytes;
    uint64_t n_reservations;
    uint64_t n_returned_extents, returned_bytes;
    uint64_t n_refused[_BROKER_E_N];    /* by error; but for those out of courtesy */
    uint64_t n_notices[2], n_missed[2]; /* about limits, and out of courtesy */
    struct histogram waits;             /* of requests that were satisfied, until they were */
};

struct broker_totals {
    uint64_t total_bytes, free_bytes, foreign_bytes, budget_bytes, headroom_bytes;
    uint64_t creating_bytes, pool_bytes, warm_bytes, granted_bytes, leased_bytes, limbo_bytes,
        destroying_bytes;
    uint64_t held_bytes; /* creating + pool (warm is part of it) + granted + leased + limbo + destroying */
    uint64_t reserved_bytes, expected_bytes; /* by reservations: of the budget, and of others */
    unsigned n_instances, n_peers;
};

/* -EINVAL for a configuration that makes no sense, -ENOMEM. */
int broker_new(const struct broker_config *config, uint64_t free_bytes, uint64_t now_ns, struct broker **ret);

/* Asserts that no peer is left, and no extent but such as await nothing but confirmation. */
struct broker *broker_free(struct broker *broker);
DEFINE_CLEANUP(struct broker *, broker_free);

/* Takes the next thing to do. Call after every event until false: until then nothing but the answers is
 * settled. Order: grants, leases, reservations and refusals, what is reported of leases, status, notices,
 * exports, creates, looks, destroys. */
bool broker_next_action(struct broker *broker, struct broker_action *ret);

/* When broker_tick() wants to be called next; UINT64_MAX: only after another event. */
uint64_t broker_deadline(const struct broker *broker);
void broker_tick(struct broker *broker, uint64_t now_ns);

/* ---- Instances and peers ---- */

/* Joins or creates an instance. `identity` distinguishes who opened it (uid and the like). A new instance
 * starts with the given limits (source indexed; UINT64_MAX: none). 0, BROKER_E_IDENTITY, BROKER_E_FROZEN,
 * -ENOMEM. */
int broker_peer_new(struct broker *broker, const char *domain, const char *name, uint64_t identity,
                    const uint64_t limits[static 5], struct broker_peer **ret);

/* The same for one who only reserves for an instance: it neither sets the identity of who opened it, nor is
 * held to it. Of `limits` those count that are not the engine's own. */
int broker_controller_new(struct broker *broker, const char *domain, const char *name,
                          const uint64_t limits[static 5], struct broker_peer **ret);

/* The connection is gone, the process may live. Its requests end (their owners are not told; those whose
 * action was taken stay valid until broker_request_free()), what it holds goes to limbo. */
void broker_peer_lost(struct broker *broker, struct broker_peer *peer, uint64_t now_ns);

/* The process is proven dead (implies lost), or alive but holding nothing: everything of it is destroyed; the
 * peer is freed. */
void broker_peer_dead(struct broker *broker, struct broker_peer *peer, uint64_t now_ns);

struct broker_instance *broker_instance_find(struct broker *broker, const char *domain, const char *name);
struct broker_instance *broker_instance_next(struct broker *broker, struct broker_instance *previous_or_null);
const char *broker_domain_name(const struct broker_domain *domain);

/* Sets or (UINT64_MAX) removes the limit of one source, at once: requests that wait and no longer fit are
 * refused. With BROKER_LIMIT_ADMIN and no such instance, creates a record that lists the limit.
 * BROKER_E_NOT_FOUND, BROKER_E_INVALID, -ENOMEM. */
int broker_set_limit(struct broker *broker, const char *domain, const char *name,
                     enum broker_limit_source source, uint64_t bytes);

/* In force: the strongest source, capped by the budget. */
uint64_t broker_limit(const struct broker *broker, const struct broker_instance *instance,
                      enum broker_limit_source *ret_source);
uint64_t broker_used(const struct broker_instance *instance);
uint64_t broker_budget(const struct broker *broker);
uint64_t broker_over_budget(const struct broker *broker); /* used by all instances, and above it */

/* Forgets an instance without peers and its limit. 0 or BROKER_E_HAS_PEERS. Bytes that still are on their way
 * out stay charged to it, unlisted limit aside. */
int broker_instance_delete(struct broker *broker, struct broker_instance *instance);
void broker_instance_freeze(struct broker *broker, struct broker_instance *instance);

/* ---- Memory ---- */

/* Asks for extents: all or nothing, in any number of classes. 0: an action will answer *ret (perhaps at
 * once): a REFUSE with BROKER_E_LIMIT or _BUDGET where others were asked to give back and didn't.
 * BROKER_E_LIMIT, BROKER_E_BUDGET, BROKER_E_FROZEN, BROKER_E_DRIVER (draining), BROKER_E_INVALID
 * (none, or more than warm_max at once): refused, nothing has changed. -ENOMEM. */
int broker_take(struct broker *broker, struct broker_peer *peer,
                const uint32_t counts[static BROKER_CLASSES_MAX], uint64_t now_ns,
                struct broker_request **ret);

/* After a GRANT or REFUSE action has been carried out; the descriptors of what was granted are closed by
 * then, and only then can the extents be returned. Before that it withdraws the request. */
struct broker_request *broker_request_free(struct broker *broker, struct broker_request *request);

/* The same for one that was granted, but its `extents` are the caller's now, to be freed. */
uint64_t *broker_request_keep_extents(struct broker *broker, struct broker_request *request);

/* Gives extents back. All or nothing: 0 or BROKER_E_NOT_HELD (also for one named twice). */
int broker_return(struct broker *broker, struct broker_peer *peer, const uint64_t *extents, size_t n,
                  uint64_t now_ns);

/* ---- Leases and notices ---- */

/* `page_counts`: extents of each class in a page of the region. `line`: shared memory, zero, that outlives
 * the lease. -ENOMEM, BROKER_E_INVALID. */
int broker_lease_new(struct broker *broker, struct broker_peer *peer,
                     const uint32_t page_counts[static BROKER_CLASSES_MAX], struct lease_line *line,
                     struct broker_lease **ret);

/* What is issued returns to the pool, what was asked for is refused. A lease outlives its peer, empty. */
struct broker_lease *broker_lease_free(struct broker *broker, struct broker_lease *lease);

/* Asks for pages, to be offered. As broker_take(): 0, and a LEASE or REFUSE action for *ret; else refused
 * now, also with BROKER_E_NOT_LEASED, _DESCRIPTORS. With `courtesy` nobody is to give back anything for it,
 * or to wait: it is refused, or gives way later (with BROKER_E_BUDGET), when anybody else needs something. */
int broker_lease_ask(struct broker *broker, struct broker_lease *lease, uint32_t pages, bool courtesy,
                     uint64_t now_ns, struct broker_request **ret);

/* Grants pages out of the lease to `holder`, a peer of the same instance: a GRANT action follows at once.
 * They must have been claimed and taken off the word before. BROKER_E_NOT_LEASED, _FROZEN, _INVALID, _DRIVER
 * (draining), -ENOMEM. */
int broker_lease_take(struct broker *broker, struct broker_lease *lease, struct broker_peer *holder,
                      uint32_t pages, uint64_t now_ns, struct broker_request **ret);

/* As many pages as were claimed and taken off the word, at most, are not asked for after all: they are the
 * pool's again. */
void broker_lease_forgo(struct broker *broker, struct broker_lease *lease, uint32_t pages, uint64_t now_ns);

uint32_t broker_lease_pages(const struct broker_lease *lease); /* issued */
bool broker_lease_is_frozen(const struct broker_lease *lease); /* somebody has scribbled over its word */

/* The peer can be sent notices. One that schedules is asked for what its instance's workers hold, who obey
 * it: they are asked only while there is none. To be called once. */
void broker_peer_listens(struct broker *broker, struct broker_peer *peer, bool schedules, bool obeys);

/* The peer has given back what it can by itself. A number other than the last one's means nothing. */
void broker_notice_acked(struct broker *broker, struct broker_peer *peer, uint32_t number, uint64_t now_ns);

/* What it should give back: what it has been asked for and has not given so far, or is over its limit. */
uint64_t broker_pressure(const struct broker_instance *instance);

/* ---- Reservations ---- */

/* Reserves bytes for what the peer's instance asks for next, and counts on others to take `foreign_bytes`
 * more of the device meanwhile: both are promised, or nothing is. 0: an action will answer *ret: RESERVED,
 * and it is held until broker_request_free() or the peer is lost, or REFUSE: as broker_take(), and with
 * BROKER_E_DRIVER where the foreign bytes did not come free in time. One of a peer at a time, and of
 * something: else BROKER_E_INVALID. -ENOMEM. */
int broker_reserve(struct broker *broker, struct broker_peer *peer, uint64_t bytes, uint64_t foreign_bytes,
                   uint64_t now_ns, struct broker_request **ret);

/* ---- The end ---- */

/* Starts to let go of the whole pool and accepts no more requests (BROKER_E_DRIVER): for shutdown. */
void broker_drain(struct broker *broker, uint64_t now_ns);

/* Changes what a reload may change: budget, utilization, headroom, reserve, idle. */
void broker_reconfigure(struct broker *broker, const struct broker_config *config, uint64_t now_ns);

/* ---- Answers to actions ---- */

void broker_created(struct broker *broker, uint64_t extent, bool ok, uint64_t now_ns);
void broker_exported(struct broker *broker, uint64_t extent, bool ok, uint64_t now_ns);

/* `freed_bytes`: by how much the driver's free memory was seen to rise with it, 0 where nobody looked. All of
 * the extent is its confirmation; less proves nothing, and looks have to. */
void broker_destroyed(struct broker *broker, uint64_t extent, uint64_t freed_bytes, uint64_t now_ns);

/* What the driver says is free. The server reports looks, creates and destroys in the order in which the
 * driver carried them out, so a reading includes exactly what was reported before it. */
void broker_look(struct broker *broker, uint64_t free_bytes, uint64_t now_ns);

/* It doesn't say; the look goes on until it does. Without one nothing is created, so what waits for that is
 * refused after some patience. */
void broker_look_failed(struct broker *broker, uint64_t now_ns);

void broker_totals(const struct broker *broker, struct broker_totals *ret);
const struct broker_counters *broker_counters(const struct broker *broker);

/* What a peer says of what it was granted, as far as that can be true; together no more than it holds. */
struct broker_words {
    uint64_t cached_bytes; /* free pages that it keeps */
    uint64_t pinned_bytes; /* what it cannot return */
};

/* Of all peers of an instance, begin and then next for each. *spoken_bytes is what its schedulers say of
 * their workers' memory, and that no worker was told of yet. */
uint64_t broker_words_begin(struct broker *broker, const struct broker_instance *instance);
struct broker_words broker_words_next(struct broker *broker, const struct broker_peer *peer,
                                      uint64_t *spoken_bytes);
struct broker_words broker_instance_words(struct broker *broker, const struct broker_instance *instance);

/* Set aside for its regions. */
uint64_t broker_peer_leased(const struct broker_peer *peer);

/* What its undecided requests ask for. */
uint64_t broker_wanted(const struct broker_instance *instance);

/* Recomputes every sum from the extents and compares: invariants 1, 2, 4, 5. NULL, or a sentence about the
 * first that fails. For tests and fuzzers; O(extents). */
const char *broker_check(const struct broker *broker);
