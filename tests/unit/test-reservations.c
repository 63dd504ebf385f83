/* SPDX-License-Identifier: Apache-2.0 */

/* What is promised to an instance before it asks, what others may have meanwhile, and when that ends. */

#include <string.h>

#include "base/arith.h"
#include "broker-engine.h"
#include "test.h"

#define BUDGET (100 * MIB)

static uint64_t used(const struct broker_peer *peer)
{
    return broker_used(peer->instance);
}

static uint64_t budget(const struct bench *b)
{
    return bench_totals(b).budget_bytes;
}

static uint64_t expected(const struct bench *b)
{
    return bench_totals(b).expected_bytes;
}

/* Must be answered. */
static struct broker_request *reserve(struct bench *b, struct broker_peer *peer, uint64_t bytes,
                                      uint64_t foreign_bytes)
{
    check_eq(bench_reserve(b, peer, bytes, foreign_bytes), 0);
    check(b->reserved);
    check_eq(b->reserved->state, BROKER_REQUEST_ANSWERED);
    return b->reserved;
}

static void set_limit(struct bench *b, const char *name, uint64_t bytes)
{
    check_eq(broker_set_limit(b->broker, "d", name, BROKER_LIMIT_ADMIN, bytes), 0);
    bench_run(b);
}

/* No budget is fixed: 900 of 1024 MiB are there for us and for others. */
static void begin_derived(struct bench *b)
{
    bench_init(b, 0);
    b->config.total_bytes = 1000 * MIB;
    bench_start(b);
    check_eq(budget(b), 900 * MIB);
}

static void look(struct bench *b)
{
    b->now_ns += b->config.look_ns;
    broker_look(b->broker, bench_free(b), b->now_ns);
    bench_run(b);
}

static void grow(struct bench *b, int64_t bytes)
{
    b->foreign_bytes += (uint64_t)bytes;
    look(b);
}

TEST(what_is_reserved_is_no_room_for_others_and_is_for_its_own)
{
    struct broker_peer *controller, *own, *other;
    struct broker_request *request;
    struct bench b;

    bench_begin(&b, BUDGET);
    controller = bench_control(&b, "d", "a");
    other = bench_join(&b, "d", "b");
    request = reserve(&b, controller, 60 * MIB, 0);
    check_eq(used(controller), 60 * MIB);
    check_eq(controller->instance->account.bytes[LEDGER_RESERVED], 60 * MIB);
    check_eq(bench_totals(&b).held_bytes, 0);
    check_eq(bench_totals(&b).reserved_bytes, 60 * MIB);
    check_eq(b.n_creates, 0);
    check_eq(budget(&b), BUDGET);
    check_eq(bench_ask(&b, other, 21, 0), BROKER_E_BUDGET);
    bench_take(&b, other, 20, 0, NULL);
    own = bench_join(&b, "d", "a");
    check(own->instance == controller->instance);
    bench_take(&b, own, 10, 0, NULL);
    /* 20 of 60 are a grant now; the sum is the same. */
    check_eq(used(own), 60 * MIB);
    check_eq(own->instance->reserved_bytes, 40 * MIB);
    check_eq(bench_ask(&b, other, 1, 0), BROKER_E_BUDGET);
    bench_take(&b, own, 20, 0, NULL);
    check_eq(used(own), 60 * MIB);
    check_eq(own->instance->reserved_bytes, 0);
    check_eq(bench_ask(&b, own, 1, 0), BROKER_E_BUDGET);
    bench_release(&b, request);
    check_eq(used(own), 60 * MIB);
    bench_finish(&b);
}

TEST(what_is_more_than_reserved_needs_room_as_ever)
{
    struct broker_peer *controller, *own, *other;
    struct bench b;

    bench_begin(&b, BUDGET);
    controller = bench_control(&b, "d", "a");
    own = bench_join(&b, "d", "a");
    other = bench_join(&b, "d", "b");
    reserve(&b, controller, 30 * MIB, 0);
    bench_take(&b, other, 30, 0, NULL);
    /* 10 are left beside the 30. */
    check_eq(bench_ask(&b, own, 21, 0), BROKER_E_BUDGET);
    check_eq(own->instance->reserved_bytes, 30 * MIB);
    bench_take(&b, own, 20, 0, NULL);
    check_eq(own->instance->reserved_bytes, 0);
    check_eq(used(own), 40 * MIB);
    bench_finish(&b);
}

