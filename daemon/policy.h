/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Policy: limits, budget and appetite as arithmetic.
 */

#include <stdbool.h>
#include <stdint.h>

/* Sources of a limit, strongest first; the last is always there and caps the others. */
enum policy_source {
    POLICY_ADMIN = 1,
    POLICY_CONFIG,
    POLICY_ENGINE,
    POLICY_BUDGET,
    _POLICY_N,
};

/* The strongest limit that is set, not capped; UINT64_MAX and POLICY_BUDGET where none is. */
uint64_t policy_limit(const bool has[static _POLICY_N], const uint64_t limit_of[static _POLICY_N],
                      enum policy_source *ret_source);

enum {
    _POLICY_E_SUCCESS,
    POLICY_E_LIMIT,
    POLICY_E_BUDGET,
};

/* May an account that uses `used` of `limit` have `bytes` more, where all accounts together use `charged` of
 * `budget`? */
int policy_admit(uint64_t used, uint64_t limit, uint64_t charged, uint64_t budget, uint64_t bytes);

/* What others hold on the device: all that is not free and not ours. */
uint64_t policy_foreign(uint64_t total, uint64_t free, uint64_t held);

/* utilization × total, or all but the headroom where that is less, without what others have; or the fixed
 * budget where one is set, at most the device. */
uint64_t policy_budget_now(uint64_t total, uint64_t foreign, uint32_t utilization_ppm, uint64_t fixed,
                           uint64_t headroom);

/* What of the device may be ours, and what others are expected to take: the budget, but under a fixed one all
 * but the headroom and what others have. */
uint64_t policy_ceiling(uint64_t total, uint64_t foreign, uint32_t utilization_ppm, uint64_t fixed,
                        uint64_t headroom);

/* What is left of a budget while others are expected to take so much; all of it while they are not. */
uint64_t policy_budget_beside(uint64_t budget, uint64_t ceiling, uint64_t expected);

/* What is lacking to reserve `bytes` of the budget, and to expect `foreign` bytes more from others. */
uint64_t policy_reservation_lacks(uint64_t charged, uint64_t budget, uint64_t ceiling, uint64_t expected,
                                  uint64_t bytes, uint64_t foreign);

/* What has not come so far of what was expected; what has is taken off the growth. */
uint64_t policy_outstanding(uint64_t expected, uint64_t *growth);

/* A budget that falls at once, and rises only to what it could have been for a while. */
struct policy_budget {
    uint64_t bytes;
    bool rising;
    uint64_t candidate_bytes;
    uint64_t since_ns;
};

void policy_budget_update(struct policy_budget *budget, uint64_t bytes, uint64_t now_ns, uint64_t rise_ns);

/* What may be created now: within the budget, and without touching the headroom. `creating` is part of
 * `held`, but not yet taken from `free`. */
uint64_t policy_room(uint64_t budget, uint64_t held, uint64_t free, uint64_t creating, uint64_t headroom);

/* What has to be let go so that `wanted` more can be created, given that `coming` is already on its way out.
 */
uint64_t policy_shortage(uint64_t budget, uint64_t held, uint64_t free, uint64_t creating, uint64_t headroom,
                         uint64_t coming, uint64_t wanted);

/* A quantity that fades to half in every second; it fades when it is read. */
struct policy_demand {
    uint64_t bytes;
    uint64_t since_ns;
};

void policy_demand_add(struct policy_demand *demand, uint64_t bytes, uint64_t now_ns);
uint64_t policy_demand_read(const struct policy_demand *demand, uint64_t now_ns);

/* How many descriptors the leases of an instance may hold, when those of the other domains hold so many and
 * those of its domain's other instances so many. Nobody takes them from who has claims, so a domain has at
 * most half of what the others leave, and an instance half of what the others in its domain leave of that:
 * one that comes late finds less, never nothing. */
uint64_t policy_lease_share(uint64_t max, uint64_t others, uint64_t mates);

/* How much to keep ready where lately so much was asked for. */
uint64_t policy_reserve(uint64_t demand_bytes, uint64_t reserve_bytes);
