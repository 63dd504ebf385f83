/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the parts of the broker share: broker.c (construction, actions and their answers), lending.c (take and
 * return), admission.c (who may have what), leases.c (what is set aside), reservations.c (what is promised to
 * whatever comes), notices.c (who is asked to give back), members.c (domains, instances, peers, limits),
 * queue.c (requests that wait, and their extents), supply.c (what is ordered from the driver for them),
 * words.c (what peers say of what they hold) and audit.c (the check of all of it).
 */

#include "broker.h"
#include "policy.h"
#include "pool.h"

struct broker_domain {
    struct list link;        /* of the broker's */
    struct list hungry_link; /* while it misses extents that are not on their way */
    struct list parked_link; /* while some of its requests are parked */
    struct list queue;       /* of waiting requests */
    struct list parked;
    struct pool_shelf shelf;
    uint32_t wanted[BROKER_CLASSES_MAX];    /* missing to waiting and parked requests */
    uint32_t missing[BROKER_CLASSES_MAX];   /* missing to waiting requests */
    uint32_t incoming[BROKER_CLASSES_MAX];  /* being created or exported for it */
    uint32_t exporting[BROKER_CLASSES_MAX]; /* of these */
    uint32_t n_incoming;
    uint64_t deficit_bytes; /* of the round robin of creates */
    uint64_t retry_ns;      /* after a failure of the driver */
    uint32_t n_set_aside;   /* of its instances */
    unsigned n_instances;
    char name[BROKER_DOMAIN_MAX + 1];
};

struct broker_lease {
    struct list link; /* of its peer */
    /* While something is issued, longest unused first: of the broker, and of the instance. */
    struct list issued_link, instance_link;
    struct list report_link;  /* of those whose scribble is to be reported */
    struct broker_peer *peer; /* NULL once it is lost */
    struct lease_line *line;
    uint32_t page_counts[BROKER_CLASSES_MAX];
    uint32_t page_extents;
    uint64_t page_bytes;
    uint32_t issued; /* pages */
    struct list extents[BROKER_CLASSES_MAX];
    bool frozen;
};

/* What others are expected to take of the device. It may outlive the reservation until the next look. */
struct expectation {
    struct list link; /* of the broker's; those that are held in the order in which they came to be */
    uint64_t foreign_bytes;
    uint64_t bytes; /* of these, what has not come so far */
    uint64_t look;  /* the first whose reading counts: before, it is neither to be relied on nor forgotten */
    bool held;      /* others may be taking it already */
    bool ended;
};

struct reservation {
    struct broker_request request;   /* first: it is freed as one */
    struct list link;                /* of its instance's, while it is admitted */
    struct expectation *expectation; /* NULL: none */
};

struct broker {
    struct broker_config config;
    struct pool pool;
    struct ledger ledger;
    struct policy_budget budget;
    struct policy_demand demand[BROKER_CLASSES_MAX];
    struct list domains, instances;
    unsigned n_instances, n_peers;
    uint64_t serial;

    struct list arrivals;       /* unanswered requests, oldest first */
    struct list stalled;        /* of these, longest first */
    struct list hungry, parked; /* domains */
    struct list undecided;      /* requests, oldest first */
    struct list hopeful;        /* of these, those that wait for others, longest first */
    uint32_t n_undecided;       /* of these, those that the budget doesn't hold */
    uint32_t n_needs;           /* requests that wait for extents, but for those out of courtesy */
    uint32_t n_courtesies;      /* admitted and not answered */
    uint64_t need_serial;
    uint64_t n_touches;       /* counts changes of any instance */
    uint64_t settled_touches; /* when undecided requests were judged last */

    struct list leases;    /* with something issued, longest unused first */
    struct list scribbled; /* leases */
    uint32_t n_leased;     /* extents */
    uint32_t n_leasing;    /* extents of admitted requests for leases */
    bool may_offer;        /* something may be offered that the last look at all leases has not seen */
    bool idle_told;        /* claims were asked for since the pool is idle */

    struct list listeners;  /* peers that can be sent notices */
    struct list due;        /* of these, those that are to be sent one */
    struct list awaited[2]; /* those whose acknowledgement is waited for, of limits and out of courtesy */
    struct list pressed;    /* instances that are to meet their limit */

    struct list preparing; /* requests that reserve, and wait for what is expected of others */
    struct list expectations;
    uint64_t expected_bytes;     /* of all */
    uint64_t foreign_base_bytes; /* what is above it has come since, for those that are held */
    uint64_t n_looks, looked;    /* how many were ordered, and the number of the last that was carried out */

    uint32_t n_active;  /* extents of waiting and ready requests */
    uint32_t n_sending; /* extents of granted requests that are not freed */
    uint64_t earmarked_bytes;
    uint32_t n_creating;        /* ordered and not answered */
    uint32_t n_exporting_ahead; /* of exports that no request waits for */
    uint32_t n_doomed;          /* ordered and not answered */
    uint32_t n_doomed_descriptors;
    struct list unconfirmed; /* extents, oldest first */
    uint64_t unconfirmed_bytes;
    uint64_t stuck_bytes; /* of them, what a look has not confirmed */

