/* SPDX-License-Identifier: Apache-2.0 */
#include "broker.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "broker-bench.h"
#include "test.h"

TEST(take_creates_and_return_keeps)
{
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[3];

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    bench_take(&b, peer, 2, 1, ids);
    check_eq(b.n_creates, 3);
    check_eq(b.n_exports, 3);
    check_eq(bench_totals(&b).granted_bytes, 12 * MIB);
    check_eq(broker_return(b.broker, peer, ids, 3, b.now_ns), 0);
    bench_run(&b);
    check_eq(bench_totals(&b).granted_bytes, 0);
    check_eq(bench_totals(&b).pool_bytes, 12 * MIB);
    check_eq(bench_totals(&b).warm_bytes, 12 * MIB);
    bench_take(&b, peer, 2, 1, NULL);
    check_eq(b.n_creates, 3);
    bench_end(&b, peer);
    check_eq(b.ours_bytes, 0);
    check_eq(b.n_forgets, 1);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_finish(&b);
}

TEST(admission_is_by_limit_and_budget)
{
    struct broker_peer *a, *b2;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    a = bench_join(&b, "d", "a");
    b2 = bench_join(&b, "d", "b");
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 20 * MIB), 0);
    check_eq(bench_ask(&b, a, 11, 0), BROKER_E_LIMIT);
    bench_take(&b, a, 10, 0, NULL);
    check_eq(bench_ask(&b, a, 1, 0), BROKER_E_LIMIT);
    check_eq(bench_ask(&b, b2, 41, 0), BROKER_E_BUDGET);
    bench_take(&b, b2, 0, 10, NULL);
    check_eq(bench_totals(&b).granted_bytes, 100 * MIB);
    check_eq(bench_ask(&b, b2, 1, 0), BROKER_E_BUDGET);
    check_eq(bench_ask(&b, b2, 0, 0), BROKER_E_INVALID);
    check_eq(bench_ask(&b, b2, 65, 0), BROKER_E_INVALID);
    bench_finish(&b);
}

TEST(a_zero_limit_refuses_everything)
{
    struct broker_peer *peer;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    bench_take(&b, peer, 4, 0, NULL);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 0), 0);
    check_eq(bench_ask(&b, peer, 1, 0), BROKER_E_LIMIT);
    check_eq(broker_limit(b.broker, peer->instance, NULL), 0);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, UINT64_MAX), 0);
    bench_take(&b, peer, 1, 0, NULL);
    bench_finish(&b);
}

TEST(room_in_the_pool_is_room_for_all)
{
    struct broker_peer *a, *other;
    struct bench b;
    uint64_t ids[50];

    bench_begin(&b, 100 * MIB);
    a = bench_join(&b, "d", "a");
    other = bench_join(&b, "e", "a");
    bench_take(&b, a, 50, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 50, b.now_ns), 0);
    bench_run(&b);
    check_eq(bench_totals(&b).pool_bytes, 100 * MIB);
    /* Another class for another domain: everything has to be made anew, and is. */
    bench_take(&b, other, 2, 12, NULL);
    check_eq(bench_totals(&b).held_bytes, 100 * MIB);
    check_eq(b.n_destroys, 50);
    check_eq(b.n_refusals, 0);
    bench_finish(&b);
}

TEST(what_is_warm_is_granted_in_the_same_call_while_others_wait)
{
    struct broker_peer *a, *other;
    struct broker_request *slow, *fast;
    struct broker_action action;
    struct bench b;
    uint64_t ids[2];

    bench_begin(&b, 200 * MIB);
    a = bench_join(&b, "d", "a");
    other = bench_join(&b, "e", "a");
    bench_take(&b, a, 2, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 2, b.now_ns), 0);
    bench_run(&b);
    check_eq(bench_totals(&b).warm_bytes, 4 * MIB);
    b.hold_creates = true;
    check_eq(broker_take(b.broker, other, (uint32_t[BROKER_CLASSES_MAX]){4}, b.now_ns, &slow), 0);
    check_eq(broker_take(b.broker, a, (uint32_t[BROKER_CLASSES_MAX]){2}, b.now_ns, &fast), 0);
    check(broker_next_action(b.broker, &action));
    check_eq(action.type, BROKER_ACTION_GRANT);
    check(action.request == fast);
    broker_request_free(b.broker, fast);
    bench_run(&b);
    check_eq(b.n_grants, 1);
    for (unsigned i = 0; i < b.n_held_back; i++) {
        bench_answer(&b, i);
    }
    b.hold_creates = false;
    bench_run(&b);
    check(b.granted == slow);
    broker_request_free(b.broker, slow);
    bench_finish(&b);
}

TEST(a_later_request_does_not_pass_an_earlier_one_of_its_domain)
{
    struct broker_request *first, *second;
    struct broker_peer *a;
    struct bench b;
    uint64_t ids[2];

    bench_begin(&b, 200 * MIB);
    a = bench_join(&b, "d", "a");
    bench_take(&b, a, 2, 0, ids);
    b.hold_creates = true;
    check_eq(broker_take(b.broker, a, (uint32_t[BROKER_CLASSES_MAX]){3}, b.now_ns, &first), 0);
    check_eq(broker_take(b.broker, a, (uint32_t[BROKER_CLASSES_MAX]){1}, b.now_ns, &second), 0);
    check_eq(broker_return(b.broker, a, ids, 2, b.now_ns), 0);
    bench_run(&b);
    check_eq(b.n_grants, 1);
    check_eq(first->n_ready, 2);
    check_eq(second->n_ready, 0);
    bench_answer(&b, 0);
    bench_run(&b);
    check(b.granted == first);
    broker_request_free(b.broker, first);
    for (unsigned i = 1; i < b.n_held_back; i++) {
        bench_answer(&b, i);
    }
    b.hold_creates = false;
    bench_run(&b);
    check(b.granted == second);
    broker_request_free(b.broker, second);
    bench_finish(&b);
}

