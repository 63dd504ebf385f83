/* SPDX-License-Identifier: Apache-2.0 */

/* Who is asked to give back how much where nobody waits for it: under limits, budgets and bounds. */

#include "broker-engine.h"
#include "test.h"

TEST(a_lowered_limit_takes_offers_and_asks_in_proportion)
{
    struct engine a, mate, pinned;
    struct bench b;

    bench_begin(&b, 200 * MIB);
    engine_start(&b, &a, "a", 10, 10);
    engine_start(&b, &mate, "a", 10, 0);
    engine_start(&b, &pinned, "a", 16, 0);
    check_eq(bench_lease_ask(&b, mate.lease, 4, false), 0);
    pinned.line.pinned_pages = 6;
    check_eq(broker_used(a.peer->instance), 100 * MIB);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 52 * MIB), 0);
    bench_run(&b);
    check_eq(broker_lease_pages(mate.lease), 0);
    check_eq(broker_used(a.peer->instance), 92 * MIB);
    /* 40 too many, of 40 + 20 + 20 that could be given. */
    check_eq(b.n_notices, 3);
    check_notice(&b, 0, &a, 20 * MIB, false);
    check_notice(&b, 1, &mate, 10 * MIB, false);
    check_notice(&b, 2, &pinned, 10 * MIB, false);
    check_eq(broker_pressure(a.peer->instance), 40 * MIB);
    check_eq(lease_unclaim(&a.line, 8), 8);
    bench_ack(&b, a.peer);
    check_eq(broker_used(a.peer->instance), 76 * MIB);
    check_eq(broker_pressure(a.peer->instance), 24 * MIB);
    /* Claims are promises, whatever the limit. */
    bench_lease_take(&b, a.lease, &a.line, a.peer, 2, NULL);
    check(!a.peer->instance->missed);
    bench_pass(&b, 2 * NSEC_PER_SEC);
    check(a.peer->instance->missed);
    check(!a.peer->missed && mate.peer->missed);
    check_eq(bench_ask(&b, a.peer, 1, 0), BROKER_E_LIMIT);
    engine_return(&b, &mate, 0, 10);
    check(a.peer->instance->missed);
    engine_return(&b, &pinned, 0, 2);
    check(!a.peer->instance->missed);
    check_eq(broker_pressure(a.peer->instance), 0);
    check_eq(bench_ask(&b, a.peer, 1, 0), BROKER_E_LIMIT);
    engine_return(&b, &pinned, 2, 1);
    bench_take(&b, a.peer, 1, 0, NULL);
    bench_finish(&b);
}

TEST(pins_are_no_way_out_of_a_limit)
{
    struct engine a, mate;
    struct bench b;

    bench_begin(&b, 200 * MIB);
    engine_start(&b, &a, "a", 10, 0);
    engine_start(&b, &mate, "a", 20, 10);
    a.line.pinned_pages = 10;
    mate.line.pinned_pages = UINT64_MAX;
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 40 * MIB), 0);
    bench_run(&b);
    check_eq(b.n_notices, 2);
    check_notice(&b, 0, &a, 10 * MIB, false);
    check_notice(&b, 1, &mate, 30 * MIB, false);
    bench_ack(&b, a.peer);
    bench_ack(&b, mate.peer);
    bench_pass(&b, 2 * NSEC_PER_SEC);
    check(a.peer->instance->missed);
    bench_finish(&b);
}

static void join_as(struct bench *b, struct engine *engine, bool schedules, uint32_t held)
{
    engine_join(b, engine, "d", "a");
    broker_peer_listens(b->broker, engine->peer, schedules, !schedules);
    if (held)
        bench_take(b, engine->peer, held, 0, engine->ids);
}

/* What workers hold is their scheduler's to give, as long as there is one. */
TEST(a_scheduler_is_asked_for_what_its_workers_hold)
{
    struct engine first, second, scheduler, other;
    struct bench b;

    bench_begin(&b, 200 * MIB);
    join_as(&b, &first, false, 10);
    join_as(&b, &second, false, 20);
    join_as(&b, &scheduler, true, 0);
    engine_start(&b, &other, "a", 6, 0);
    first.line.pinned_pages = 4;
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 40 * MIB), 0);
    bench_run(&b);
    /* 32 too many, of 12 + 40 + 12 that could be given. */
    check_eq(b.n_notices, 2);
    check_notice(&b, 0, &scheduler, 26 * MIB, false);
    check_notice(&b, 1, &other, 6 * MIB, false);
    bench_ack(&b, scheduler.peer);
    bench_ack(&b, other.peer);
    broker_peer_lost(b.broker, scheduler.peer, b.now_ns);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 8 * MIB), 0);
    bench_run(&b);
    /* 64 too many, and nobody else to ask. */
    check_eq(b.n_notices, 5);
    check_notice(&b, 2, &first, 12 * MIB, false);
    check_notice(&b, 3, &second, 40 * MIB, false);
    check_notice(&b, 4, &other, 12 * MIB, false);
    bench_finish(&b);
}