TEST(a_reservation_ends_with_its_release_or_its_holder)
{
    struct broker_peer *controllers[3], *other;
    struct broker_request *requests[3];
    struct bench b;

    bench_begin(&b, BUDGET);
    other = bench_join(&b, "d", "b");
    for (unsigned i = 0; i < 3; i++) {
        controllers[i] = bench_control(&b, "d", "a");
        requests[i] = reserve(&b, controllers[i], 30 * MIB, 0);
    }
    check_eq(used(controllers[0]), 90 * MIB);
    check_eq(bench_reserve(&b, other, 11 * MIB, 0), BROKER_E_BUDGET);
    bench_release(&b, requests[0]);
    check_eq(used(controllers[0]), 60 * MIB);
    broker_peer_lost(b.broker, controllers[1], b.now_ns);
    bench_run(&b);
    check_eq(used(controllers[0]), 30 * MIB);
    /* Its owner has not heard of it yet. */
    bench_release(&b, requests[1]);
    check_eq(used(controllers[0]), 30 * MIB);
    bench_end(&b, controllers[1]);
    bench_take(&b, other, 35, 0, NULL);
    check_eq(bench_ask(&b, other, 1, 0), BROKER_E_BUDGET);
    bench_end(&b, controllers[2]);
    bench_release(&b, requests[2]);
    bench_take(&b, other, 15, 0, NULL);
    bench_finish(&b);
}

TEST(one_of_a_peer_at_a_time_and_of_something)
{
    struct broker_request *request;
    struct broker_peer *peer;
    struct bench b;

    bench_begin(&b, BUDGET);
    peer = bench_control(&b, "d", "a");
    check_eq(bench_reserve(&b, peer, 0, 0), BROKER_E_INVALID);
    request = reserve(&b, peer, 2 * MIB, 0);
    check_eq(bench_reserve(&b, peer, 2 * MIB, 0), BROKER_E_INVALID);
    bench_release(&b, request);
    request = reserve(&b, peer, 2 * MIB, 0);
    bench_release(&b, request);
    check_eq(bench_reserve(&b, peer, UINT64_MAX, 0), BROKER_E_BUDGET);
    check_eq(bench_reserve(&b, peer, UINT64_MAX, UINT64_MAX), BROKER_E_BUDGET);
    check_eq(bench_reserve(&b, peer, 0, UINT64_MAX), BROKER_E_BUDGET);
    check_eq(used(peer), 0);
    check_eq(expected(&b), 0);
    broker_peer_lost(b.broker, peer, b.now_ns);
    check_eq(bench_reserve(&b, peer, 2 * MIB, 0), BROKER_E_INVALID);
    bench_finish(&b);
}

TEST(its_limit_concerns_what_is_reserved_of_the_budget)
{
    struct broker_peer *controller, *own;
    struct bench b;

    begin_derived(&b);
    controller = bench_control(&b, "d", "a");
    own = bench_join(&b, "d", "a");
    set_limit(&b, "a", 40 * MIB);
    check_eq(bench_reserve(&b, controller, 41 * MIB, 0), BROKER_E_LIMIT);
    check_eq(bench_reserve(&b, controller, 41 * MIB, 500 * MIB), BROKER_E_LIMIT);
    reserve(&b, controller, 40 * MIB, 500 * MIB);
    check_eq(bench_ask(&b, own, 21, 0), BROKER_E_LIMIT);
    bench_take(&b, own, 10, 0, NULL);
    /* It is a promise, and stays; but nothing is granted beyond a limit. */
    set_limit(&b, "a", 30 * MIB);
    check_eq(own->instance->reserved_bytes, 20 * MIB);
    check_eq(bench_ask(&b, own, 1, 0), BROKER_E_LIMIT);
    set_limit(&b, "a", 40 * MIB);
    bench_take(&b, own, 10, 0, NULL);
    check_eq(used(own), 40 * MIB);
    bench_finish(&b);
}

