/* SPDX-License-Identifier: Apache-2.0 */
#include "policy.h"

#include "base/arith.h"
#include "test.h"

TEST(the_strongest_limit_counts)
{
    uint64_t limits[_POLICY_N] = {0, 10, 20, 30, 40};
    bool has[_POLICY_N] = {};
    enum policy_source source;

    check(policy_limit(has, limits, &source) == UINT64_MAX);
    check_eq(source, POLICY_BUDGET);
    has[POLICY_ENGINE] = true;
    check_eq(policy_limit(has, limits, &source), 30);
    check_eq(source, POLICY_ENGINE);
    has[POLICY_CONFIG] = true;
    check_eq(policy_limit(has, limits, &source), 20);
    check_eq(source, POLICY_CONFIG);
    has[POLICY_ADMIN] = true;
    limits[POLICY_ADMIN] = 0;
    check_eq(policy_limit(has, limits, &source), 0);
    check_eq(source, POLICY_ADMIN);
}

TEST(admission_is_exact)
{
    check_eq(policy_admit(60, 100, 60, 100, 40), 0);
    check_eq(policy_admit(60, 100, 60, 200, 41), POLICY_E_LIMIT);
    check_eq(policy_admit(60, 200, 60, 100, 41), POLICY_E_BUDGET);
    check_eq(policy_admit(60, 100, 60, 100, 41), POLICY_E_LIMIT);
    check_eq(policy_admit(10, UINT64_MAX, 60, 100, 40), 0);
    check_eq(policy_admit(0, 0, 0, 100, 1), POLICY_E_LIMIT);
    check_eq(policy_admit(50, 20, 50, 100, 1), POLICY_E_LIMIT);
    check_eq(policy_admit(0, 100, 150, 100, 1), POLICY_E_BUDGET);
    check_eq(policy_admit(1, UINT64_MAX, 1, UINT64_MAX, UINT64_MAX), POLICY_E_LIMIT);
    check_eq(policy_admit(0, UINT64_MAX, 1, UINT64_MAX, UINT64_MAX), POLICY_E_BUDGET);
}

TEST(foreign_is_what_is_left)
{
    check_eq(policy_foreign(100, 30, 50), 20);
    check_eq(policy_foreign(100, 30, 90), 0);
    check_eq(policy_foreign(100, 120, 0), 0);
}

TEST(budgets)
{
    check_eq(policy_budget_now(80 * GIB, 0, 950000, 0, 0), 76 * GIB);
    check_eq(policy_budget_now(80 * GIB, 6 * GIB, 950000, 0, 0), 70 * GIB);
    check_eq(policy_budget_now(80 * GIB, 77 * GIB, 950000, 0, 0), 0);
    check_eq(policy_budget_now(80 * GIB, 77 * GIB, 950000, 12 * GIB, 0), 12 * GIB);
    check_eq(policy_budget_now(80 * GIB, 0, 950000, 100 * GIB, 0), 80 * GIB);
    check_eq(policy_budget_now(80 * GIB, 0, 2000000, 0, 0), 80 * GIB);
    check_eq(policy_budget_now(3, 0, 500000, 0, 0), 1);
    check_eq(policy_budget_now(80 * GIB, 6 * GIB, 1000000, 0, 2 * GIB), 72 * GIB);
    check_eq(policy_budget_now(80 * GIB, 6 * GIB, 950000, 0, 2 * GIB), 70 * GIB);
    check_eq(policy_budget_now(80 * GIB, 6 * GIB, 950000, 0, 81 * GIB), 0);
    check_eq(policy_budget_now(80 * GIB, 6 * GIB, 950000, 12 * GIB, 81 * GIB), 12 * GIB);
    check(policy_budget_now(UINT64_MAX, 0, 1000000, 0, 0) == UINT64_MAX);
}

