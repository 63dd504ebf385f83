/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The naive books of broker-world.h: what has been given to whom, and what must therefore be true.
 */

#include <stdbool.h>
#include <stdint.h>

#include "broker-world.h"
#include "broker.h"

#define PEERS 16
#define REQUESTS 64
#define SLOTS 8192
#define WORK 8192
#define N_DOMAINS 3
#define N_NAMES 3

struct row {
    uint64_t id;
    uint64_t bytes;
    unsigned class_index;
    bool exists; /* the daemon has a handle */
    bool warm, doomed;
    struct person *holder;
    unsigned domains; /* that ever had it, as bits */
    bool was_lost;    /* held by somebody lost */
};

struct person {
    struct broker_peer *peer;
    unsigned domain, name;
    bool lost, lies;
    uint64_t kept_bytes; /* of destroyed extents, by references of its own */
};

struct errand {
    struct broker_request *request;
    struct person *person;
    unsigned domain, name;
    uint32_t counts[BROKER_CLASSES_MAX];
    uint64_t bytes;
    uint64_t since_ns;
    uint64_t serial;
    bool granted; /* and not yet sent */
    bool fresh;   /* in this event */
};

struct world {
    struct broker *broker;
    struct broker_config config;
    enum world_kind kind;
    uint64_t now_ns;
    uint64_t foreign_bytes, orphaned_bytes;
    bool foreign_moved;
    bool fail_creates, fail_exports;
    struct row rows[SLOTS];
    uint32_t n_rows;
    struct person people[PEERS];
    struct errand errands[REQUESTS];
    uint64_t serial;
    struct broker_action work[WORK];
    unsigned work_first, n_work;
    enum world_op op;
    uint64_t budget_before;
    unsigned n_answers;
    const char *failure;
};

/* By domain and name. */
struct usage {
    uint64_t bytes[N_DOMAINS][N_NAMES];
};

extern const char *const world_domain_names[N_DOMAINS];
extern const char *const world_instance_names[N_NAMES];

/* The first sentence whose condition doesn't hold is the world's failure. */
void world_expect(struct world *w, bool condition, const char *sentence);

uint64_t world_ours(const struct world *w);
uint64_t world_free_bytes(const struct world *w);
struct broker_instance *world_instance(struct world *w, unsigned domain, unsigned name);
struct usage world_usage(struct world *w);
uint64_t world_charged(const struct usage *usage);
uint64_t world_limit(const struct broker_instance *instance); /* that is set; not capped */
uint64_t world_budget(const struct world *w);
unsigned world_n_waiting(const struct world *w);

/* Carries out the oldest thing that the driver was told. */
void world_drive(struct world *w);

/* Takes all actions and judges them, each and together. */
void world_settle(struct world *w);

/* Compares the sums, given those before the event. */
void world_check(struct world *w, uint64_t held_before, uint64_t budget_before);
