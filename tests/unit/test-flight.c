/* SPDX-License-Identifier: Apache-2.0 */
#include "flight.h"

#include <stdio.h>

#include "test.h"

static const struct flight_charge none;

static struct flight_domain *join(struct flight *flight, const char *name)
{
    struct flight_domain *domain;

    check_eq(flight_domain_join(flight, name, &domain), 0);
    return domain;
}

/* Sends as much as may be; how much that was. */
static unsigned send_packet(struct flight_domain *domain, struct flight_charge *charge)
{
    unsigned n = flight_room(domain, &none);

    *charge = none;
    if (n > 0)
        flight_charge_add(charge, domain, n);
    return n;
}

/* Of 200, two thirds are shared; half of that is this domain's while it is alone; half of that a packet's. */
TEST(one_domain_leaves_room_for_the_next)
{
    struct flight_charge charges[2];
    struct flight flight;
    struct flight_domain *domain;

    flight_init(&flight, 200);
    domain = join(&flight, "a");
    check_eq(send_packet(domain, &charges[0]), 34);
    check_eq(send_packet(domain, &charges[1]), 17);
    check_eq(flight_room(domain, &none), 8);
    flight_charge_deinit(&charges[1]);
    flight_charge_deinit(&charges[1]);
    check_eq(flight_room(domain, &none), 17);
    flight_charge_deinit(&charges[0]);
    check_eq(flight_room(domain, &none), 34);
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

/* However many packets the peers of whatever domains leave unread, the next peer gets its answer. */
TEST(nobody_is_ever_left_without)
{
    static struct flight_charge charges[100];
    struct flight_domain *domains[5];
    struct flight flight;
    char name[8];

    flight_init(&flight, 300);
    for (unsigned i = 0; i < 100; i++) {
        snprintf(name, sizeof(name), "%u", i / 20);
        if (i % 20 == 0)
            domains[i / 20] = join(&flight, name);
        check(send_packet(domains[i / 20], &charges[i]) > 0);
        check(flight.n_in_flight <= flight.max);
    }
    for (unsigned i = 0; i < 100; i++)
        flight_charge_deinit(&charges[i]);
    for (unsigned i = 0; i < 5; i++)
        flight_domain_leave(domains[i]);
    flight_deinit(&flight);
}

TEST(later_domains_get_less_but_not_nothing)
{
    struct flight_charge charges[3][8];
    struct flight_domain *domains[3];
    struct flight flight;
    unsigned sent[3] = {0};

    flight_init(&flight, 3000);
    for (unsigned d = 0; d < 3; d++) {
        domains[d] = join(&flight, (const char *[]){"a", "b", "c"}[d]);
        for (unsigned i = 0; i < 8; i++)
            sent[d] += send_packet(domains[d], &charges[d][i]);
    }
    check(sent[0] > 990 && sent[0] <= 1000);
    check(sent[1] > 490 && sent[1] <= 505);
    check(sent[2] > 240 && sent[2] <= 255);
    for (unsigned d = 0; d < 3; d++) {
        for (unsigned i = 0; i < 8; i++)
            flight_charge_deinit(&charges[d][i]);
        flight_domain_leave(domains[d]);
    }
    flight_deinit(&flight);
}

/* Who acknowledges and sends again converges to what the other has. */
TEST(busy_domains_end_up_equal)
{
    struct flight_charge charges[2][50] = {0};
    struct flight_domain *domains[2];
    struct flight flight;

    flight_init(&flight, 1500);
    domains[0] = join(&flight, "a");
    for (unsigned i = 0; i < 50; i++)
        send_packet(domains[0], &charges[0][i]);
    domains[1] = join(&flight, "b");
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 50; i++) {
            for (unsigned d = 0; d < 2; d++) {
                flight_charge_deinit(&charges[d][i]);
                send_packet(domains[d], &charges[d][i]);
            }
        }
    }
    check(domains[0]->n_in_flight < domains[1]->n_in_flight + 50);
    check(domains[1]->n_in_flight < domains[0]->n_in_flight + 50);
    for (unsigned d = 0; d < 2; d++) {
        for (unsigned i = 0; i < 50; i++)
            flight_charge_deinit(&charges[d][i]);
        flight_domain_leave(domains[d]);
    }
    flight_deinit(&flight);
}

/* Peers that have one descriptor unacknowledged take nothing from those that want many. */
TEST(single_descriptors_are_no_part_of_what_is_shared)
{
    struct flight_charge singles[60] = {0}, charge = {0};
    struct flight flight;
    struct flight_domain *idle, *busy;

    flight_init(&flight, 200);
    idle = join(&flight, "idle");
    busy = join(&flight, "busy");
    for (unsigned i = 0; i < 60; i++)
        flight_charge_add(&singles[i], idle, 1);
    check_eq(flight.n_in_flight, 60);
    check_eq(flight_room(idle, &none), 34);
    check_eq(flight_room(busy, &none), 34);
    flight_charge_add(&charge, busy, 34);
    check_eq(flight_room(busy, &none), 17);
    check_eq(flight_room(idle, &none), 25);
    flight_charge_deinit(&charge);
    for (unsigned i = 0; i < 60; i++)
        flight_charge_deinit(&singles[i]);
    check_eq(flight.n_in_flight, 0);
    flight_domain_leave(idle);
    flight_domain_leave(busy);
    flight_deinit(&flight);
}

/* Who has something in flight gets a share, and when that is used up, nothing. */
TEST(nobody_has_a_right_to_one_more)
{
    struct flight_charge charge = {0};
    struct flight flight;
    struct flight_domain *domain;
    unsigned n;

    flight_init(&flight, 30);
    domain = join(&flight, "a");
    while ((n = flight_room(domain, &charge)))
        flight_charge_add(&charge, domain, n);
    check_eq(charge.n, 10);
    check_eq(flight.n_shared, 10);
    check_eq(flight_room(domain, &none), 1);
    flight_charge_deinit(&charge);
    check_eq(flight.n_in_flight + flight.n_shared, 0);
    flight_domain_leave(domain);
    flight_deinit(&flight);
}

TEST(nothing_is_left_of_the_smallest)
{
    struct flight_charge charge;
    struct flight flight;
    struct flight_domain *domain;

    flight_init(&flight, 0);
    domain = join(&flight, "a");
    check_eq(send_packet(domain, &charge), 1);
    check_eq(flight_room(domain, &none), 0);
    flight_charge_deinit(&charge);
    check_eq(flight_room(domain, &none), 1);
    flight_domain_leave(domain);
    flight_deinit(&flight);
}