    struct list answers;                                   /* requests */
    struct list dirty;                                     /* instances */
    struct list exports, exports_ahead, creates, destroys; /* extents */
    struct list ahead; /* extents being created or exported for nobody in particular */
    bool look_wanted, looking;
    bool blind; /* the last look has failed */
    struct broker_instance *forgotten;

    bool draining;
    bool unsettled; /* but for answers that are ready */
    uint64_t now_ns;
    uint64_t looked_ns;
    uint64_t active_ns; /* last grant or return */
    struct broker_counters counters;
};

static inline struct broker_domain *request_domain(const struct broker_request *request)
{
    return request->peer->instance->domain;
}

static inline uint32_t request_missing(const struct broker_request *request, unsigned class_index)
{
    return request->counts[class_index] - request->ready[class_index];
}

/* ---- members.c ---- */

void instance_touch(struct broker *broker, struct broker_instance *instance);
bool instance_is_vain(const struct broker_instance *instance); /* nothing keeps it */
struct broker_instance *instance_free(struct broker *broker, struct broker_instance *instance);
void members_budget_changed(struct broker *broker); /* what no longer fits is refused, everybody told */
void domain_collect(struct broker *broker, struct broker_domain *domain);
struct broker_domain *shelf_domain(const struct broker *broker, struct pool_shelf *shelf); /* NULL: clean */

/* ---- admission.c ---- */

/* A new request: 0, and it is admitted or undecided; else refused. */
int admission_ask(struct broker *broker, struct broker_request *request);
void admission_forget(struct broker *broker, struct broker_request *request); /* an undecided one */
void admission_settle(struct broker *broker);

/* ---- leases.c ---- */

/* What is offered, of one instance or of all, but for one lease. What scribbled ones have given up counts. */
uint64_t leases_offered(struct broker *broker, struct broker_instance *instance_or_null,
                        const struct broker_lease *except_or_null);
/* Withdraws offers of at least so many bytes, as far as there are any. Returns how many. */
uint64_t leases_withdraw(struct broker *broker, struct broker_instance *instance_or_null,
                         const struct broker_lease *except_or_null, uint64_t bytes);
void leases_lose(struct broker *broker, struct broker_peer *peer);
bool leases_next_report(struct broker *broker, struct broker_action *ret);
/* Counts what is to be set aside for a request, or (negative) is not, or no longer. */
void lease_count(struct broker *broker, struct broker_instance *instance, int n_leased, int n_leasing);
/* May leases of that instance hold as many descriptors more? Others' offers are withdrawn for it, and claims
 * of its domain are asked for. */
bool leases_fit_descriptors(struct broker *broker, const struct broker_request *request);
uint64_t lease_claimed_bytes(struct broker *broker, struct broker_lease *lease);
/* What was taken off the word for a request that is refused returns to the pool. */
void lease_forgo(struct broker *broker, struct broker_lease *lease, uint32_t pages);
/* Taken off the word, and not asked for so far. */
uint64_t lease_spent_bytes(struct broker *broker, struct broker_lease *lease);
bool lease_is_open(struct broker *broker, struct broker_lease *lease);
/* What a ready request has collected is issued and offered. */
void lease_receive(struct broker *broker, struct broker_request *request);
int lease_may_take(struct broker *broker, struct broker_lease *lease, const struct broker_peer *holder,
                   uint32_t pages);
/* Moves pages of the lease into a new request. */
void lease_fill_request(struct broker *broker, struct broker_lease *lease, struct broker_request *request);

/* ---- reservations.c ---- */

/* What doesn't hold a request, beside what is reserved for it or by it; 0: nothing. */
int reservations_find_shortage(const struct broker *broker, const struct broker_request *request,
                               uint64_t *ret_bytes);
/* A request is about to be charged: what is reserved for it is charged to the reservations no longer. */
void reservations_draw(struct broker *broker, struct broker_request *request);
/* It comes to nothing, so they have it back. */
void reservations_restore(struct broker *broker, struct broker_request *request);
void reservation_admit(struct broker *broker, struct broker_request *request);
void reservation_hold(struct broker *broker, struct broker_request *request);
void reservation_end(struct broker *broker, struct broker_request *request); /* harmless when it has */
void reservations_settle(struct broker *broker);
void reservations_looked(struct broker *broker);
/* Those that are not answered give way when what they expect is not there. */
void reservations_check(struct broker *broker);
void reservations_deinit(struct broker *broker);

/* ---- notices.c ---- */

/* What the peers of one instance, or of all, could give back for a request; counted until it is `enough`. But
 * for the one who needs it: what that keeps for later is its own affair, and giving it up for more of the
 * same would go on for ever. */
