/* SPDX-License-Identifier: Apache-2.0 */

/* How extents come to those who wait, and go when others need the memory. */

#include "base/arith.h"
#include "broker-bench.h"
#include "test.h"

TEST(a_driver_that_fails_is_asked_again_and_not_too_often)
{
    struct broker_peer *peer;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    b.fail_creates = true;
    check_eq(bench_ask(&b, peer, 1, 0), 0);
    check_eq(b.n_creates, 1);
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(b.n_refusals, 0);
    check(b.n_creates >= 4 && b.n_creates <= 5);
    b.fail_creates = false;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(b.n_grants, 1);
    broker_request_free(b.broker, b.granted);
    b.fail_creates = true;
    check_eq(bench_ask(&b, peer, 1, 0), 0);
    bench_pass(&b, 3 * NSEC_PER_SEC);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(broker_used(peer->instance), 2 * MIB);
    bench_finish(&b);
}

TEST(exports_that_fail_cost_the_extent_and_end)
{
    struct broker_peer *peer;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    b.fail_exports = true;
    check_eq(bench_ask(&b, peer, 1, 0), 0);
    bench_pass(&b, 10 * NSEC_PER_SEC);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(b.n_creates, b.n_destroys);
    check(b.n_creates >= 2 && b.n_creates <= 10);
    check_eq(b.ours_bytes, 0);
    b.fail_exports = false;
    bench_take(&b, peer, 1, 0, NULL);
    bench_finish(&b);
}

TEST(a_request_that_free_memory_cannot_hold_is_refused_in_the_end)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 512 * MIB);
    b.foreign_bytes = 900 * MIB;
    b.config.headroom_bytes = 24 * MIB;
    bench_start(&b);
    peer = bench_join(&b, "d", "a");
    check_eq(bench_ask(&b, peer, 60, 0), 0);
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(bench_totals(&b).pool_bytes, 100 * MIB);
    check(bench_free(&b) == 24 * MIB);
    check_eq(b.n_refusals, 0);
    bench_pass(&b, 2 * NSEC_PER_SEC);
    check_eq(b.error, BROKER_E_DRIVER);
    /* Others give up memory: the next one is met. */
    check_eq(bench_ask(&b, peer, 60, 0), 0);
    bench_pass(&b, NSEC_PER_SEC);
    b.foreign_bytes = 0;
    bench_pass(&b, NSEC_PER_SEC);
    check(b.granted);
    broker_request_free(b.broker, b.granted);
    bench_finish(&b);
}

TEST(nobody_is_refused_for_a_look_that_failed_once)
{
    struct broker_request *first, *second;
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    b.config.creating_max = 1;
    bench_start(&b);
    peer = bench_join(&b, "d", "a");
    b.hold_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){1}, b.now_ns, &first), 0);
    bench_run(&b);
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){0, 1}, b.now_ns, &second), 0);
    broker_look_failed(b.broker, b.now_ns);
    bench_pass(&b, 20 * NSEC_PER_SEC);
    check_eq(b.n_refusals, 0);
    broker_look_failed(b.broker, b.now_ns);
    broker_tick(b.broker, b.now_ns + 20 * NSEC_PER_SEC);
    bench_run(&b);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_DRIVER);
    broker_request_free(b.broker, first);
    bench_answer(&b, 0);
    bench_finish(&b);
}

TEST(memory_that_somebody_keeps_is_waited_for)
{
    struct broker_peer *liar, *other;
    struct bench b;
    uint64_t ids[40];

    bench_begin(&b, 100 * MIB);
    liar = bench_join(&b, "d", "a");
    other = bench_join(&b, "e", "a");
    bench_take(&b, liar, 40, 0, ids);
    check_eq(broker_return(b.broker, liar, ids, 40, b.now_ns), 0);
    b.keep = true;
    bench_run(&b);
    check_eq(bench_ask(&b, other, 40, 0), 0);
    bench_pass(&b, NSEC_PER_SEC);
    check(!b.granted);
    check(bench_totals(&b).held_bytes <= 100 * MIB);
    b.keep = false;
    b.kept_bytes = 0;
    bench_pass(&b, NSEC_PER_SEC);
    check(b.granted);
    broker_request_free(b.broker, b.granted);
    bench_finish(&b);
}