TEST(nothing_crosses_domains)
{
    struct broker_peer *a, *same, *other;
    struct bench b;
    uint64_t ids[4], again[4], theirs[4];

    bench_begin(&b, 100 * MIB);
    a = bench_join(&b, "d", "a");
    same = bench_join(&b, "d", "b");
    other = bench_join(&b, "e", "a");
    bench_take(&b, a, 4, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 4, b.now_ns), 0);
    bench_run(&b);
    bench_take(&b, other, 4, 0, theirs);
    bench_take(&b, same, 4, 0, again);
    check_eq(b.n_creates, 8);
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 4; k++)
            check(theirs[i] != ids[k]);
    bench_finish(&b);
}

TEST(returns_are_all_or_nothing)
{
    struct broker_peer *a, *other;
    struct bench b;
    uint64_t ids[4], theirs[1];

    bench_begin(&b, 100 * MIB);
    a = bench_join(&b, "d", "a");
    other = bench_join(&b, "d", "b");
    bench_take(&b, a, 4, 0, ids);
    bench_take(&b, other, 1, 0, theirs);
    check_eq(broker_return(b.broker, a, (uint64_t[]){ids[0], ids[1], ids[0]}, 3, b.now_ns),
             BROKER_E_NOT_HELD);
    check_eq(broker_return(b.broker, a, (uint64_t[]){ids[0], theirs[0]}, 2, b.now_ns), BROKER_E_NOT_HELD);
    check_eq(broker_return(b.broker, a, (uint64_t[]){ids[0], 12345}, 2, b.now_ns), BROKER_E_NOT_HELD);
    check_eq(a->n_extents, 4);
    check_eq(broker_return(b.broker, a, ids, 4, b.now_ns), 0);
    check_eq(broker_return(b.broker, a, ids, 1, b.now_ns), BROKER_E_NOT_HELD);
    check_eq(a->held_bytes, 0);
    bench_run(&b);
    bench_finish(&b);
}

TEST(what_is_not_sent_cannot_be_returned)
{
    struct broker_peer *peer;
    struct bench b;
    uint64_t id;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    check_eq(bench_ask(&b, peer, 1, 0), 0);
    id = b.granted->extents[0];
    check_eq(broker_return(b.broker, peer, &id, 1, b.now_ns), BROKER_E_NOT_HELD);
    broker_request_free(b.broker, b.granted);
    check_eq(broker_return(b.broker, peer, &id, 1, b.now_ns), 0);
    bench_run(&b);
    bench_finish(&b);
}

TEST(what_is_granted_can_outlive_its_request)
{
    struct broker_request *request;
    struct broker_peer *peer;
    struct bench b;
    uint64_t *ids;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    check_eq(bench_ask(&b, peer, 2, 1), 0);
    request = b.granted;
    check_eq(broker_return(b.broker, peer, request->extents, 3, b.now_ns), BROKER_E_NOT_HELD);
    ids = broker_request_keep_extents(b.broker, request);
    bench_run(&b);
    check_eq(broker_return(b.broker, peer, ids, 3, b.now_ns), 0);
    bench_run(&b);
    free(ids);
    bench_finish(&b);
}

TEST(draining_lets_go_of_all)
{
    struct broker_request *waits;
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[4];

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    bench_take(&b, peer, 4, 0, ids);
    check_eq(broker_return(b.broker, peer, ids, 2, b.now_ns), 0);
    bench_run(&b);
    b.fail_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){0, 1}, b.now_ns, &waits), 0);
    bench_run(&b);
    broker_drain(b.broker, b.now_ns);
    bench_run(&b);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(bench_ask(&b, peer, 1, 0), BROKER_E_DRIVER);
    check_eq(bench_totals(&b).pool_bytes, 0);
    check_eq(broker_return(b.broker, peer, ids + 2, 2, b.now_ns), 0);
    bench_run(&b);
    check_eq(b.ours_bytes, 0);
    bench_finish(&b);
}

TEST(budgets_are_reconfigured)
{
    struct broker_peer *peer;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    bench_take(&b, peer, 40, 0, NULL);
    b.config.budget_bytes = 50 * MIB;
    broker_reconfigure(b.broker, &b.config, b.now_ns);
    bench_run(&b);
    check_eq(bench_ask(&b, peer, 1, 0), BROKER_E_BUDGET);
    check_eq(broker_limit(b.broker, peer->instance, NULL), 50 * MIB);
    b.config.budget_bytes = 82 * MIB;
    broker_reconfigure(b.broker, &b.config, b.now_ns);
    bench_take(&b, peer, 1, 0, NULL);
    bench_finish(&b);
}

TEST(configurations_that_make_no_sense_are_refused)
{
    struct broker *broker = NULL;
    struct bench b;

    bench_init(&b, 0);
    b.config.class_bytes[1] = 5 * MIB;
    check_eq(broker_new(&b.config, 0, 0, &broker), -EINVAL);
    bench_init(&b, 0);
    b.config.class_bytes[1] = 2 * MIB;
    check_eq(broker_new(&b.config, 0, 0, &broker), -EINVAL);
    bench_init(&b, 0);
    b.config.n_classes = BROKER_CLASSES_MAX + 1;
    check_eq(broker_new(&b.config, 0, 0, &broker), -EINVAL);
    bench_init(&b, 0);
    b.config.warm_max = 0;
    check_eq(broker_new(&b.config, 0, 0, &broker), -EINVAL);
    check(!broker);
}