TEST(the_oldest_reservation_is_drawn_on_first)
{
    struct broker_peer *first, *second, *own;
    struct broker_request *a, *c;
    struct bench b;

    bench_begin(&b, BUDGET);
    first = bench_control(&b, "d", "a");
    second = bench_control(&b, "d", "a");
    own = bench_join(&b, "d", "a");
    a = reserve(&b, first, 10 * MIB, 0);
    c = reserve(&b, second, 20 * MIB, 0);
    bench_take(&b, own, 7, 0, NULL);
    check_eq(a->charge.bytes, 0);
    check_eq(c->charge.bytes, 16 * MIB);
    bench_release(&b, c);
    check_eq(used(own), 14 * MIB);
    bench_release(&b, a);
    check_eq(used(own), 14 * MIB);
    bench_finish(&b);
}

TEST(a_request_that_comes_to_nothing_leaves_it_to_the_reservations)
{
    uint32_t counts[BROKER_CLASSES_MAX] = {15};
    struct broker_peer *first, *second, *own;
    struct broker_request *a, *c, *request;
    struct bench b;

    bench_begin(&b, BUDGET);
    b.fail_creates = true;
    first = bench_control(&b, "d", "a");
    second = bench_control(&b, "d", "a");
    own = bench_join(&b, "d", "a");
    a = reserve(&b, first, 10 * MIB, 0);
    c = reserve(&b, second, 20 * MIB, 0);
    check_eq(broker_take(b.broker, own, counts, b.now_ns, &request), 0);
    bench_run(&b);
    check_eq(request->drawn_bytes, 30 * MIB);
    check_eq(used(own), 30 * MIB);
    check_eq(own->instance->reserved_bytes, 0);
    bench_pass(&b, 3 * NSEC_PER_SEC);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(a->charge.bytes, 10 * MIB);
    check_eq(c->charge.bytes, 20 * MIB);
    check_eq(broker_take(b.broker, own, counts, b.now_ns, &request), 0);
    bench_run(&b);
    bench_release(&b, a);
    check_eq(used(own), 30 * MIB);
    broker_request_free(b.broker, request);
    bench_run(&b);
    check_eq(c->charge.bytes, 20 * MIB);
    check_eq(used(own), 20 * MIB);
    bench_finish(&b);
}

TEST(leases_draw_on_it_but_not_for_courtesy)
{
    struct broker_peer *controller;
    struct engine own, other;
    struct bench b;

    bench_begin(&b, BUDGET);
    controller = bench_control(&b, "d", "a");
    engine_join(&b, &own, "d", "a");
    engine_join(&b, &other, "d", "b");
    reserve(&b, controller, 40 * MIB, 0);
    bench_take(&b, other.peer, 30, 0, NULL);
    check_eq(bench_lease_ask(&b, own.lease, 1, true), BROKER_E_BUDGET);
    check_eq(own.peer->instance->reserved_bytes, 40 * MIB);
    check_eq(bench_lease_ask(&b, own.lease, 15, false), 0);
    check_eq(broker_lease_pages(own.lease), 15);
    check_eq(own.peer->instance->reserved_bytes, 10 * MIB);
    bench_lease_take(&b, own.lease, &own.line, own.peer, 10, own.ids);
    check_eq(own.peer->instance->reserved_bytes, 10 * MIB);
    check_eq(used(own.peer), 40 * MIB);
    bench_finish(&b);
}

TEST(what_lies_in_the_pool_is_promised_once)
{
    struct broker_peer *controller, *own, *other;
    uint64_t ids[50];
    struct bench b;

    bench_begin(&b, BUDGET);
    controller = bench_control(&b, "d", "a");
    own = bench_join(&b, "d", "a");
    other = bench_join(&b, "d", "b");
    bench_take(&b, other, 50, 0, ids);
    check_eq(bench_reserve(&b, controller, 10 * MIB, 0), BROKER_E_BUDGET);
    check_eq(broker_return(b.broker, other, ids, 20, b.now_ns), 0);
    bench_run(&b);
    reserve(&b, controller, 30 * MIB, 0);
    check_eq(bench_ask(&b, other, 6, 0), BROKER_E_BUDGET);
    bench_take(&b, other, 5, 0, NULL);
    bench_take(&b, own, 15, 0, NULL);
    check_eq(bench_totals(&b).held_bytes, BUDGET);
    bench_finish(&b);
}