/* Between two looks others may take what was released; around the release itself there is no time for it. */
TEST(what_others_take_hides_nothing_that_was_seen)
{
    struct broker_peer *peer, *other;
    struct bench b;
    uint64_t ids[40];

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    other = bench_join(&b, "e", "a");
    bench_take(&b, peer, 40, 0, ids);
    check_eq(broker_return(b.broker, peer, ids, 40, b.now_ns), 0);
    b.looks_around = b.others_grow = true;
    bench_take(&b, other, 40, 0, ids);
    check_eq(bench_totals(&b).destroying_bytes, 0);
    b.others_grow = false;
    bench_finish(&b);
}

TEST(an_idle_pool_is_given_back_and_then_nobody_wakes)
{
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[8];
    unsigned looks;

    bench_begin(&b, 100 * MIB);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    peer = bench_join(&b, "d", "a");
    bench_take(&b, peer, 8, 0, ids);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    check_eq(broker_return(b.broker, peer, ids, 4, b.now_ns), 0);
    bench_pass(&b, 29 * NSEC_PER_SEC);
    check_eq(bench_totals(&b).pool_bytes, 8 * MIB);
    bench_pass(&b, 2 * NSEC_PER_SEC);
    check_eq(bench_totals(&b).pool_bytes, 0);
    check_eq(b.ours_bytes, 8 * MIB);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    looks = b.n_looks;
    bench_pass(&b, 1000 * NSEC_PER_SEC);
    check_eq(b.n_looks, looks);
    bench_finish(&b);
}

TEST(the_pool_yields_to_others_and_the_budget_follows)
{
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[60];

    bench_init(&b, 0);
    b.config.headroom_bytes = 32 * MIB;
    bench_start(&b);
    check_eq(bench_totals(&b).budget_bytes, 1024 * MIB / 1000000 * 900000 + 1024 * MIB % 1000000 * 9 / 10);
    peer = bench_join(&b, "d", "a");
    bench_take(&b, peer, 0, 60, ids);
    check_eq(broker_return(b.broker, peer, ids, 40, b.now_ns), 0);
    bench_run(&b);
    check_eq(bench_totals(&b).pool_bytes, 320 * MIB);
    b.foreign_bytes = 500 * MIB;
    bench_pass(&b, NSEC_PER_SEC);
    /* 921.6 - 500 are left for us. */
    check_eq(bench_totals(&b).budget_bytes >> 20, 421);
    check_eq(bench_totals(&b).held_bytes, 416 * MIB);
    /* 8 are free then, and the headroom is 32; the budget asks for even more. */
    b.foreign_bytes = 600 * MIB;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(bench_totals(&b).held_bytes, 320 * MIB);
    b.foreign_bytes = 700 * MIB;
    bench_pass(&b, NSEC_PER_SEC);
    b.foreign_bytes = 800 * MIB;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(bench_totals(&b).pool_bytes, 0);
    check_eq(bench_totals(&b).granted_bytes, 160 * MIB);
    check_eq(bench_ask(&b, peer, 1, 0), BROKER_E_BUDGET);
    bench_end(&b, peer);
    b.foreign_bytes = 0;
    bench_finish(&b);
}

TEST(a_budget_rises_when_it_has_been_stable)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 0);
    b.foreign_bytes = 900 * MIB;
    bench_start(&b);
    peer = bench_join(&b, "d", "a");
    check_eq(bench_ask(&b, peer, 20, 0), BROKER_E_BUDGET);
    b.foreign_bytes = 0;
    b.now_ns += NSEC_PER_SEC;
    check_eq(bench_ask(&b, peer, 20, 0), BROKER_E_BUDGET);
    bench_pass(&b, NSEC_PER_SEC / 2);
    check_eq(bench_ask(&b, peer, 20, 0), BROKER_E_BUDGET);
    bench_pass(&b, NSEC_PER_SEC);
    bench_take(&b, peer, 20, 0, NULL);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_finish(&b);
}

