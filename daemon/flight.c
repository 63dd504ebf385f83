/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The arithmetic of descriptors in flight. A domain's share shrinks when another domain comes; what it
 * already has in flight stays, and it may send again when it is below its share. Every domain may always have
 * one descriptor in flight, however many domains there are, unless the whole is used up.
 */

#include "flight.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void flight_init(struct flight *flight, unsigned max)
{
    *flight = (struct flight){.max = max > 0 ? max : 1};
    list_init(&flight->domains);
}

void flight_deinit(struct flight *flight)
{
    assert(flight->n_in_flight == 0);
    assert(flight->n_domains == 0);
}

int flight_domain_join(struct flight *flight, const char *name, struct flight_domain **ret)
{
    struct flight_domain *domain;

    list_for_each (it, &flight->domains) {
        domain = container_of(it, struct flight_domain, link);
        if (strcmp(domain->name, name) == 0) {
            domain->n_users++;
            *ret = domain;
            return 0;
        }
    }
    domain = calloc(1, sizeof(*domain) + strlen(name) + 1);
    if (!domain)
        return -ENOMEM;
    strcpy(domain->name, name);
    domain->flight = flight;
    domain->n_users = 1;
    list_append(&flight->domains, &domain->link);
    flight->n_domains++;
    *ret = domain;
    return 0;
}

struct flight_domain *flight_domain_leave(struct flight_domain *domain)
{
    if (!domain || --domain->n_users > 0)
        return NULL;
    assert(domain->n_in_flight == 0);
    list_unlink(&domain->link);
    domain->flight->n_domains--;
    free(domain);
    return NULL;
}

unsigned flight_room(const struct flight_domain *domain)
{
    const struct flight *flight = domain->flight;
    unsigned share = flight->max / flight->n_domains;
    unsigned left = flight->max > flight->n_in_flight ? flight->max - flight->n_in_flight : 0;

    if (share == 0)
        share = 1;
    if (domain->n_in_flight >= share)
        return 0;
    return share - domain->n_in_flight < left ? share - domain->n_in_flight : left;
}

void flight_charge_init(struct flight_charge *charge, struct flight_domain *domain, unsigned n)
{
    *charge = (struct flight_charge){.domain = domain, .n = n};
    domain->n_in_flight += n;
    domain->flight->n_in_flight += n;
}

void flight_charge_deinit(struct flight_charge *charge)
{
    if (!charge->domain)
        return;
    charge->domain->n_in_flight -= charge->n;
    charge->domain->flight->n_in_flight -= charge->n;
    *charge = (struct flight_charge){0};
}