TEST(a_budget_falls_at_once_and_rises_when_stable)
{
    struct policy_budget budget = {.bytes = 100};

    policy_budget_update(&budget, 60, 0, 10);
    check_eq(budget.bytes, 60);
    policy_budget_update(&budget, 90, 1, 10);
    check_eq(budget.bytes, 60);
    check(budget.rising);
    policy_budget_update(&budget, 80, 5, 10);
    policy_budget_update(&budget, 95, 10, 10);
    check_eq(budget.bytes, 60);
    /* The lowest that was seen for so long. */
    policy_budget_update(&budget, 95, 11, 10);
    check_eq(budget.bytes, 80);
    check(budget.rising);
    policy_budget_update(&budget, 95, 20, 10);
    check_eq(budget.bytes, 80);
    policy_budget_update(&budget, 95, 21, 10);
    check_eq(budget.bytes, 95);
    check(!budget.rising);
}

TEST(a_budget_that_falls_again_has_not_been_stable)
{
    struct policy_budget budget = {.bytes = 60};

    policy_budget_update(&budget, 90, 0, 10);
    policy_budget_update(&budget, 60, 9, 10);
    check(!budget.rising);
    policy_budget_update(&budget, 90, 10, 10);
    check_eq(budget.bytes, 60);
    policy_budget_update(&budget, 90, 19, 10);
    check_eq(budget.bytes, 60);
    policy_budget_update(&budget, 90, 20, 10);
    check_eq(budget.bytes, 90);
}

TEST(room_is_within_budget_and_outside_the_headroom)
{
    check_eq(policy_room(100, 60, 200, 0, 0), 40);
    check_eq(policy_room(100, 60, 50, 0, 20), 30);
    check_eq(policy_room(100, 60, 50, 10, 20), 20);
    check_eq(policy_room(100, 160, 50, 0, 0), 0);
    check_eq(policy_room(100, 0, 50, 0, 60), 0);
    check_eq(policy_room(100, 0, 50, UINT64_MAX, 60), 0);
}

TEST(shortage_counts_what_is_coming)
{
    /* Budget: 90 held + 20 wanted of 100. */
    check_eq(policy_shortage(100, 90, 200, 0, 0, 0, 20), 10);
    check_eq(policy_shortage(100, 90, 200, 0, 0, 4, 20), 6);
    check_eq(policy_shortage(100, 90, 200, 0, 0, 10, 20), 0);
    /* Free memory: 10 being created + 5 headroom + 20 wanted of 30. */
    check_eq(policy_shortage(1000, 90, 30, 10, 5, 0, 20), 5);
    check_eq(policy_shortage(1000, 90, 30, 10, 5, 2, 20), 3);
    /* Pressure alone. */
    check_eq(policy_shortage(1000, 90, 3, 0, 5, 0, 0), 2);
    check_eq(policy_shortage(80, 90, 100, 0, 5, 0, 0), 10);
    check_eq(policy_shortage(100, 90, 100, 0, 5, 0, 0), 0);
    check_eq(policy_shortage(UINT64_MAX, UINT64_MAX, 0, 0, 0, 0, UINT64_MAX) == UINT64_MAX, 1);
}

TEST(leases_are_shared_by_halves)
{
    check_eq(policy_lease_share(2500, 0, 0), 625);
    check_eq(policy_lease_share(2500, 0, 625), 313);
    check_eq(policy_lease_share(2500, 1250, 0), 313);
    check_eq(policy_lease_share(2500, 1250, 300), 163);
    /* Never nothing, while there is any. */
    check_eq(policy_lease_share(100, 99, 0), 1);
    check_eq(policy_lease_share(100, 0, 49), 1);
    check_eq(policy_lease_share(100, 0, 50), 0);
    check_eq(policy_lease_share(100, 100, 0), 0);
    /* Others may have come when there was more. */
    check_eq(policy_lease_share(100, 90, 20), 0);
    check_eq(policy_lease_share(100, 200, 0), 0);
    check_eq(policy_lease_share(UINT64_MAX, 0, 0), 1ull << 62);
}