TEST(others_are_asked_to_give_back_for_it)
{
    struct broker_request *request;
    struct broker_peer *controller;
    struct engine other;
    struct bench b;

    bench_begin(&b, BUDGET);
    engine_start(&b, &other, "b", 45, 0);
    other.line.cached_pages = 10;
    controller = bench_control(&b, "d", "a");
    check_eq(broker_reserve(b.broker, controller, 31 * MIB, 0, b.now_ns, &request), BROKER_E_BUDGET);
    check_eq(broker_reserve(b.broker, controller, 30 * MIB, 0, b.now_ns, &request), 0);
    bench_run(&b);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    check_eq(used(controller), 0);
    check_notice(&b, 0, &other, 20 * MIB, true);
    engine_return(&b, &other, 0, 10);
    check(b.reserved == request);
    check_eq(used(controller), 30 * MIB);
    bench_release(&b, request);
    /* Of one that is withdrawn meanwhile nothing is left. */
    other.line.cached_pages = 30;
    check_eq(broker_reserve(b.broker, controller, 40 * MIB, 0, b.now_ns, &request), 0);
    bench_run(&b);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    bench_end(&b, controller);
    check_eq(b.n_reservations, 1);
    bench_finish(&b);
}

TEST(what_others_will_take_is_out_of_the_budget_at_once)
{
    struct broker_peer *controller, *other;
    struct broker_request *request;
    struct bench b;

    begin_derived(&b);
    b.foreign_bytes = 100 * MIB;
    look(&b);
    check_eq(budget(&b), 800 * MIB);
    controller = bench_control(&b, "d", "a");
    other = bench_join(&b, "d", "b");
    check_eq(bench_reserve(&b, controller, 100 * MIB, 701 * MIB), BROKER_E_BUDGET);
    check_eq(bench_reserve(&b, controller, 0, 801 * MIB), BROKER_E_BUDGET);
    request = reserve(&b, controller, 100 * MIB, 600 * MIB);
    check_eq(budget(&b), 200 * MIB);
    check_eq(expected(&b), 600 * MIB);
    check_eq(used(controller), 100 * MIB);
    check_eq(bench_ask(&b, other, 51, 0), BROKER_E_BUDGET);
    bench_take(&b, other, 50, 0, NULL);
    /* Its budget may rise again when that has been stable. */
    bench_release(&b, request);
    check_eq(budget(&b), 200 * MIB);
    check_eq(expected(&b), 0);
    bench_pass(&b, 999 * NSEC_PER_MSEC);
    check_eq(budget(&b), 200 * MIB);
    bench_pass(&b, 251 * NSEC_PER_MSEC);
    check_eq(budget(&b), 800 * MIB);
    bench_finish(&b);
}

/* What was free once may not be any more. */
TEST(only_a_look_lets_a_budget_rise)
{
    struct broker_request *request;
    struct broker_peer *controller;
    struct bench b;

    begin_derived(&b);
    b.foreign_bytes = 500 * MIB;
    look(&b);
    b.foreign_bytes = 0;
    look(&b);
    check_eq(budget(&b), 400 * MIB);
    b.now_ns += 2 * b.config.budget_rise_ns;
    controller = bench_control(&b, "d", "a");
    check_eq(broker_reserve(b.broker, controller, 0, 100 * MIB, b.now_ns, &request), 0);
    check_eq(budget(&b), 400 * MIB);
    bench_run(&b);
    check_eq(budget(&b), 800 * MIB);
    bench_finish(&b);
}

TEST(a_fixed_budget_gives_way_as_far_as_it_takes)
{
    struct broker_peer *controller;
    struct broker_request *request;
    struct bench b;

    bench_init(&b, 600 * MIB);
    b.config.total_bytes = 1000 * MIB;
    b.config.headroom_bytes = 50 * MIB;
    b.foreign_bytes = 100 * MIB;
    bench_start(&b);
    check_eq(budget(&b), 600 * MIB);
    controller = bench_control(&b, "d", "a");
    request = reserve(&b, controller, 0, 250 * MIB);
    check_eq(budget(&b), 600 * MIB);
    bench_release(&b, request);
    request = reserve(&b, controller, 0, 251 * MIB);
    check_eq(budget(&b), 599 * MIB);
    bench_release(&b, request);
    bench_pass(&b, 2 * NSEC_PER_SEC);
    check_eq(budget(&b), 600 * MIB);
    check_eq(bench_reserve(&b, controller, 0, 851 * MIB), BROKER_E_BUDGET);
    request = reserve(&b, controller, 0, 850 * MIB);
    check_eq(budget(&b), 0);
    bench_finish(&b);
}

