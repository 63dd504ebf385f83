/* SPDX-License-Identifier: Apache-2.0 */
#include "flight.h"

#include <stdio.h>

#include "test.h"

static struct flight_domain *join(struct flight *flight, const char *name)
{
    struct flight_domain *domain;

    check_eq(flight_domain_join(flight, name, &domain), 0);
    return domain;
}

TEST(one_domain_has_everything)
{
    struct flight_charge charge;
    struct flight flight;
    struct flight_domain *domain;

    flight_init(&flight, 100);
    domain = join(&flight, "a");
    check_eq(flight_room(domain), 100);
    flight_charge_init(&charge, domain, 64);
    check_eq(flight_room(domain), 36);
    flight_charge_deinit(&charge);
    flight_charge_deinit(&charge);
    check_eq(flight_room(domain), 100);
    flight_domain_leave(domain);
    flight_deinit(&flight);
}

TEST(users_of_a_domain_share)
{
    struct flight flight;
    struct flight_domain *first, *second;

    flight_init(&flight, 100);
    first = join(&flight, "a");
    second = join(&flight, "a");
    check(first == second);
    check_eq(flight.n_domains, 1);
    check(!flight_domain_leave(first));
    check_eq(flight.n_domains, 1);
    check(!flight_domain_leave(second));
    check(!flight_domain_leave(NULL));
    check_eq(flight.n_domains, 0);
    flight_deinit(&flight);
}

/* Who was there first keeps what is on its way, and gets no more than its share from then on. */
TEST(shares_shrink_when_a_domain_comes)
{
    struct flight_charge a_charge, b_charge;
    struct flight flight;
    struct flight_domain *a, *b;

    flight_init(&flight, 100);
    a = join(&flight, "a");
    flight_charge_init(&a_charge, a, 80);
    b = join(&flight, "b");
    check_eq(flight_room(a), 0);
    check_eq(flight_room(b), 20);
    flight_charge_init(&b_charge, b, 20);
    check_eq(flight_room(b), 0);
    flight_charge_deinit(&a_charge);
    check_eq(flight_room(a), 50);
    check_eq(flight_room(b), 30);
    flight_charge_deinit(&b_charge);
    flight_domain_leave(a);
    check_eq(flight_room(b), 100);
    flight_domain_leave(b);
    flight_deinit(&flight);
}

TEST(more_domains_than_descriptors)
{
    struct flight_domain *domains[8];
    struct flight_charge charge;
    struct flight flight;
    char name[8];

    flight_init(&flight, 4);
    for (unsigned i = 0; i < 8; i++) {
        snprintf(name, sizeof(name), "%u", i);
        domains[i] = join(&flight, name);
    }
    for (unsigned i = 0; i < 8; i++)
        check_eq(flight_room(domains[i]), 1);
    flight_charge_init(&charge, domains[3], 1);
    check_eq(flight_room(domains[3]), 0);
    check_eq(flight_room(domains[4]), 1);
    flight_charge_deinit(&charge);
    for (unsigned i = 0; i < 8; i++)
        flight_domain_leave(domains[i]);
    flight_deinit(&flight);
}
