/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Flight: descriptors that have been sent and not yet acknowledged. The kernel counts those per sending user,
 * so one receiver that doesn't read could use up everybody's. They are shared between the trust domains.
 * Pure.
 */

#include "base/cleanup.h"
#include "base/list.h"

struct flight {
    unsigned max;
    unsigned n_in_flight;
    unsigned n_shared; /* of these, those of packets of several */
    unsigned n_domains;
    struct list domains;
};

struct flight_domain {
    struct list link;
    struct flight *flight;
    unsigned n_in_flight, n_shared;
    unsigned n_users;
    char name[];
};

/* One peer's descriptors. */
struct flight_charge {
    struct flight_domain *domain; /* NULL: nothing is charged */
    unsigned n;
};

void flight_init(struct flight *flight, unsigned max);
void flight_deinit(struct flight *flight); /* asserts that nothing is left */

/* Finds or makes a domain and counts one more user of it. 0 or -ENOMEM. */
int flight_domain_join(struct flight *flight, const char *name, struct flight_domain **ret);

/* One user less; the last one frees the domain. Charges must have ended. NULL is fine. Returns NULL. */
struct flight_domain *flight_domain_leave(struct flight_domain *domain);

/* How many descriptors the next packet to a domain may carry, for a peer for which so many are in flight
 * already. */
unsigned flight_room(const struct flight_domain *domain, const struct flight_charge *charge);

/* For a charge of this domain, or one that is {0}. */
void flight_charge_add(struct flight_charge *charge, struct flight_domain *domain, unsigned n);
void flight_charge_deinit(struct flight_charge *charge);
