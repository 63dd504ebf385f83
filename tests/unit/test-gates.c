/* SPDX-License-Identifier: Apache-2.0 */
#include "gates.h"

#include <stdio.h>

#include "test.h"

#define NOW UINT64_C(5000000000)

TEST(so_many_pass_and_the_next_closes)
{
    struct gates gates = {0};

    for (unsigned i = 0; i < 3; i++)
        check_eq(gates_pass(&gates, "uid:1", 3, NOW + i), GATE_OPEN);
    check_eq(gates_pass(&gates, "uid:1", 3, NOW + 3), GATE_CLOSES);
    for (unsigned i = 0; i < 1000; i++)
        check_eq(gates_pass(&gates, "uid:1", 3, NOW + i), GATE_CLOSED);
}

TEST(a_period_begins_with_the_first_after_the_last)
{
    struct gates gates = {0};

    check_eq(gates_pass(&gates, "uid:1", 1, NOW), GATE_OPEN);
    check_eq(gates_pass(&gates, "uid:1", 1, NOW + GATES_PERIOD_NS), GATE_CLOSES);
    check_eq(gates_pass(&gates, "uid:1", 1, NOW + GATES_PERIOD_NS), GATE_CLOSED);
    check_eq(gates_pass(&gates, "uid:1", 1, NOW + GATES_PERIOD_NS + 1), GATE_OPEN);
    check_eq(gates_pass(&gates, "uid:1", 1, NOW + 2 * GATES_PERIOD_NS), GATE_CLOSES);
}

TEST(nobody_closes_others_gates)
{
    struct gates gates = {0};

    while (gates_pass(&gates, "uid:1", 10, NOW) != GATE_CLOSED)
        ;
    check(gates_index(0, "uid:1") != gates_index(0, "uid:2"));
    check_eq(gates_pass(&gates, "uid:2", 10, NOW), GATE_OPEN);
    check_eq(gates_pass(&gates, "", 10, NOW), GATE_OPEN);
}

/* Users' numbers follow each other. */
TEST(names_that_are_alike_are_spread)
{
    unsigned n[GATES_N] = {0}, used = 0, most = 0;

    for (unsigned i = 0; i < GATES_N; i++) {
        char domain[32];
        unsigned index;

        snprintf(domain, sizeof(domain), "uid:%u", 1000 + i);
        index = gates_index(7, domain);
        check(index < GATES_N);
        n[index]++;
    }
    for (unsigned i = 0; i < GATES_N; i++) {
        used += n[i] > 0;
        most = n[i] > most ? n[i] : most;
    }
    /* As many that are thrown at random would use 63 %. */
    check(used > GATES_N * 6 / 10);
    check(most < 10);
}

/* Two that share one meet again as seldom as others do. */
TEST(who_shares_depends_on_the_secret)
{
    char other[32] = "uid:1";
    unsigned n_together = 0;

    for (unsigned i = 2; gates_index(1, other) != gates_index(1, "uid:1") || i == 2; i++)
        snprintf(other, sizeof(other), "uid:%u", i);
    for (uint64_t secret = 2; secret <= 1000; secret++)
        n_together +=
            gates_index(secret << 32 | secret, "uid:1") == gates_index(secret << 32 | secret, other);
    check(n_together < 20);
}
