/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Leases, the client's side: memory that the daemon has set aside for a region. What the words mean is said
 * in wire/lease.h.
 */

#include "base/list.h"
#include "conn.h"
#include "wire/lease.h"
#include "wire/status.h"

struct kvc_client;
struct kvc_region;

/* A region's lease. */
struct region_lease {
    struct lease_line *line;   /* NULL: there are no leases for this region */
    struct list asks;          /* unanswered */
    uint64_t asked_pages;      /* by them */
    _Atomic uint32_t too_many; /* pages: the last question was for more than can be set aside; 0: it wasn't */
    bool refused;              /* the last courtesy: not to be asked again while the status page shows that */
    struct status_values refused_at;
};

/* Once the region's number is known; and before it is given up: nobody wants the answers any more. */
void lease_open(struct kvc_region *region);
void lease_close(struct kvc_region *region);

/* False: the daemon knows no leases, or none for this region. */
bool lease_is_on(const struct kvc_region *region);

/* Claims what is offered, as far as fewer than `pages` are claimed. Returns how many are. Of any thread. */
uint64_t lease_claim_up_to(struct kvc_region *region, uint64_t pages);

/* Whether a refusal was about how much was wanted, where less, or memory without a lease, could be had. */
bool lease_is_too_much(int r);

/* Whether the last question was for no more than so many pages, and yet too much. Of any thread. */
bool lease_is_short(const struct kvc_region *region, uint64_t pages);

/* Turns up to `pages` claims into offers, which the daemon may withdraw. Returns how many. */
uint64_t lease_give_up(struct kvc_region *region, uint64_t pages);

/* With the client's lock: claims again what was spent on a question that was not sent. */
void lease_put_back(struct kvc_region *region, size_t pages);

/* The daemon says that there is no such lease: it is over. */
void lease_over(struct kvc_region *region);

/* Asks for more without waiting: the word shows the answer. 0 or KVC_E_*. */
int lease_ask(struct kvc_region *region, uint64_t pages, bool courtesy);

/* The same, and waits, at most `timeout_ns`. 0: they have been offered. Or what kvc_region_map() returns;
 * after KVC_E_TIMEOUT the question stays. */
int lease_ask_and_wait(struct kvc_region *region, uint64_t pages, uint64_t timeout_ns);

/* Whether there are questions that may still be answered in time; and gives them their time anew. */
bool lease_is_asked(const struct kvc_region *region);
void lease_start_time(struct kvc_region *region);

/* Whether asking for a courtesy makes sense: the last one was not refused for what is still so. */
bool lease_may_ask(const struct kvc_region *region);

/* Tells the daemon what could be given back if it asked, and what could not. */
void lease_hint(struct kvc_region *region, uint64_t cached_pages, uint64_t pinned_pages);

/* CLOCK_MONOTONIC_COARSE: it costs no system call, and lies up to LEASE_TICK_NS behind CLOCK_MONOTONIC. */
#define LEASE_TICK_NS UINT64_C(10000000)
uint64_t lease_now_ns(void);