TEST(the_budget_stays_where_it_is_while_an_engine_loads)
{
    struct broker_peer *controller;
    struct broker_request *request;
    struct bench b;

    begin_derived(&b);
    controller = bench_control(&b, "d", "a");
    request = reserve(&b, controller, 0, 300 * MIB);
    check_eq(budget(&b), 600 * MIB);
    for (uint64_t loaded = 0; loaded < 300; loaded += 100) {
        check_eq(expected(&b), (300 - loaded) * MIB);
        grow(&b, 100 * (int64_t)MIB);
        check_eq(budget(&b), 600 * MIB);
    }
    check_eq(expected(&b), 0);
    /* More than it said lowers the budget like all that others take. */
    grow(&b, 20 * (int64_t)MIB);
    check_eq(budget(&b), 580 * MIB);
    bench_release(&b, request);
    check_eq(budget(&b), 580 * MIB);
    bench_pass(&b, 5 * NSEC_PER_SEC);
    check_eq(budget(&b), 580 * MIB);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_finish(&b);
}

TEST(what_comes_is_laid_to_the_longest_held)
{
    struct broker_peer *first, *second;
    struct broker_request *a, *c;
    struct bench b;

    begin_derived(&b);
    first = bench_control(&b, "d", "a");
    second = bench_control(&b, "d", "b");
    a = reserve(&b, first, 0, 100 * MIB);
    grow(&b, 130 * (int64_t)MIB);
    check_eq(expected(&b), 0);
    /* What came beyond the first belongs to nobody, and not to the second. */
    c = reserve(&b, second, 0, 200 * MIB);
    check_eq(expected(&b), 200 * MIB);
    check_eq(budget(&b), 570 * MIB);
    grow(&b, 50 * (int64_t)MIB);
    check_eq(expected(&b), 150 * MIB);
    bench_release(&b, a);
    check_eq(expected(&b), 150 * MIB);
    grow(&b, 10 * (int64_t)MIB);
    check_eq(expected(&b), 140 * MIB);
    check_eq(budget(&b), 570 * MIB);
    /* Others give back: it is expected again, and not before that. */
    grow(&b, -30 * (int64_t)MIB);
    check_eq(expected(&b), 170 * MIB);
    grow(&b, -300 * (int64_t)MIB + 140 * (int64_t)MIB);
    check_eq(expected(&b), 200 * MIB);
    grow(&b, 200 * (int64_t)MIB);
    check_eq(expected(&b), 0);
    bench_release(&b, c);
    bench_finish(&b);
}

/* Its engine has loaded, the controller lets go at once; the next look is to come. */
TEST(what_came_last_is_not_laid_to_another)
{
    struct broker_peer *first, *second;
    struct broker_request *a;
    struct bench b;

    begin_derived(&b);
    first = bench_control(&b, "d", "a");
    second = bench_control(&b, "d", "b");
    a = reserve(&b, first, 0, 100 * MIB);
    reserve(&b, second, 0, 200 * MIB);
    b.foreign_bytes += 100 * MIB;
    bench_free_reservation(&b, a);
    check_eq(expected(&b), 300 * MIB);
    bench_run(&b);
    check_eq(expected(&b), 200 * MIB);
    check_eq(budget(&b), 600 * MIB);
    bench_finish(&b);
}

