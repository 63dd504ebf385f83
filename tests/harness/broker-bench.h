/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A small device for tests of the broker. It carries out each action at once, on memory that is only a
 * number, and audits the broker after each.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arith.h"
#include "broker.h"
#include "wire/lease.h"

struct bench {
    struct broker *broker;
    struct broker_config config;
    uint64_t foreign_bytes;
    uint64_t ours_bytes;
    uint64_t kept_bytes; /* destroyed, and still referred to by somebody */
    uint64_t now_ns;
    bool fail_creates, fail_exports;
    bool keep;         /* what is destroyed from now on is kept by somebody */
    bool looks_around; /* free memory is read around each destroy */
    bool others_grow;  /* as much as is destroyed, others take at once */
    bool hold_creates; /* creates are not answered */
    unsigned n_creates, n_exports, n_destroys, n_looks, n_grants, n_refusals, n_forgets, n_leases,
        n_scribbles, n_reservations;
    struct broker_request *granted, *reserved;
    struct broker_action notices[64];
    unsigned n_notices;
    int error;
    uint64_t sizes[4096];
    uint64_t held_back[64];
    unsigned n_held_back;
    struct broker_lease *leases[16]; /* that are open */
    struct broker_request *held[8];  /* reservations */
};

extern const uint64_t bench_no_limits[5];

/* 1 GiB, classes of 2 and 8 MiB; the configuration can be changed before the start. */
void bench_init(struct bench *b, uint64_t budget_bytes);
void bench_start(struct bench *b);

/* Both, for who changes nothing. */
void bench_begin(struct bench *b, uint64_t budget_bytes);
uint64_t bench_free(const struct bench *b);

/* Carries out all there is to do. */
void bench_run(struct bench *b);

/* Lets time pass, waking the broker exactly when it wants to be. */
void bench_pass(struct bench *b, uint64_t ns);

struct broker_peer *bench_join(struct bench *b, const char *domain, const char *name);

/* Asks for so many of each class, and notes the answer in `granted` or `error`. */
int bench_ask(struct bench *b, struct broker_peer *peer, uint32_t small, uint32_t large);

/* Asks, must be granted, takes note of the extents (where not NULL) and frees the request. */
void bench_take(struct bench *b, struct broker_peer *peer, uint32_t small, uint32_t large, uint64_t *ret_ids);

/* A lease of a region whose pages have so many of each class. */
struct broker_lease *bench_lease(struct bench *b, struct broker_peer *peer, uint32_t small, uint32_t large,
                                 struct lease_line *line);

/* Asks for pages, notes the answer in `n_leases` or `error`, and frees the request. */
int bench_lease_ask(struct bench *b, struct broker_lease *lease, uint32_t pages, bool courtesy);

/* Claims, spends and takes pages for `holder`, as a client does; must be granted. */
void bench_lease_take(struct bench *b, struct broker_lease *lease, struct lease_line *line,
                      struct broker_peer *holder, uint32_t pages, uint64_t *ret_ids);

/* One that only reserves for an instance. */
struct broker_peer *bench_control(struct bench *b, const char *domain, const char *name);

/* Reserves, and notes the answer in `reserved` or `error`. */
int bench_reserve(struct bench *b, struct broker_peer *peer, uint64_t bytes, uint64_t foreign_bytes);
/* What is still held ends with the bench. bench_free_reservation() doesn't carry out what there is to do
 * then. */
void bench_release(struct bench *b, struct broker_request *request);
void bench_free_reservation(struct bench *b, struct broker_request *request);

/* The peer gives nothing back, and says so. */
void bench_ack(struct bench *b, struct broker_peer *peer);

/* Answers a create that was held back, with success. */
void bench_answer(struct bench *b, unsigned index);

void bench_end(struct bench *b, struct broker_peer *peer);
void bench_lease_end(struct bench *b, struct broker_lease *lease);

/* Ends all peers and leases that are still there, and the broker. */
void bench_finish(struct bench *b);
struct broker_totals bench_totals(const struct bench *b);
