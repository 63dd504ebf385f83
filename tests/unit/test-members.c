/* SPDX-License-Identifier: Apache-2.0 */

/* Domains, instances, peers and limits: who they are, and what becomes of what they had. */

#include "base/arith.h"
#include "broker-bench.h"
#include "test.h"

TEST(limits_have_an_order_and_admins_a_record)
{
    enum broker_limit_source source;
    struct broker_instance *instance;
    struct broker_peer *peer = NULL;
    uint64_t limits[5] = {0, UINT64_MAX, 40 * MIB, 30 * MIB, 0};
    struct bench b;

    bench_begin(&b, 100 * MIB);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ENGINE, MIB), BROKER_E_NOT_FOUND);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_BUDGET, MIB), BROKER_E_INVALID);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 200 * MIB), 0);
    bench_run(&b);
    instance = broker_instance_find(b.broker, "d", "a");
    check(instance);
    check_eq(broker_limit(b.broker, instance, &source), 100 * MIB);
    check_eq(source, BROKER_LIMIT_ADMIN);
    check_eq(broker_peer_new(b.broker, "d", "a", 1, limits, &peer), 0);
    check(peer->instance == instance);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, UINT64_MAX), 0);
    check_eq(broker_limit(b.broker, instance, &source), 40 * MIB);
    check_eq(source, BROKER_LIMIT_CONFIG);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_CONFIG, UINT64_MAX), 0);
    check_eq(broker_limit(b.broker, instance, &source), 30 * MIB);
    check_eq(source, BROKER_LIMIT_ENGINE);
    check_eq(broker_instance_delete(b.broker, instance), BROKER_E_HAS_PEERS);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 0), 0);
    bench_end(&b, peer);
    check_eq(b.n_forgets, 0);
    check_eq(broker_instance_delete(b.broker, instance), 0);
    bench_run(&b);
    check_eq(b.n_forgets, 1);
    check(!broker_instance_find(b.broker, "d", "a"));
    bench_finish(&b);
}

TEST(a_name_is_its_openers)
{
    struct broker_peer *first, *second, *thief = NULL;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    first = bench_join(&b, "d", "a");
    second = bench_join(&b, "d", "a");
    check(first->instance == second->instance);
    check_eq(broker_peer_new(b.broker, "d", "a", 2, bench_no_limits, &thief), BROKER_E_IDENTITY);
    check_eq(broker_peer_new(b.broker, "e", "a", 2, bench_no_limits, &thief), 0);
    bench_end(&b, thief);
    bench_take(&b, first, 1, 0, NULL);
    b.keep = true;
    bench_end(&b, first);
    bench_end(&b, second);
    check_eq(broker_peer_new(b.broker, "d", "a", 2, bench_no_limits, &thief), BROKER_E_IDENTITY);
    b.kept_bytes = 0;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(broker_peer_new(b.broker, "d", "a", 2, bench_no_limits, &thief), 0);
    bench_finish(&b);
}

TEST(a_frozen_instance_gets_nothing_more)
{
    struct broker_peer *peer, *more = NULL;
    struct broker_request *request;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    b.hold_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){1}, b.now_ns, &request), 0);
    bench_run(&b);
    broker_instance_freeze(b.broker, peer->instance);
    bench_run(&b);
    check_eq(b.error, BROKER_E_FROZEN);
    check_eq(bench_ask(&b, peer, 1, 0), BROKER_E_FROZEN);
    check_eq(broker_peer_new(b.broker, "d", "a", 1, bench_no_limits, &more), BROKER_E_FROZEN);
    bench_end(&b, peer);
    bench_answer(&b, 0);
    bench_finish(&b);
}

TEST(a_name_thaws_when_nothing_is_left_of_who_was_frozen)
{
    struct broker_peer *peer, *next = NULL;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    bench_take(&b, peer, 1, 0, NULL);
    broker_instance_freeze(b.broker, peer->instance);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 10 * MIB), 0);
    b.keep = true;
    bench_end(&b, peer);
    check_eq(broker_peer_new(b.broker, "d", "a", 1, bench_no_limits, &next), BROKER_E_FROZEN);
    b.kept_bytes = 0;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(broker_peer_new(b.broker, "d", "a", 1, bench_no_limits, &next), 0);
    check_eq(bench_ask(&b, next, 1, 0), 0);
    broker_request_free(b.broker, b.granted);
    check_eq(bench_ask(&b, next, 6, 0), BROKER_E_LIMIT);
    bench_end(&b, next);
    b.kept_bytes = 0;
    bench_pass(&b, NSEC_PER_SEC);
    bench_finish(&b);
}