TEST(it_is_answered_when_what_is_expected_is_free)
{
    struct broker_request *request;
    struct broker_peer *controller, *other;
    struct broker_action action;
    uint64_t ids[50];
    struct bench b;

    begin_derived(&b);
    controller = bench_control(&b, "d", "a");
    other = bench_join(&b, "d", "b");
    bench_take(&b, other, 0, 50, ids);
    check_eq(broker_return(b.broker, other, ids, 50, b.now_ns), 0);
    bench_run(&b);
    check_eq(bench_totals(&b).pool_bytes, 400 * MIB);
    /* The pool is room for it, and is let go; what was had by others is gone when it is seen to be. */
    b.keep = true;
    check_eq(broker_reserve(b.broker, controller, 0, 600 * MIB, b.now_ns, &request), 0);
    check_eq(budget(&b), 300 * MIB);
    bench_run(&b);
    check_eq(request->state, BROKER_REQUEST_PREPARING);
    check_eq(bench_totals(&b).held_bytes, 400 * MIB);
    b.kept_bytes -= 104 * MIB;
    look(&b);
    check(b.reserved == request);
    check_eq(bench_totals(&b).held_bytes, 296 * MIB);
    b.kept_bytes = 0;
    bench_release(&b, request);
    /* A look that was ordered before is none of what is there now. */
    bench_pass(&b, 60 * NSEC_PER_SEC);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    check_eq(broker_reserve(b.broker, controller, 0, 100 * MIB, b.now_ns, &request), 0);
    check(broker_next_action(b.broker, &action));
    while (action.type != BROKER_ACTION_LOOK)
        check(broker_next_action(b.broker, &action));
    broker_request_free(b.broker, request);
    check_eq(broker_reserve(b.broker, controller, 0, 100 * MIB, b.now_ns, &request), 0);
    broker_look(b.broker, bench_free(&b), b.now_ns);
    check_eq(request->state, BROKER_REQUEST_PREPARING);
    bench_run(&b);
    check_eq(request->state, BROKER_REQUEST_ANSWERED);
    bench_finish(&b);
}

TEST(it_is_refused_when_that_does_not_come_free)
{
    struct broker_peer *controller, *other;
    struct broker_request *request;
    uint64_t ids[50];
    struct bench b;

    begin_derived(&b);
    controller = bench_control(&b, "d", "a");
    other = bench_join(&b, "d", "b");
    bench_take(&b, other, 0, 50, ids);
    check_eq(broker_return(b.broker, other, ids, 50, b.now_ns), 0);
    bench_run(&b);
    b.keep = true;
    check_eq(broker_reserve(b.broker, controller, 30 * MIB, 600 * MIB, b.now_ns, &request), 0);
    bench_run(&b);
    bench_pass(&b, b.config.patience_ns - 1);
    check_eq(b.n_refusals, 0);
    bench_pass(&b, 251 * NSEC_PER_MSEC);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(used(controller), 0);
    check_eq(expected(&b), 0);
    check_eq(b.n_reservations, 0);
    b.keep = false;
    b.kept_bytes = 0;
    bench_finish(&b);
}

/* It is admitted by what was seen last, and answered by what is seen then. */
TEST(a_look_may_show_that_it_is_not_there)
{
    struct broker_peer *controller, *other;
    struct bench b;

    begin_derived(&b);
    controller = bench_control(&b, "d", "a");
    other = bench_join(&b, "d", "b");
    bench_take(&b, other, 0, 25, NULL);
    b.foreign_bytes = 101 * MIB;
    check_eq(bench_reserve(&b, controller, 100 * MIB, 500 * MIB), 0);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_BUDGET);
    check(!b.reserved);
    check_eq(expected(&b), 0);
    check_eq(used(other), 200 * MIB);
    check_eq(bench_reserve(&b, controller, 100 * MIB, 499 * MIB), 0);
    check(b.reserved);
    /* Held, it stays, whatever others take; but nothing more is granted to anybody. */
    grow(&b, 600 * (int64_t)MIB);
    check_eq(controller->instance->reserved_bytes, 100 * MIB);
    check_eq(b.n_refusals, 1);
    check_eq(bench_ask(&b, other, 1, 0), BROKER_E_BUDGET);
    bench_finish(&b);
}