TEST(demand_fades_to_half_in_a_second)
{
    struct policy_demand demand = {};

    check_eq(policy_demand_read(&demand, 0), 0);
    policy_demand_add(&demand, 1000, NSEC_PER_SEC);
    check_eq(policy_demand_read(&demand, NSEC_PER_SEC), 1000);
    check_eq(policy_demand_read(&demand, NSEC_PER_SEC * 3 / 2), 750);
    check_eq(policy_demand_read(&demand, 2 * NSEC_PER_SEC), 500);
    check_eq(policy_demand_read(&demand, 3 * NSEC_PER_SEC), 250);
    check_eq(policy_demand_read(&demand, 200 * NSEC_PER_SEC), 0);
    policy_demand_add(&demand, 1000, 2 * NSEC_PER_SEC);
    check_eq(policy_demand_read(&demand, 2 * NSEC_PER_SEC), 1500);
    /* A clock that is read late changes nothing. */
    check_eq(policy_demand_read(&demand, 0), 1500);
    policy_demand_add(&demand, UINT64_MAX, 2 * NSEC_PER_SEC);
    check(policy_demand_read(&demand, 2 * NSEC_PER_SEC) == UINT64_MAX);
}

TEST(reserves_are_bounded)
{
    check_eq(policy_reserve(100, 40), 40);
    check_eq(policy_reserve(10, 40), 10);
    check_eq(policy_reserve(100, 0), 0);
}

TEST(a_ceiling_is_for_us_and_for_what_is_expected)
{
    check_eq(policy_ceiling(80 * GIB, 6 * GIB, 950000, 0, GIB), 70 * GIB);
    check_eq(policy_ceiling(80 * GIB, 6 * GIB, 950000, 0, 5 * GIB), 69 * GIB);
    check_eq(policy_ceiling(80 * GIB, 6 * GIB, 1000000, 0, GIB), 73 * GIB);
    check_eq(policy_ceiling(80 * GIB, 6 * GIB, 950000, 12 * GIB, GIB), 73 * GIB);
    check_eq(policy_ceiling(80 * GIB, 79 * GIB, 950000, 12 * GIB, 2 * GIB), 0);
    check_eq(policy_ceiling(80, UINT64_MAX, 950000, 12, 2), 0);
    check_eq(policy_budget_beside(70, 70, 0), 70);
    check_eq(policy_budget_beside(70, 70, 30), 40);
    check_eq(policy_budget_beside(12, 73, 30), 12);
    check_eq(policy_budget_beside(12, 73, 63), 10);
    check_eq(policy_budget_beside(12, 10, 0), 12);
    check_eq(policy_budget_beside(12, 10, 11), 0);
}

TEST(a_reservation_lacks_what_neither_budget_nor_ceiling_hold)
{
    check_eq(policy_reservation_lacks(60, 100, 100, 0, 40, 0), 0);
    check_eq(policy_reservation_lacks(60, 100, 100, 0, 41, 0), 1);
    check_eq(policy_reservation_lacks(60, 100, 100, 0, 30, 10), 0);
    check_eq(policy_reservation_lacks(60, 100, 100, 0, 30, 13), 3);
    check_eq(policy_reservation_lacks(60, 90, 100, 10, 30, 0), 0);
    check_eq(policy_reservation_lacks(60, 90, 100, 10, 30, 1), 1);
    check_eq(policy_reservation_lacks(60, 100, 150, 20, 45, 40), 15);
    /* What others take is no matter of one who expects nothing of them. */
    check_eq(policy_reservation_lacks(60, 100, 50, 0, 40, 0), 0);
    check(policy_reservation_lacks(60, 100, 100, 0, UINT64_MAX, 0) == UINT64_MAX - 100);
    check(policy_reservation_lacks(0, 100, 100, 0, 0, UINT64_MAX) == UINT64_MAX - 100);
}

TEST(what_comes_is_taken_off_what_is_expected)
{
    uint64_t growth = 25;

    check_eq(policy_outstanding(10, &growth), 0);
    check_eq(growth, 15);
    check_eq(policy_outstanding(20, &growth), 5);
    check_eq(growth, 0);
    check_eq(policy_outstanding(20, &growth), 20);
}