TEST(a_domain_that_ends_takes_its_colour_with_it)
{
    struct broker_peer *a, *last;
    struct bench b;
    uint64_t ids[4];

    bench_begin(&b, 100 * MIB);
    a = bench_join(&b, "d", "a");
    last = bench_join(&b, "d", "b");
    bench_take(&b, a, 4, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 4, b.now_ns), 0);
    bench_end(&b, a);
    check_eq(bench_totals(&b).pool_bytes, 8 * MIB);
    bench_end(&b, last);
    check_eq(bench_totals(&b).held_bytes, 0);
    check_eq(b.ours_bytes, 0);
    bench_finish(&b);
}

TEST(a_lost_peer_is_charged_until_its_bytes_are_free)
{
    struct broker_instance *instance;
    struct broker_peer *peer;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    instance = peer->instance;
    bench_take(&b, peer, 10, 0, NULL);
    broker_peer_lost(b.broker, peer, b.now_ns);
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(instance->account.bytes[LEDGER_LIMBO], 20 * MIB);
    check_eq(b.n_destroys, 0);
    check_eq(b.n_looks, 4);
    b.keep = true;
    bench_end(&b, peer);
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(b.n_destroys, 10);
    check_eq(broker_used(instance), 20 * MIB);
    check_eq(bench_totals(&b).destroying_bytes, 20 * MIB);
    check_eq(b.n_forgets, 0);
    b.kept_bytes = 6 * MIB;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(broker_used(instance), 6 * MIB);
    b.kept_bytes = 0;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(b.n_forgets, 1);
    check_eq(bench_totals(&b).held_bytes, 0);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_finish(&b);
}

TEST(a_lost_peers_extents_are_never_used_again)
{
    struct broker_peer *a, *heir;
    struct bench b;
    uint64_t ids[4], theirs[4];

    bench_begin(&b, 100 * MIB);
    a = bench_join(&b, "d", "a");
    heir = bench_join(&b, "d", "b");
    bench_take(&b, a, 4, 0, ids);
    bench_end(&b, a);
    bench_take(&b, heir, 4, 0, theirs);
    check_eq(b.n_destroys, 4);
    check_eq(b.n_creates, 8);
    bench_finish(&b);
}

TEST(earmarks_of_a_lost_peer_go_back_and_its_grants_do_not)
{
    struct broker_request *waits, *granted;
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[2];

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    bench_take(&b, peer, 2, 0, ids);
    check_eq(bench_ask(&b, peer, 1, 0), 0);
    granted = b.granted;
    check_eq(broker_return(b.broker, peer, ids, 2, b.now_ns), 0);
    bench_run(&b);
    b.hold_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){3}, b.now_ns, &waits), 0);
    bench_run(&b);
    check_eq(waits->n_ready, 2);
    broker_peer_lost(b.broker, peer, b.now_ns);
    bench_run(&b);
    check_eq(bench_totals(&b).limbo_bytes, 2 * MIB);
    check_eq(bench_totals(&b).pool_bytes, 4 * MIB);
    check_eq(peer->instance->account.bytes[LEDGER_PENDING], 0);
    bench_end(&b, peer);
    broker_request_free(b.broker, granted);
    bench_answer(&b, 0);
    bench_pass(&b, NSEC_PER_SEC);
    bench_finish(&b);
    check_eq(b.ours_bytes, 0);
}

TEST(what_waits_gives_way_to_a_lower_limit)
{
    struct broker_request *first, *second;
    struct broker_peer *peer;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    b.fail_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){4}, b.now_ns, &first), 0);
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){4}, b.now_ns, &second), 0);
    bench_run(&b);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_CONFIG, 10 * MIB), 0);
    bench_run(&b);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_LIMIT);
    b.fail_creates = false;
    bench_pass(&b, NSEC_PER_SEC);
    check(b.granted == first);
    broker_request_free(b.broker, first);
    bench_finish(&b);
}