TEST(while_it_waits_a_lowered_limit_or_budget_refuses_it)
{
    struct broker_config config;
    struct broker_peer *first, *second;
    struct broker_request *a, *c;
    struct bench b;

    begin_derived(&b);
    first = bench_control(&b, "d", "a");
    second = bench_control(&b, "d", "b");
    check_eq(broker_reserve(b.broker, first, 100 * MIB, 10 * MIB, b.now_ns, &a), 0);
    check_eq(broker_reserve(b.broker, second, 100 * MIB, 10 * MIB, b.now_ns, &c), 0);
    check_eq(a->state, BROKER_REQUEST_PREPARING);
    check_eq(c->state, BROKER_REQUEST_PREPARING);
    check_eq(expected(&b), 20 * MIB);
    config = b.config;
    config.utilization_ppm = 210000;
    broker_reconfigure(b.broker, &config, b.now_ns);
    check_eq(c->state, BROKER_REQUEST_REFUSED);
    check_eq(c->error, BROKER_E_BUDGET);
    check_eq(a->state, BROKER_REQUEST_PREPARING);
    check_eq(expected(&b), 10 * MIB);
    check_eq(budget(&b), 200 * MIB);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 99 * MIB), 0);
    check_eq(a->state, BROKER_REQUEST_REFUSED);
    check_eq(a->error, BROKER_E_LIMIT);
    check_eq(expected(&b), 0);
    check_eq(used(first), 0);
    bench_run(&b);
    check_eq(b.n_refusals, 2);
    bench_finish(&b);
}

TEST(looks_go_on_while_others_are_expected)
{
    struct broker_peer *controller;
    struct broker_request *request;
    struct bench b;
    unsigned n;

    begin_derived(&b);
    controller = bench_control(&b, "d", "a");
    request = reserve(&b, controller, 10 * MIB, 0);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_release(&b, request);
    reserve(&b, controller, 0, 100 * MIB);
    n = b.n_looks;
    bench_pass(&b, 10 * NSEC_PER_SEC);
    check_eq(b.n_looks, n + 40);
    grow(&b, 100 * (int64_t)MIB);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_finish(&b);
}

TEST(a_controller_opens_nothing)
{
    uint64_t limits[5] = {UINT64_MAX, UINT64_MAX, 50 * MIB, 20 * MIB, UINT64_MAX};
    struct broker_peer *controller, *own, *stranger;
    struct broker_instance *instance;
    struct bench b;

    bench_begin(&b, BUDGET);
    check_eq(broker_controller_new(b.broker, "d", "a", limits, &controller), 0);
    instance = controller->instance;
    /* What is configured concerns it; what engines want of themselves they say when they come. */
    check_eq(broker_limit(b.broker, instance, NULL), 50 * MIB);
    reserve(&b, controller, 10 * MIB, 0);
    check_eq(broker_peer_new(b.broker, "d", "a", 5, limits, &own), 0);
    check_eq(broker_limit(b.broker, instance, NULL), 50 * MIB);
    check_eq(instance->limit_of[BROKER_LIMIT_ENGINE], 20 * MIB);
    check_eq(broker_peer_new(b.broker, "d", "a", 6, limits, &stranger), BROKER_E_IDENTITY);
    bench_end(&b, own);
    /* The name is free again, though something is reserved for it. */
    check_eq(broker_peer_new(b.broker, "d", "a", 6, limits, &own), 0);
    check_eq(broker_instance_delete(b.broker, instance), BROKER_E_HAS_PEERS);
    broker_instance_freeze(b.broker, instance);
    check_eq(broker_controller_new(b.broker, "d", "a", limits, &stranger), BROKER_E_FROZEN);
    check_eq(bench_ask(&b, own, 1, 0), BROKER_E_FROZEN);
    bench_end(&b, own);
    check_eq(broker_peer_new(b.broker, "d", "a", 7, limits, &own), 0);
    check(!instance->frozen);
    bench_finish(&b);
}

TEST(a_daemon_that_ends_reserves_nothing)
{
    struct broker_peer *first, *second;
    struct broker_request *held, *waits;
    struct bench b;

    begin_derived(&b);
    first = bench_control(&b, "d", "a");
    second = bench_control(&b, "d", "b");
    held = reserve(&b, first, 10 * MIB, 10 * MIB);
    check_eq(broker_reserve(b.broker, second, 10 * MIB, 10 * MIB, b.now_ns, &waits), 0);
    broker_drain(b.broker, b.now_ns);
    check_eq(waits->state, BROKER_REQUEST_REFUSED);
    bench_run(&b);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(used(first), 10 * MIB);
    check_eq(bench_reserve(&b, second, MIB, 0), BROKER_E_DRIVER);
    bench_release(&b, held);
    check_eq(used(first), 0);
    bench_finish(&b);
}
