/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The rules by which memory is promised, as functions of numbers: they hold no state beyond what is handed to
 * them, saturate where a sum doesn't fit, and decide nothing about extents. Everything here can be checked
 * with a pencil.
 */

#include "policy.h"

#include <stddef.h>

#include "base/arith.h"

#define PPM 1000000u

uint64_t policy_limit(const bool has[static _POLICY_N], const uint64_t limit_of[static _POLICY_N],
                      enum policy_source *ret_source)
{
    enum policy_source source = POLICY_ADMIN;

    while (source < POLICY_BUDGET && !has[source])
        source++;
    if (ret_source)
        *ret_source = source;
    return source < POLICY_BUDGET ? limit_of[source] : UINT64_MAX;
}

int policy_admit(uint64_t used, uint64_t limit, uint64_t charged, uint64_t budget, uint64_t bytes)
{
    uint64_t sum;

    if (!u64_add(used, bytes, &sum) || sum > limit)
        return POLICY_E_LIMIT;
    if (!u64_add(charged, bytes, &sum) || sum > budget)
        return POLICY_E_BUDGET;
    return 0;
}

uint64_t policy_foreign(uint64_t total, uint64_t free, uint64_t held)
{
    return u64_sub_floor(u64_sub_floor(total, free), held);
}

uint64_t policy_budget_now(uint64_t total, uint64_t foreign, uint32_t utilization_ppm, uint64_t fixed,
                           uint64_t headroom)
{
    uint64_t part = (uint64_t)((unsigned __int128)total * u64_min(utilization_ppm, PPM) / PPM);

    return fixed ? u64_min(fixed, total)
                 : u64_sub_floor(u64_min(part, u64_sub_floor(total, headroom)), foreign);
}

uint64_t policy_ceiling(uint64_t total, uint64_t foreign, uint32_t utilization_ppm, uint64_t fixed,
                        uint64_t headroom)
{
    return policy_budget_now(total, foreign, fixed ? PPM : utilization_ppm, 0, headroom);
}

uint64_t policy_budget_beside(uint64_t budget, uint64_t ceiling, uint64_t expected)
{
    return expected ? u64_min(budget, u64_sub_floor(ceiling, expected)) : budget;
}

uint64_t policy_reservation_lacks(uint64_t charged, uint64_t budget, uint64_t ceiling, uint64_t expected,
                                  uint64_t bytes, uint64_t foreign)
{
    uint64_t ours = u64_add_ceil(charged, bytes);
    uint64_t all = u64_add_ceil(ours, u64_add_ceil(expected, foreign));

    return u64_max(u64_sub_floor(ours, budget), foreign ? u64_sub_floor(all, ceiling) : 0);
}

uint64_t policy_outstanding(uint64_t expected, uint64_t *growth)
{
    uint64_t come = u64_min(expected, *growth);

    *growth -= come;
    return expected - come;
}

void policy_budget_update(struct policy_budget *budget, uint64_t bytes, uint64_t now_ns, uint64_t rise_ns)
{
    if (bytes <= budget->bytes) {
        budget->bytes = bytes;
        budget->rising = false;
        return;
    }
    if (!budget->rising) {
        budget->rising = true;
        budget->candidate_bytes = bytes;
        budget->since_ns = now_ns;
    }
    budget->candidate_bytes = u64_min(budget->candidate_bytes, bytes);
    if (now_ns - budget->since_ns < rise_ns)
        return;
    budget->rising = bytes > budget->candidate_bytes;
    budget->bytes = budget->candidate_bytes;
    budget->candidate_bytes = bytes;
    budget->since_ns = now_ns;
}

uint64_t policy_room(uint64_t budget, uint64_t held, uint64_t free, uint64_t creating, uint64_t headroom)
{
    return u64_min(u64_sub_floor(budget, held), u64_sub_floor(free, u64_add_ceil(creating, headroom)));
}

uint64_t policy_shortage(uint64_t budget, uint64_t held, uint64_t free, uint64_t creating, uint64_t headroom,
                         uint64_t coming, uint64_t wanted)
{
    uint64_t over_budget = u64_sub_floor(u64_add_ceil(held, wanted), u64_add_ceil(budget, coming));
    uint64_t taken = u64_add_ceil(u64_add_ceil(creating, headroom), wanted);

    return u64_max(over_budget, u64_sub_floor(taken, u64_add_ceil(free, coming)));
}

uint64_t policy_demand_read(const struct policy_demand *demand, uint64_t now_ns)
{
    uint64_t elapsed = u64_sub_floor(now_ns, demand->since_ns);
    uint64_t halvings = elapsed / NSEC_PER_SEC, rest = elapsed % NSEC_PER_SEC;
    uint64_t bytes;

    if (halvings >= 64)
        return 0;
    bytes = demand->bytes >> halvings;
    /* Straight lines between the halves: close enough, and exact in integers. */
    return bytes - (uint64_t)((unsigned __int128)bytes * rest / (2 * NSEC_PER_SEC));
}

void policy_demand_add(struct policy_demand *demand, uint64_t bytes, uint64_t now_ns)
{
    demand->bytes = u64_add_ceil(policy_demand_read(demand, now_ns), bytes);
    demand->since_ns = u64_max(now_ns, demand->since_ns);
}

uint64_t policy_reserve(uint64_t demand_bytes, uint64_t reserve_bytes)
{
    return u64_min(demand_bytes, reserve_bytes);
}

static uint64_t half(uint64_t n)
{
    return n / 2 + n % 2;
}

uint64_t policy_lease_share(uint64_t max, uint64_t others, uint64_t mates)
{
    return half(u64_sub_floor(half(u64_sub_floor(max, others)), mates));
}