TEST(a_raised_limit_restores_at_once)
{
    struct engine a;
    struct bench b;

    bench_begin(&b, 200 * MIB);
    engine_start(&b, &a, "a", 10, 5);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 0), 0);
    bench_run(&b);
    check_notice(&b, 0, &a, 30 * MIB, false);
    bench_pass(&b, 2 * NSEC_PER_SEC);
    check(a.peer->instance->missed);
    check_eq(bench_ask(&b, a.peer, 1, 0), BROKER_E_LIMIT);
    check_eq(bench_lease_ask(&b, a.lease, 1, false), BROKER_E_LIMIT);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, UINT64_MAX), 0);
    bench_run(&b);
    check(!a.peer->instance->missed);
    check_eq(broker_pressure(a.peer->instance), 0);
    bench_take(&b, a.peer, 1, 0, NULL);
    check_eq(b.n_notices, 1);
    /* Lowered again: only when the first is acknowledged, and only with what is wanted by then. */
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 20 * MIB), 0);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 24 * MIB), 0);
    bench_run(&b);
    check_eq(b.n_notices, 1);
    broker_notice_acked(b.broker, a.peer, 7, b.now_ns);
    bench_run(&b);
    check_eq(b.n_notices, 1);
    bench_ack(&b, a.peer);
    check_eq(b.n_notices, 2);
    check_notice(&b, 1, &a, 8 * MIB, false);
    check_eq(b.notices[1].number, 2);
    bench_finish(&b);
}

TEST(a_budget_that_falls_asks_out_of_courtesy)
{
    struct engine a, c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 20, 10);
    engine_start(&b, &c, "c", 10, 0);
    c.line.cached_pages = 4;
    check_eq(bench_lease_ask(&b, c.lease, 5, false), 0);
    b.config.budget_bytes = 60 * MIB;
    broker_reconfigure(b.broker, &b.config, b.now_ns);
    bench_run(&b);
    check_eq(broker_lease_pages(c.lease), 0);
    /* 20 too many. */
    check_eq(b.n_notices, 1);
    check_notice(&b, 0, &a, 20 * MIB, true);
    check_eq(lease_unclaim(&a.line, 3), 3);
    bench_ack(&b, a.peer);
    check_eq(bench_totals(&b).leased_bytes, 14 * MIB);
    check(!a.peer->instance->missed && !c.peer->instance->missed);
    bench_finish(&b);
}

TEST(who_has_claims_is_asked_once_when_nobody_needs_the_pool)
{
    struct engine a, c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &c, "c", 10, 0);
    engine_start(&b, &a, "a", 10, 5);
    c.line.cached_pages = 10;
    bench_pass(&b, 30 * NSEC_PER_SEC);
    check_eq(b.n_notices, 1);
    check_notice(&b, 0, &a, 10 * MIB, true);
    check_eq(lease_unclaim(&a.line, 3), 3);
    bench_ack(&b, a.peer);
    check_eq(broker_lease_pages(a.lease), 2);
    check_eq(bench_totals(&b).held_bytes, 44 * MIB);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_pass(&b, 1000 * NSEC_PER_SEC);
    check_eq(b.n_notices, 1);
    /* Somebody uses memory, and ceases to: then it is asked again. No answer keeps nobody awake. */
    engine_return(&b, &a, 0, 1);
    bench_pass(&b, 29 * NSEC_PER_SEC);
    check_eq(b.n_notices, 1);
    bench_pass(&b, 2 * NSEC_PER_SEC);
    check_eq(b.n_notices, 2);
    check_notice(&b, 1, &a, 4 * MIB, true);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_finish(&b);
}

TEST(claims_of_the_same_tenant_are_asked_for_when_leases_are_short_of_descriptors)
{
    struct engine a, c, other;
    struct bench b;

    bench_init(&b, 200 * MIB);
    b.config.lease_max = 32;
    bench_start(&b);
    engine_join(&b, &other, "other", "a");
    broker_peer_listens(b.broker, other.peer, false, false);
    check_eq(bench_lease_ask(&b, other.lease, 4, false), 0);
    check_eq(lease_claim(&other.line, 4), 4);
    engine_start(&b, &a, "a", 0, 7);
    engine_start(&b, &c, "c", 0, 0);
    /* 14 for the domain: half of 7, or 7 if nothing were claimed. */
    check_eq(bench_lease_ask(&b, c.lease, 8, false), BROKER_E_DESCRIPTORS);
    check_eq(bench_lease_ask(&b, c.lease, 5, true), BROKER_E_DESCRIPTORS);
    check_eq(b.n_notices, 0);
    check_eq(bench_lease_ask(&b, c.lease, 5, false), BROKER_E_DESCRIPTORS);
    bench_run(&b);
    check_eq(b.n_notices, 1);
    check_notice(&b, 0, &a, 14 * MIB, true);
    check_eq(lease_unclaim(&a.line, 3), 3);
    bench_ack(&b, a.peer);
    check_eq(bench_lease_ask(&b, c.lease, 5, false), 0);
    check_eq(b.n_notices, 1);
    bench_finish(&b);
}
