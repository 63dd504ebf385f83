/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the parts of the broker share: broker.c (construction, actions and their answers), lending.c (take and
 * return), members.c (domains, instances, peers, limits), queue.c (requests that wait, and their extents),
 * supply.c (what is ordered from the driver for them) and audit.c (the check of all of it).
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
    unsigned n_instances;
    char name[BROKER_DOMAIN_MAX + 1];
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
    uint32_t n_active;          /* extents of waiting and ready requests */
    uint32_t n_sending;         /* extents of granted requests that are not freed */
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
    uint64_t now_ns;
    uint64_t looked_ns;
    uint64_t active_ns; /* last grant or return */
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

/* ---- queue.c ---- */

void queue_enqueue(struct broker *broker, struct broker_request *request);
/* Takes an unanswered request out of wherever it is; what was earmarked for it is free again. */
void queue_withdraw(struct broker *broker, struct broker_request *request);
void queue_refuse(struct broker *broker, struct broker_request *request, int error);
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
/* Bytes that are on their way out, and may still be expected to arrive. */
uint64_t broker_coming(const struct broker *broker);
void broker_trim(struct broker *broker, const struct pool_shelf *own, uint64_t wanted_bytes);