TEST(descriptors_are_bounded_and_nobody_waits_for_ever)
{
    struct broker_request *requests[3];
    struct broker_peer *peers[3];
    struct bench b;
    unsigned n_done = 0;

    bench_init(&b, 1000 * MIB);
    b.config.warm_max = 16;
    b.config.lease_max = 0;
    bench_start(&b);
    for (unsigned i = 0; i < 3; i++)
        peers[i] = bench_join(&b, i ? "d" : "e", "a");
    for (unsigned i = 0; i < 3; i++)
        check_eq(broker_take(b.broker, peers[i], (uint32_t[BROKER_CLASSES_MAX]){10}, b.now_ns, &requests[i]),
                 0);
    while (n_done < 3) {
        b.granted = NULL;
        bench_run(&b);
        check(b.granted);
        check_eq(b.n_grants, ++n_done);
        broker_request_free(b.broker, b.granted);
    }
    bench_finish(&b);
}

TEST(warm_extents_of_others_make_way_for_descriptors)
{
    struct broker_peer *a, *other;
    struct bench b;
    uint64_t ids[16];

    bench_init(&b, 1000 * MIB);
    b.config.warm_max = 16;
    b.config.lease_max = 0;
    bench_start(&b);
    a = bench_join(&b, "d", "a");
    other = bench_join(&b, "e", "a");
    bench_take(&b, a, 16, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 16, b.now_ns), 0);
    bench_run(&b);
    check_eq(bench_totals(&b).warm_bytes, 32 * MIB);
    bench_take(&b, other, 0, 4, NULL);
    check_eq(bench_totals(&b).pool_bytes, 24 * MIB);
    bench_finish(&b);
}

/* A driver that makes room only bit by bit: whose creates are carried out? */
TEST(creates_are_dealt_out_fairly)
{
    struct broker_request *large, *small[30];
    struct broker_peer *a, *other;
    uint64_t bytes[2] = {};
    struct bench b;

    bench_init(&b, 1000 * MIB);
    b.config.creating_max = 1;
    bench_start(&b);
    a = bench_join(&b, "d", "a");
    other = bench_join(&b, "e", "a");
    b.hold_creates = true;
    check_eq(broker_take(b.broker, a, (uint32_t[BROKER_CLASSES_MAX]){0, 20}, b.now_ns, &large), 0);
    for (unsigned i = 0; i < 30; i++)
        check_eq(broker_take(b.broker, other, (uint32_t[BROKER_CLASSES_MAX]){1}, b.now_ns, &small[i]), 0);
    bench_run(&b);
    for (unsigned i = 0; i < 20; i++) {
        uint64_t id = b.held_back[0], size = b.sizes[(uint32_t)id];

        b.n_held_back = 0;
        bytes[size == 2 * MIB] += size;
        b.ours_bytes += size;
        broker_created(b.broker, id, true, b.now_ns);
        bench_run(&b);
    }
    /* One was ordered before there was anybody to share with. */
    check_eq(bytes[0], 40 * MIB);
    check_eq(bytes[1], 30 * MIB);
    check_eq(b.n_grants, 15);
    for (unsigned i = 0; i < 15; i++)
        broker_request_free(b.broker, small[i]);
    broker_peer_lost(b.broker, a, b.now_ns);
    broker_peer_lost(b.broker, other, b.now_ns);
    bench_run(&b);
    bench_answer(&b, 0);
    bench_finish(&b);
}

TEST(a_reserve_follows_demand_and_harms_nobody)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    b.config.reserve_bytes = 10 * MIB;
    bench_start(&b);
    peer = bench_join(&b, "d", "a");
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(bench_totals(&b).pool_bytes, 0);
    bench_take(&b, peer, 8, 0, NULL);
    bench_pass(&b, NSEC_PER_SEC / 2);
    check_eq(bench_totals(&b).pool_bytes, 10 * MIB);
    check_eq(bench_totals(&b).warm_bytes, 10 * MIB);
    /* At hand now. */
    bench_take(&b, peer, 5, 0, NULL);
    bench_pass(&b, 60 * NSEC_PER_SEC);
    check_eq(bench_totals(&b).pool_bytes, 0);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    /* Never beyond the budget: 26 of 100 are held, and 72 more leave too little for another of 8. */
    bench_take(&b, peer, 0, 9, NULL);
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(bench_totals(&b).held_bytes, 98 * MIB);
    check_eq(bench_ask(&b, peer, 1, 0), 0);
    check(b.granted);
    broker_request_free(b.broker, b.granted);
    bench_finish(&b);
}