uint64_t notices_hope(struct broker *broker, struct broker_instance *instance_or_null,
                      const struct broker_request *request, uint64_t enough);
void notices_ask(struct broker *broker, struct broker_instance *instance_or_null,
                 const struct broker_request *request, uint64_t bytes);
/* The budget has fallen: who could is asked to give back so much. */
void notices_budget(struct broker *broker, uint64_t bytes);
/* Asks for claims that are not needed: the others of a peer's domain, or everybody. */
void notices_ask_claims(struct broker *broker, const struct broker_peer *needy_or_null);
/* The limit has changed: who is over it is asked to meet it. */
void notices_limit(struct broker *broker, struct broker_instance *instance);
uint64_t broker_over_limit(const struct broker_instance *instance);
void notices_returned(struct broker_peer *peer, uint64_t bytes);
void notices_lose(struct broker_peer *peer);
bool notices_next(struct broker *broker, struct broker_action *ret);
void notices_expire(struct broker *broker);
uint64_t notices_deadline(const struct broker *broker);
uint64_t notices_cached(struct broker *broker, const struct broker_peer *peer); /* as it says */
uint64_t notices_pinned(const struct broker_peer *peer);

/* ---- queue.c ---- */

void queue_enqueue(struct broker *broker, struct broker_request *request);
/* Takes an unanswered request out of wherever it is; what was earmarked for it is free again. */
void queue_withdraw(struct broker *broker, struct broker_request *request);
void queue_refuse(struct broker *broker, struct broker_request *request, int error);
/* A ready one has got what it collected. */
void queue_complete(struct broker *broker, struct broker_request *request);
/* A request that comes with its extents, out of a lease. */
void queue_promise(struct broker *broker, struct broker_request *request);
/* Does nobody wait for anything that the request could take away, but out of courtesy? */
bool queue_is_at_ease(const struct broker *broker, const struct broker_request *request);
/* What was asked for out of courtesy gives way: all, or an instance's. True: there was some. */
bool queue_yield(struct broker *broker, const struct broker_instance *instance_or_null);
/* Takes a loose extent that nobody holds any more. `domain`: for whom it was made, if for anybody; one that
 * is coloured has no choice. */
void queue_offer(struct broker *broker, struct broker_domain *domain, struct extent *extent);
void queue_unpark(struct broker *broker);
/* To be called when what a domain misses, or what is on its way to it, has changed. */
void queue_update_hunger(struct broker *broker, struct broker_domain *domain);
struct broker_request *queue_first_missing(struct broker_domain *domain, unsigned class_index);
/* Is a cold extent of use, whatever has been ordered? It is sooner warm than what has yet to be created. */
bool queue_wants_export(const struct broker_domain *domain_or_null, unsigned class_index);
/* Nothing under way can help this one. It lasts until it gets something. */
void queue_stall(struct broker *broker, struct broker_request *request);

/* ---- supply.c ---- */

/* Begins to make an extent warm that is loose and cold, for a domain or (NULL) for whoever comes; false when
 * descriptors are short. */
bool supply_export(struct broker *broker, struct broker_domain *domain, struct extent *extent);
void supply_created(struct broker *broker, struct extent *extent, bool ok);
void supply_exported(struct broker *broker, struct extent *extent, bool ok);
/* Free memory is not known, so nothing can be created. */
void supply_look_failed(struct broker *broker);
void supply_looked(struct broker *broker);
/* Starts what can be started now, and gives up on requests that have waited too long in vain. */
void supply_settle(struct broker *broker);
void supply_fill(struct broker *broker);
bool supply_expects(const struct broker *broker); /* demand for which something is kept ready */

/* ---- broker.c ---- */

/* Destroys a loose extent. Its bytes stay charged to `account`, or to nobody. */
void extent_doom(struct broker *broker, struct extent *extent, struct ledger_account *account);
void shelf_empty(struct broker *broker, struct pool_shelf *shelf);
/* Undoes what a request stands for and frees it, without settling. */
void request_end(struct broker *broker, struct broker_request *request);
void broker_settle(struct broker *broker, uint64_t now_ns);
void broker_note_activity(struct broker *broker); /* something was lent or returned */
void broker_count_refusal(struct broker *broker, const struct broker_request *request, int error);
unsigned broker_descriptors_max(const struct broker *broker);
/* What it could be now, and what there is for it and for what is expected of others. */
uint64_t broker_budget_now(const struct broker *broker);
uint64_t broker_ceiling(const struct broker *broker);
uint64_t broker_foreign(const struct broker *broker);
void broker_update_budget(struct broker *broker);
/* Bytes that are on their way out, and may still be expected to arrive. */
uint64_t broker_coming(const struct broker *broker);
void broker_trim(struct broker *broker, const struct pool_shelf *own, uint64_t wanted_bytes);
