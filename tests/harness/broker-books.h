/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The naive books of broker-world.h: what has been given to whom, and what must therefore be true.
 */

#include <stdbool.h>
#include <stdint.h>

#include "broker-world.h"
#include "broker.h"
#include "wire/lease.h"

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

    struct broker_lease *lease;
    struct lease_line line;
    uint32_t page_counts[BROKER_CLASSES_MAX], page_extents;
    uint64_t page_bytes;
    struct lease seen; /* what stood there after the last event */
    uint32_t issued;   /* by then */
    uint32_t spent;    /* pages that were taken off the word and not asked for */
    uint32_t n_leased; /* pages, in this event */
    bool scribbled, reported;
    bool listens, schedules, obeys, noticed, controls;
    uint32_t notice_number;
    uint64_t asked_bytes; /* by the notice, and not returned since */
    uint64_t asked_step;
};

struct errand {
    struct broker_request *request;
    struct person *person;
    unsigned domain, name;
    uint32_t counts[BROKER_CLASSES_MAX];
    uint64_t bytes;
    uint64_t since_ns;
    uint64_t serial;
    uint64_t step;
    uint64_t placed_step; /* when it was admitted after having been undecided */
    bool lessee;          /* asks for pages of its lease */
    bool courtesy;
    uint32_t pages;
    struct person *lessor; /* whose lease hands them over */
    bool undecided;        /* after the last event */
    bool granted;          /* and not yet sent */
    bool fresh;            /* in this event */
    bool reserves;         /* bytes, and no extents; granted: held */
    uint64_t foreign_bytes;
    uint64_t loaded_bytes; /* of them */
    uint64_t unseen_bytes; /* given back, and not to be taken again before the broker has seen it */
    uint64_t held;         /* its number among those that have been; 0: it is not, or has ended */
};

/* What was expected when it was held, and may be by its end. */
struct hope {
    uint64_t held; /* 0: none */
    uint64_t bytes;
    uint64_t left;
    uint64_t end; /* the look with which it ends; 0: it goes on */
};

enum world_verdict {
    WORLD_FITS,
    WORLD_MAY_FIT, /* when offers are withdrawn */
    WORLD_HOPES,   /* for what others may give back */
    WORLD_OVER_LIMIT,
    WORLD_OVER_BUDGET,
    WORLD_UNSURE,
};

struct world {
    struct broker *broker;
    struct broker_config config;
    enum world_kind kind;
    uint64_t now_ns;
    uint64_t foreign_bytes, orphaned_bytes;
    bool foreign_moved;
    uint64_t stray_bytes; /* loaded by those who are gone */
    struct hope hopes[REQUESTS];
    uint64_t n_held, n_looks;
    uint64_t foreign_seen, growth; /* since it is laid to somebody */
    bool acted[N_DOMAINS][N_NAMES];
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
    uint64_t step;
    unsigned n_leased; /* leases that have grown in this event */
    bool leased_anew[N_DOMAINS][N_NAMES];
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

void world_note_act(struct world *w, const struct person *person);
struct person *world_pick_person(struct world *w, uint32_t arg);
int world_expected(const struct world *w, const struct person *person, uint32_t n);
void world_drive_all(struct world *w);

/* All that a request wants lies warm, and nobody else waits for anything? */
bool world_is_at_hand(const struct world *w, unsigned domain, const uint32_t *counts);
/* Extents that can be returned; the descriptors of what is granted are open until it is sent. */
unsigned world_collect(const struct world *w, const struct person *person, uint64_t *ids, unsigned max);
/* The person is about to return that extent. */
void world_give(struct world *w, struct person *person, uint64_t id);
struct errand *world_spare_errand(struct world *w);
void world_begin_errand(struct world *w, struct errand *errand, struct person *person);

/* Carries out the oldest thing that the driver was told. */
void world_drive(struct world *w);

/* Takes all actions and judges them, each and together. */
void world_settle(struct world *w);

/* Compares the sums, given those before the event. */
void world_check(struct world *w, uint64_t held_before, uint64_t budget_before);

/* ---- Reservations: broker-books-reservations.c ---- */

uint64_t world_outstanding(const struct errand *errand); /* what it may still load */
uint64_t world_loaded(const struct world *w);            /* by those who said so, and those who are gone */
uint64_t world_reserved(struct world *w, unsigned domain, unsigned name);
bool world_expects(const struct world *w);
/* What the budget lacks for an errand, where so much is charged with it. */
uint64_t world_lacks(struct world *w, const struct errand *errand, uint64_t charged);
void world_on_reserved(struct world *w, struct errand *errand);
void world_on_looked(struct world *w);
void world_end_hope(struct world *w, struct errand *errand);
void world_check_hopes(struct world *w);
/* Who had nothing to wait for, and did nothing, has as much reserved as before. */
void world_note_reserved(struct world *w, uint64_t reserved[N_DOMAINS][N_NAMES]);
void world_check_reserved(struct world *w, uint64_t before[N_DOMAINS][N_NAMES]);

/* ---- What people do with them: broker-world-reservations.c ---- */

void world_do_reserve(struct world *w, uint32_t arg);
void world_do_release(struct world *w, uint32_t arg);
void world_do_load(struct world *w, uint32_t arg);
void world_do_unload(struct world *w, uint32_t arg);
void world_release_all(struct world *w);

/* ---- Leases: broker-books-leases.c ---- */

bool world_is_open(const struct person *person);    /* has a lease that counts */
uint32_t world_issued(const struct person *person); /* pages */
bool world_is_charged(const struct errand *errand);
enum world_verdict world_judge(struct world *w, const struct errand *errand);
void world_check_verdict(struct world *w, enum world_verdict verdict, int r);
void world_check_hopeless(struct world *w, const struct errand *errand, int error);
void world_check_leases(struct world *w);
void world_on_lease(struct world *w, struct errand *errand);
void world_on_notice(struct world *w, const struct broker_action *action);
void world_on_scribbled(struct world *w, const struct broker_action *action);

/* ---- What people do with leases: broker-world-leases.c ---- */

void world_do_open(struct world *w, uint32_t arg);
void world_do_close(struct world *w, uint32_t arg);
void world_do_ask(struct world *w, uint32_t arg);
void world_do_claim(struct world *w, uint32_t arg);
void world_do_spend(struct world *w, uint32_t arg);
void world_do_hint(struct world *w, uint32_t arg);
void world_do_ack(struct world *w, uint32_t arg);
void world_do_scribble(struct world *w, uint32_t arg);
