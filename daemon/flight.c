/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The arithmetic of descriptors in flight. Whoever doesn't acknowledge keeps what was sent to it, perhaps for
 * ever, so nobody may ever use up what the next one needs:
 *   - A domain has at most half of what the others leave. Those that want more than there is end up
 *     with equal shares; those that come while others sit on theirs find less, never nothing.
 *   - A packet takes at most half of what its domain has left, for the domain's other peers.
 *   - A third of the whole is for packets of one descriptor, to which every peer has a right that has nothing
 *     else in flight; there are no more peers than that (settings.c). So these count for nobody else, and may
 *     be acknowledged late.
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

static unsigned half(unsigned n)
{
    return n / 2 + n % 2;
}

static unsigned sub_floor(unsigned a, unsigned b)
{
    return a > b ? a - b : 0;
}

unsigned flight_room(const struct flight_domain *domain, const struct flight_charge *charge)
{
    const struct flight *flight = domain->flight;
    unsigned shared = flight->max - flight->max / 3;
    unsigned others = flight->n_shared - domain->n_shared;
    unsigned room = half(sub_floor(half(sub_floor(shared, others)), domain->n_shared));
    unsigned left = sub_floor(flight->max, flight->n_in_flight);

    if (room == 0 && charge->n == 0)
        room = 1;
    return room < left ? room : left;
}

static void count(struct flight_domain *domain, int n)
{
    int shared = n > 1 || n < -1 ? n : 0;

    domain->n_in_flight += n;
    domain->n_shared += shared;
    domain->flight->n_in_flight += n;
    domain->flight->n_shared += shared;
}

void flight_charge_add(struct flight_charge *charge, struct flight_domain *domain, unsigned n)
{
    n += charge->n;
    flight_charge_deinit(charge);
    *charge = (struct flight_charge){.domain = domain, .n = n};
    count(domain, (int)n);
}

void flight_charge_deinit(struct flight_charge *charge)
{
    if (!charge->domain)
        return;
    count(charge->domain, -(int)charge->n);
    *charge = (struct flight_charge){0};
}
