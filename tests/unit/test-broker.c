/* SPDX-License-Identifier: Apache-2.0 */
#include "broker.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "test.h"

/* A driver that carries out each action at once, on memory that is only a number. */
struct bench {
    struct broker *broker;
    struct broker_config config;
    uint64_t foreign_bytes;
    uint64_t ours_bytes;
    uint64_t kept_bytes; /* destroyed, and still referred to by somebody */
    uint64_t now_ns;
    bool fail_creates, fail_exports;
    bool keep;         /* what is destroyed from now on is kept by somebody */
    bool hold_creates; /* creates are not answered */
    unsigned n_creates, n_exports, n_destroys, n_looks, n_grants, n_refusals, n_forgets;
    struct broker_request *granted;
    int error;
    uint64_t sizes[4096];
    uint64_t held_back[64];
    unsigned n_held_back;
};

static const uint64_t no_limits[5] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};

static uint64_t bench_free(const struct bench *b)
{
    return b->config.total_bytes - b->foreign_bytes - b->ours_bytes - b->kept_bytes;
}

static void bench_init(struct bench *b, uint64_t budget_bytes)
{
    *b = (struct bench){
        .now_ns = NSEC_PER_SEC,
        .config =
            {
                .total_bytes = 1024 * MIB,
                .n_classes = 2,
                .class_bytes = {2 * MIB, 8 * MIB},
                .budget_bytes = budget_bytes,
                .utilization_ppm = 900000,
                .warm_max = 64,
                .creating_max = 4,
                .idle_ns = 30 * NSEC_PER_SEC,
                .look_ns = 250 * NSEC_PER_MSEC,
                .budget_rise_ns = NSEC_PER_SEC,
                .patience_ns = 2 * NSEC_PER_SEC,
            },
    };
}

static void bench_start(struct bench *b)
{
    check_eq(broker_new(&b->config, bench_free(b), b->now_ns, &b->broker), 0);
}

static void create(struct bench *b, const struct broker_action *action)
{
    uint64_t size = b->config.class_bytes[action->class_index];
    bool ok = !b->fail_creates && size <= bench_free(b);

    b->n_creates++;
    if (b->hold_creates) {
        b->held_back[b->n_held_back++] = action->extent;
        b->sizes[(uint32_t)action->extent] = size;
        return;
    }
    b->sizes[(uint32_t)action->extent] = size;
    b->ours_bytes += ok ? size : 0;
    broker_created(b->broker, action->extent, ok, b->now_ns);
}

static void destroy(struct bench *b, const struct broker_action *action)
{
    uint64_t size = b->sizes[(uint32_t)action->extent];

    b->n_destroys++;
    b->ours_bytes -= size;
    if (b->keep)
        b->kept_bytes += size;
    broker_destroyed(b->broker, action->extent, b->now_ns);
}

static void carry_out(struct bench *b, const struct broker_action *action)
{
    switch (action->type) {
    case BROKER_ACTION_CREATE:
        create(b, action);
        break;
    case BROKER_ACTION_EXPORT:
        b->n_exports++;
        broker_exported(b->broker, action->extent, !b->fail_exports, b->now_ns);
        break;
    case BROKER_ACTION_DESTROY:
        destroy(b, action);
        break;
    case BROKER_ACTION_LOOK:
        b->n_looks++;
        broker_look(b->broker, bench_free(b), b->now_ns);
        break;
    case BROKER_ACTION_GRANT:
        b->n_grants++;
        b->granted = action->request;
        break;
    case BROKER_ACTION_REFUSE:
        b->n_refusals++;
        b->error = action->error;
        broker_request_free(b->broker, action->request);
        break;
    case BROKER_ACTION_FORGET:
        b->n_forgets++;
        break;
    case BROKER_ACTION_STATUS:
        break;
    }
}

static void run(struct bench *b)
{
    struct broker_action action;

    while (broker_next_action(b->broker, &action)) {
        carry_out(b, &action);
        check_str(broker_check(b->broker) ? broker_check(b->broker) : "fine", "fine");
    }
}

/* Lets time pass, waking the broker exactly when it wants to be. */
static void pass(struct bench *b, uint64_t ns)
{
    uint64_t end_ns = b->now_ns + ns;

    run(b);
    while (broker_deadline(b->broker) <= end_ns) {
        b->now_ns = u64_max(b->now_ns, broker_deadline(b->broker));
        broker_tick(b->broker, b->now_ns);
        run(b);
    }
    b->now_ns = end_ns;
}

static struct broker_peer *join(struct bench *b, const char *domain, const char *name)
{
    struct broker_peer *peer = NULL;

    check_eq(broker_peer_new(b->broker, domain, name, 1, no_limits, &peer), 0);
    run(b);
    return peer;
}

static int ask(struct bench *b, struct broker_peer *peer, uint32_t small, uint32_t large)
{
    uint32_t counts[BROKER_CLASSES_MAX] = {small, large};
    struct broker_request *request;
    int r = broker_take(b->broker, peer, counts, b->now_ns, &request);

    b->granted = NULL;
    b->error = 0;
    run(b);
    return r;
}

/* Asks, is granted, and notes what. */
static void take(struct bench *b, struct broker_peer *peer, uint32_t small, uint32_t large, uint64_t *ids)
{
    check_eq(ask(b, peer, small, large), 0);
    check(b->granted);
    check_eq(b->granted->n_extents, small + large);
    if (ids)
        memcpy(ids, b->granted->extents, (small + large) * sizeof(*ids));
    broker_request_free(b->broker, b->granted);
    run(b);
}

static void end(struct bench *b, struct broker_peer *peer)
{
    broker_peer_dead(b->broker, peer, b->now_ns);
    run(b);
}

static void finish(struct bench *b)
{
    broker_drain(b->broker, b->now_ns);
    pass(b, NSEC_PER_SEC);
    b->broker = broker_free(b->broker);
}

static struct broker_totals totals(struct bench *b)
{
    struct broker_totals t;

    broker_totals(b->broker, &t);
    return t;
}

TEST(take_creates_and_return_keeps)
{
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[3];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    take(&b, peer, 2, 1, ids);
    check_eq(b.n_creates, 3);
    check_eq(b.n_exports, 3);
    check_eq(totals(&b).granted_bytes, 12 * MIB);
    check_eq(broker_return(b.broker, peer, ids, 3, b.now_ns), 0);
    run(&b);
    check_eq(totals(&b).granted_bytes, 0);
    check_eq(totals(&b).pool_bytes, 12 * MIB);
    check_eq(totals(&b).warm_bytes, 12 * MIB);
    take(&b, peer, 2, 1, NULL);
    check_eq(b.n_creates, 3);
    end(&b, peer);
    check_eq(b.ours_bytes, 0);
    check_eq(b.n_forgets, 1);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    finish(&b);
}

TEST(admission_is_by_limit_and_budget)
{
    struct broker_peer *a, *b2;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    a = join(&b, "d", "a");
    b2 = join(&b, "d", "b");
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 20 * MIB), 0);
    check_eq(ask(&b, a, 11, 0), BROKER_E_LIMIT);
    take(&b, a, 10, 0, NULL);
    check_eq(ask(&b, a, 1, 0), BROKER_E_LIMIT);
    check_eq(ask(&b, b2, 41, 0), BROKER_E_BUDGET);
    take(&b, b2, 0, 10, NULL);
    check_eq(totals(&b).granted_bytes, 100 * MIB);
    check_eq(ask(&b, b2, 1, 0), BROKER_E_BUDGET);
    check_eq(ask(&b, b2, 0, 0), BROKER_E_INVALID);
    check_eq(ask(&b, b2, 65, 0), BROKER_E_INVALID);
    end(&b, a);
    end(&b, b2);
    finish(&b);
}

TEST(a_zero_limit_refuses_everything)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    take(&b, peer, 4, 0, NULL);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 0), 0);
    check_eq(ask(&b, peer, 1, 0), BROKER_E_LIMIT);
    check_eq(broker_limit(b.broker, peer->instance, NULL), 0);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, UINT64_MAX), 0);
    take(&b, peer, 1, 0, NULL);
    end(&b, peer);
    finish(&b);
}

TEST(room_in_the_pool_is_room_for_all)
{
    struct broker_peer *a, *other;
    struct bench b;
    uint64_t ids[50];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    a = join(&b, "d", "a");
    other = join(&b, "e", "a");
    take(&b, a, 50, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 50, b.now_ns), 0);
    run(&b);
    check_eq(totals(&b).pool_bytes, 100 * MIB);
    /* Another class for another domain: everything has to be made anew, and is. */
    take(&b, other, 2, 12, NULL);
    check_eq(totals(&b).held_bytes, 100 * MIB);
    check_eq(b.n_destroys, 50);
    check_eq(b.n_refusals, 0);
    end(&b, a);
    end(&b, other);
    finish(&b);
}

TEST(what_is_warm_is_granted_in_the_same_call_while_others_wait)
{
    struct broker_peer *a, *other;
    struct broker_request *slow, *fast;
    struct broker_action action;
    struct bench b;
    uint64_t ids[2];

    bench_init(&b, 200 * MIB);
    bench_start(&b);
    a = join(&b, "d", "a");
    other = join(&b, "e", "a");
    take(&b, a, 2, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 2, b.now_ns), 0);
    run(&b);
    check_eq(totals(&b).warm_bytes, 4 * MIB);
    b.hold_creates = true;
    check_eq(broker_take(b.broker, other, (uint32_t[BROKER_CLASSES_MAX]){4}, b.now_ns, &slow), 0);
    check_eq(broker_take(b.broker, a, (uint32_t[BROKER_CLASSES_MAX]){2}, b.now_ns, &fast), 0);
    check(broker_next_action(b.broker, &action));
    check_eq(action.type, BROKER_ACTION_GRANT);
    check(action.request == fast);
    broker_request_free(b.broker, fast);
    run(&b);
    check_eq(b.n_grants, 1);
    for (unsigned i = 0; i < b.n_held_back; i++) {
        b.ours_bytes += 2 * MIB;
        broker_created(b.broker, b.held_back[i], true, b.now_ns);
    }
    b.hold_creates = false;
    run(&b);
    check(b.granted == slow);
    broker_request_free(b.broker, slow);
    end(&b, a);
    end(&b, other);
    finish(&b);
}

TEST(a_later_request_does_not_pass_an_earlier_one_of_its_domain)
{
    struct broker_request *first, *second;
    struct broker_peer *a;
    struct bench b;
    uint64_t ids[2];

    bench_init(&b, 200 * MIB);
    bench_start(&b);
    a = join(&b, "d", "a");
    take(&b, a, 2, 0, ids);
    b.hold_creates = true;
    check_eq(broker_take(b.broker, a, (uint32_t[BROKER_CLASSES_MAX]){3}, b.now_ns, &first), 0);
    check_eq(broker_take(b.broker, a, (uint32_t[BROKER_CLASSES_MAX]){1}, b.now_ns, &second), 0);
    check_eq(broker_return(b.broker, a, ids, 2, b.now_ns), 0);
    run(&b);
    check_eq(b.n_grants, 1);
    check_eq(first->n_ready, 2);
    check_eq(second->n_ready, 0);
    b.ours_bytes += 2 * MIB;
    broker_created(b.broker, b.held_back[0], true, b.now_ns);
    run(&b);
    check(b.granted == first);
    broker_request_free(b.broker, first);
    for (unsigned i = 1; i < b.n_held_back; i++) {
        b.ours_bytes += 2 * MIB;
        broker_created(b.broker, b.held_back[i], true, b.now_ns);
    }
    b.hold_creates = false;
    run(&b);
    check(b.granted == second);
    broker_request_free(b.broker, second);
    end(&b, a);
    finish(&b);
}

TEST(nothing_crosses_domains)
{
    struct broker_peer *a, *same, *other;
    struct bench b;
    uint64_t ids[4], again[4], theirs[4];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    a = join(&b, "d", "a");
    same = join(&b, "d", "b");
    other = join(&b, "e", "a");
    take(&b, a, 4, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 4, b.now_ns), 0);
    run(&b);
    take(&b, other, 4, 0, theirs);
    take(&b, same, 4, 0, again);
    check_eq(b.n_creates, 8);
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 4; k++)
            check(theirs[i] != ids[k]);
    end(&b, a);
    end(&b, same);
    end(&b, other);
    finish(&b);
}

TEST(returns_are_all_or_nothing)
{
    struct broker_peer *a, *other;
    struct bench b;
    uint64_t ids[4], theirs[1];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    a = join(&b, "d", "a");
    other = join(&b, "d", "b");
    take(&b, a, 4, 0, ids);
    take(&b, other, 1, 0, theirs);
    check_eq(broker_return(b.broker, a, (uint64_t[]){ids[0], ids[1], ids[0]}, 3, b.now_ns),
             BROKER_E_NOT_HELD);
    check_eq(broker_return(b.broker, a, (uint64_t[]){ids[0], theirs[0]}, 2, b.now_ns), BROKER_E_NOT_HELD);
    check_eq(broker_return(b.broker, a, (uint64_t[]){ids[0], 12345}, 2, b.now_ns), BROKER_E_NOT_HELD);
    check_eq(a->n_extents, 4);
    check_eq(broker_return(b.broker, a, ids, 4, b.now_ns), 0);
    check_eq(broker_return(b.broker, a, ids, 1, b.now_ns), BROKER_E_NOT_HELD);
    check_eq(a->held_bytes, 0);
    run(&b);
    end(&b, a);
    end(&b, other);
    finish(&b);
}

TEST(what_is_not_sent_cannot_be_returned)
{
    struct broker_peer *peer;
    struct bench b;
    uint64_t id;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    check_eq(ask(&b, peer, 1, 0), 0);
    id = b.granted->extents[0];
    check_eq(broker_return(b.broker, peer, &id, 1, b.now_ns), BROKER_E_NOT_HELD);
    broker_request_free(b.broker, b.granted);
    check_eq(broker_return(b.broker, peer, &id, 1, b.now_ns), 0);
    run(&b);
    end(&b, peer);
    finish(&b);
}

TEST(a_lost_peer_is_charged_until_its_bytes_are_free)
{
    struct broker_instance *instance;
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    instance = peer->instance;
    take(&b, peer, 10, 0, NULL);
    broker_peer_lost(b.broker, peer, b.now_ns);
    pass(&b, NSEC_PER_SEC);
    check_eq(instance->account.bytes[LEDGER_LIMBO], 20 * MIB);
    check_eq(b.n_destroys, 0);
    check_eq(b.n_looks, 4);
    b.keep = true;
    broker_peer_dead(b.broker, peer, b.now_ns);
    pass(&b, NSEC_PER_SEC);
    check_eq(b.n_destroys, 10);
    check_eq(broker_used(instance), 20 * MIB);
    check_eq(totals(&b).destroying_bytes, 20 * MIB);
    check_eq(b.n_forgets, 0);
    b.kept_bytes = 6 * MIB;
    pass(&b, NSEC_PER_SEC);
    check_eq(broker_used(instance), 6 * MIB);
    b.kept_bytes = 0;
    pass(&b, NSEC_PER_SEC);
    check_eq(b.n_forgets, 1);
    check_eq(totals(&b).held_bytes, 0);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    finish(&b);
}

TEST(a_lost_peers_extents_are_never_used_again)
{
    struct broker_peer *a, *heir;
    struct bench b;
    uint64_t ids[4], theirs[4];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    a = join(&b, "d", "a");
    heir = join(&b, "d", "b");
    take(&b, a, 4, 0, ids);
    end(&b, a);
    take(&b, heir, 4, 0, theirs);
    check_eq(b.n_destroys, 4);
    check_eq(b.n_creates, 8);
    end(&b, heir);
    finish(&b);
}

TEST(earmarks_of_a_lost_peer_go_back_and_its_grants_do_not)
{
    struct broker_request *waits, *granted;
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[2];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    take(&b, peer, 2, 0, ids);
    check_eq(ask(&b, peer, 1, 0), 0);
    granted = b.granted;
    check_eq(broker_return(b.broker, peer, ids, 2, b.now_ns), 0);
    run(&b);
    b.hold_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){3}, b.now_ns, &waits), 0);
    run(&b);
    check_eq(waits->n_ready, 2);
    broker_peer_lost(b.broker, peer, b.now_ns);
    run(&b);
    check_eq(totals(&b).limbo_bytes, 2 * MIB);
    check_eq(totals(&b).pool_bytes, 4 * MIB);
    check_eq(peer->instance->account.bytes[LEDGER_PENDING], 0);
    end(&b, peer);
    broker_request_free(b.broker, granted);
    b.ours_bytes += 2 * MIB;
    broker_created(b.broker, b.held_back[0], true, b.now_ns);
    pass(&b, NSEC_PER_SEC);
    finish(&b);
    check_eq(b.ours_bytes, 0);
}

TEST(a_driver_that_fails_is_asked_again_and_not_too_often)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    b.fail_creates = true;
    check_eq(ask(&b, peer, 1, 0), 0);
    check_eq(b.n_creates, 1);
    pass(&b, NSEC_PER_SEC);
    check_eq(b.n_refusals, 0);
    check(b.n_creates >= 4 && b.n_creates <= 5);
    b.fail_creates = false;
    pass(&b, NSEC_PER_SEC);
    check_eq(b.n_grants, 1);
    broker_request_free(b.broker, b.granted);
    b.fail_creates = true;
    check_eq(ask(&b, peer, 1, 0), 0);
    pass(&b, 3 * NSEC_PER_SEC);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(broker_used(peer->instance), 2 * MIB);
    end(&b, peer);
    finish(&b);
}

TEST(exports_that_fail_cost_the_extent_and_end)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    b.fail_exports = true;
    check_eq(ask(&b, peer, 1, 0), 0);
    pass(&b, 10 * NSEC_PER_SEC);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(b.n_creates, b.n_destroys);
    check(b.n_creates >= 2 && b.n_creates <= 10);
    check_eq(b.ours_bytes, 0);
    b.fail_exports = false;
    take(&b, peer, 1, 0, NULL);
    end(&b, peer);
    finish(&b);
}

TEST(a_request_that_free_memory_cannot_hold_is_refused_in_the_end)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 512 * MIB);
    b.foreign_bytes = 900 * MIB;
    b.config.headroom_bytes = 24 * MIB;
    bench_start(&b);
    peer = join(&b, "d", "a");
    check_eq(ask(&b, peer, 60, 0), 0);
    pass(&b, NSEC_PER_SEC);
    check_eq(totals(&b).pool_bytes, 100 * MIB);
    check(bench_free(&b) == 24 * MIB);
    check_eq(b.n_refusals, 0);
    pass(&b, 2 * NSEC_PER_SEC);
    check_eq(b.error, BROKER_E_DRIVER);
    /* Others give up memory: the next one is met. */
    check_eq(ask(&b, peer, 60, 0), 0);
    pass(&b, NSEC_PER_SEC);
    b.foreign_bytes = 0;
    pass(&b, NSEC_PER_SEC);
    check(b.granted);
    broker_request_free(b.broker, b.granted);
    end(&b, peer);
    finish(&b);
}

TEST(memory_that_somebody_keeps_is_waited_for)
{
    struct broker_peer *liar, *other;
    struct bench b;
    uint64_t ids[40];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    liar = join(&b, "d", "a");
    other = join(&b, "e", "a");
    take(&b, liar, 40, 0, ids);
    check_eq(broker_return(b.broker, liar, ids, 40, b.now_ns), 0);
    b.keep = true;
    run(&b);
    check_eq(ask(&b, other, 40, 0), 0);
    pass(&b, NSEC_PER_SEC);
    check(!b.granted);
    check(totals(&b).held_bytes <= 100 * MIB);
    b.keep = false;
    b.kept_bytes = 0;
    pass(&b, NSEC_PER_SEC);
    check(b.granted);
    broker_request_free(b.broker, b.granted);
    end(&b, liar);
    end(&b, other);
    finish(&b);
}

TEST(an_idle_pool_is_given_back_and_then_nobody_wakes)
{
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[8];
    unsigned looks;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    peer = join(&b, "d", "a");
    take(&b, peer, 8, 0, ids);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    check_eq(broker_return(b.broker, peer, ids, 4, b.now_ns), 0);
    pass(&b, 29 * NSEC_PER_SEC);
    check_eq(totals(&b).pool_bytes, 8 * MIB);
    pass(&b, 2 * NSEC_PER_SEC);
    check_eq(totals(&b).pool_bytes, 0);
    check_eq(b.ours_bytes, 8 * MIB);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    looks = b.n_looks;
    pass(&b, 1000 * NSEC_PER_SEC);
    check_eq(b.n_looks, looks);
    end(&b, peer);
    finish(&b);
}

TEST(the_pool_yields_to_others_and_the_budget_follows)
{
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[60];

    bench_init(&b, 0);
    b.config.headroom_bytes = 32 * MIB;
    bench_start(&b);
    check_eq(totals(&b).budget_bytes, 1024 * MIB / 1000000 * 900000 + 1024 * MIB % 1000000 * 9 / 10);
    peer = join(&b, "d", "a");
    take(&b, peer, 0, 60, ids);
    check_eq(broker_return(b.broker, peer, ids, 40, b.now_ns), 0);
    run(&b);
    check_eq(totals(&b).pool_bytes, 320 * MIB);
    b.foreign_bytes = 500 * MIB;
    pass(&b, NSEC_PER_SEC);
    /* 921.6 - 500 are left for us. */
    check_eq(totals(&b).budget_bytes >> 20, 421);
    check_eq(totals(&b).held_bytes, 416 * MIB);
    /* 8 are free then, and the headroom is 32; the budget asks for even more. */
    b.foreign_bytes = 600 * MIB;
    pass(&b, NSEC_PER_SEC);
    check_eq(totals(&b).held_bytes, 320 * MIB);
    b.foreign_bytes = 700 * MIB;
    pass(&b, NSEC_PER_SEC);
    b.foreign_bytes = 800 * MIB;
    pass(&b, NSEC_PER_SEC);
    check_eq(totals(&b).pool_bytes, 0);
    check_eq(totals(&b).granted_bytes, 160 * MIB);
    check_eq(ask(&b, peer, 1, 0), BROKER_E_BUDGET);
    end(&b, peer);
    b.foreign_bytes = 0;
    finish(&b);
}

TEST(a_budget_rises_when_it_has_been_stable)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 0);
    b.foreign_bytes = 900 * MIB;
    bench_start(&b);
    peer = join(&b, "d", "a");
    check_eq(ask(&b, peer, 20, 0), BROKER_E_BUDGET);
    b.foreign_bytes = 0;
    b.now_ns += NSEC_PER_SEC;
    check_eq(ask(&b, peer, 20, 0), BROKER_E_BUDGET);
    pass(&b, NSEC_PER_SEC / 2);
    check_eq(ask(&b, peer, 20, 0), BROKER_E_BUDGET);
    pass(&b, NSEC_PER_SEC);
    take(&b, peer, 20, 0, NULL);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    end(&b, peer);
    finish(&b);
}

TEST(what_waits_gives_way_to_a_lower_limit)
{
    struct broker_request *first, *second;
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    b.fail_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){4}, b.now_ns, &first), 0);
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){4}, b.now_ns, &second), 0);
    run(&b);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_CONFIG, 10 * MIB), 0);
    run(&b);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_LIMIT);
    b.fail_creates = false;
    pass(&b, NSEC_PER_SEC);
    check(b.granted == first);
    broker_request_free(b.broker, first);
    end(&b, peer);
    finish(&b);
}

TEST(limits_have_an_order_and_admins_a_record)
{
    enum broker_limit_source source;
    struct broker_instance *instance;
    struct broker_peer *peer = NULL;
    uint64_t limits[5] = {0, UINT64_MAX, 40 * MIB, 30 * MIB, 0};
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ENGINE, MIB), BROKER_E_NOT_FOUND);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_BUDGET, MIB), BROKER_E_INVALID);
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 200 * MIB), 0);
    run(&b);
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
    end(&b, peer);
    check_eq(b.n_forgets, 0);
    check_eq(broker_instance_delete(b.broker, instance), 0);
    run(&b);
    check_eq(b.n_forgets, 1);
    check(!broker_instance_find(b.broker, "d", "a"));
    finish(&b);
}

TEST(a_name_is_its_openers)
{
    struct broker_peer *first, *second, *thief = NULL;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    first = join(&b, "d", "a");
    second = join(&b, "d", "a");
    check(first->instance == second->instance);
    check_eq(broker_peer_new(b.broker, "d", "a", 2, no_limits, &thief), BROKER_E_IDENTITY);
    check_eq(broker_peer_new(b.broker, "e", "a", 2, no_limits, &thief), 0);
    end(&b, thief);
    take(&b, first, 1, 0, NULL);
    b.keep = true;
    end(&b, first);
    end(&b, second);
    check_eq(broker_peer_new(b.broker, "d", "a", 2, no_limits, &thief), BROKER_E_IDENTITY);
    b.kept_bytes = 0;
    pass(&b, NSEC_PER_SEC);
    check_eq(broker_peer_new(b.broker, "d", "a", 2, no_limits, &thief), 0);
    end(&b, thief);
    finish(&b);
}

TEST(a_frozen_instance_gets_nothing_more)
{
    struct broker_peer *peer, *more = NULL;
    struct broker_request *request;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    b.hold_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){1}, b.now_ns, &request), 0);
    run(&b);
    broker_instance_freeze(b.broker, peer->instance);
    run(&b);
    check_eq(b.error, BROKER_E_FROZEN);
    check_eq(ask(&b, peer, 1, 0), BROKER_E_FROZEN);
    check_eq(broker_peer_new(b.broker, "d", "a", 1, no_limits, &more), BROKER_E_FROZEN);
    end(&b, peer);
    b.ours_bytes += 2 * MIB;
    broker_created(b.broker, b.held_back[0], true, b.now_ns);
    finish(&b);
}

TEST(a_domain_that_ends_takes_its_colour_with_it)
{
    struct broker_peer *a, *last;
    struct bench b;
    uint64_t ids[4];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    a = join(&b, "d", "a");
    last = join(&b, "d", "b");
    take(&b, a, 4, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 4, b.now_ns), 0);
    end(&b, a);
    check_eq(totals(&b).pool_bytes, 8 * MIB);
    end(&b, last);
    check_eq(totals(&b).held_bytes, 0);
    check_eq(b.ours_bytes, 0);
    finish(&b);
}

TEST(descriptors_are_bounded_and_nobody_waits_for_ever)
{
    struct broker_request *requests[3];
    struct broker_peer *peers[3];
    struct bench b;
    unsigned n_done = 0;

    bench_init(&b, 1000 * MIB);
    b.config.warm_max = 16;
    bench_start(&b);
    for (unsigned i = 0; i < 3; i++)
        peers[i] = join(&b, i ? "d" : "e", "a");
    for (unsigned i = 0; i < 3; i++)
        check_eq(broker_take(b.broker, peers[i], (uint32_t[BROKER_CLASSES_MAX]){10}, b.now_ns, &requests[i]),
                 0);
    while (n_done < 3) {
        b.granted = NULL;
        run(&b);
        check(b.granted);
        check_eq(b.n_grants, ++n_done);
        broker_request_free(b.broker, b.granted);
    }
    for (unsigned i = 0; i < 3; i++)
        end(&b, peers[i]);
    finish(&b);
}

TEST(warm_extents_of_others_make_way_for_descriptors)
{
    struct broker_peer *a, *other;
    struct bench b;
    uint64_t ids[16];

    bench_init(&b, 1000 * MIB);
    b.config.warm_max = 16;
    bench_start(&b);
    a = join(&b, "d", "a");
    other = join(&b, "e", "a");
    take(&b, a, 16, 0, ids);
    check_eq(broker_return(b.broker, a, ids, 16, b.now_ns), 0);
    run(&b);
    check_eq(totals(&b).warm_bytes, 32 * MIB);
    take(&b, other, 0, 4, NULL);
    check_eq(totals(&b).pool_bytes, 24 * MIB);
    end(&b, a);
    end(&b, other);
    finish(&b);
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
    a = join(&b, "d", "a");
    other = join(&b, "e", "a");
    b.hold_creates = true;
    check_eq(broker_take(b.broker, a, (uint32_t[BROKER_CLASSES_MAX]){0, 20}, b.now_ns, &large), 0);
    for (unsigned i = 0; i < 30; i++)
        check_eq(broker_take(b.broker, other, (uint32_t[BROKER_CLASSES_MAX]){1}, b.now_ns, &small[i]), 0);
    run(&b);
    for (unsigned i = 0; i < 20; i++) {
        uint64_t id = b.held_back[0], size = b.sizes[(uint32_t)id];

        b.n_held_back = 0;
        bytes[size == 2 * MIB] += size;
        b.ours_bytes += size;
        broker_created(b.broker, id, true, b.now_ns);
        run(&b);
    }
    /* One was ordered before there was anybody to share with. */
    check_eq(bytes[0], 40 * MIB);
    check_eq(bytes[1], 30 * MIB);
    broker_peer_lost(b.broker, a, b.now_ns);
    broker_peer_lost(b.broker, other, b.now_ns);
    run(&b);
    b.ours_bytes += b.sizes[(uint32_t)b.held_back[0]];
    broker_created(b.broker, b.held_back[0], true, b.now_ns);
    end(&b, a);
    end(&b, other);
    check_eq(b.n_grants, 15);
    finish(&b);
}

TEST(a_reserve_follows_demand_and_harms_nobody)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    b.config.reserve_bytes = 10 * MIB;
    bench_start(&b);
    peer = join(&b, "d", "a");
    pass(&b, NSEC_PER_SEC);
    check_eq(totals(&b).pool_bytes, 0);
    take(&b, peer, 8, 0, NULL);
    pass(&b, NSEC_PER_SEC / 2);
    check_eq(totals(&b).pool_bytes, 10 * MIB);
    check_eq(totals(&b).warm_bytes, 10 * MIB);
    /* At hand now. */
    take(&b, peer, 5, 0, NULL);
    pass(&b, 60 * NSEC_PER_SEC);
    check_eq(totals(&b).pool_bytes, 0);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    /* Never beyond the budget: 26 of 100 are held, and 72 more leave too little for another of 8. */
    take(&b, peer, 0, 9, NULL);
    pass(&b, NSEC_PER_SEC);
    check_eq(totals(&b).held_bytes, 98 * MIB);
    check_eq(ask(&b, peer, 1, 0), 0);
    check(b.granted);
    broker_request_free(b.broker, b.granted);
    end(&b, peer);
    finish(&b);
}

TEST(draining_lets_go_of_all)
{
    struct broker_request *waits;
    struct broker_peer *peer;
    struct bench b;
    uint64_t ids[4];

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    take(&b, peer, 4, 0, ids);
    check_eq(broker_return(b.broker, peer, ids, 2, b.now_ns), 0);
    run(&b);
    b.fail_creates = true;
    check_eq(broker_take(b.broker, peer, (uint32_t[BROKER_CLASSES_MAX]){0, 1}, b.now_ns, &waits), 0);
    run(&b);
    broker_drain(b.broker, b.now_ns);
    run(&b);
    check_eq(b.error, BROKER_E_DRIVER);
    check_eq(ask(&b, peer, 1, 0), BROKER_E_DRIVER);
    check_eq(totals(&b).pool_bytes, 0);
    check_eq(broker_return(b.broker, peer, ids + 2, 2, b.now_ns), 0);
    run(&b);
    check_eq(b.ours_bytes, 0);
    end(&b, peer);
    finish(&b);
}

TEST(budgets_are_reconfigured)
{
    struct broker_peer *peer;
    struct bench b;

    bench_init(&b, 100 * MIB);
    bench_start(&b);
    peer = join(&b, "d", "a");
    take(&b, peer, 40, 0, NULL);
    b.config.budget_bytes = 50 * MIB;
    broker_reconfigure(b.broker, &b.config, b.now_ns);
    run(&b);
    check_eq(ask(&b, peer, 1, 0), BROKER_E_BUDGET);
    check_eq(broker_limit(b.broker, peer->instance, NULL), 50 * MIB);
    b.config.budget_bytes = 82 * MIB;
    broker_reconfigure(b.broker, &b.config, b.now_ns);
    take(&b, peer, 1, 0, NULL);
    end(&b, peer);
    finish(&b);
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

/* ---- Scale ---- */

#define PEERS 1000
#define EXTENTS 100000

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

/* Answers every action with success, without looking at anything, so that only the broker's own work is
 * timed. Names the first extent that was granted. */
static uint64_t serve(struct broker *broker, uint64_t free_bytes)
{
    struct broker_action action;
    uint64_t first = 0;

    while (broker_next_action(broker, &action)) {
        switch (action.type) {
        case BROKER_ACTION_CREATE:
            broker_created(broker, action.extent, true, 0);
            break;
        case BROKER_ACTION_EXPORT:
            broker_exported(broker, action.extent, true, 0);
            break;
        case BROKER_ACTION_DESTROY:
            broker_destroyed(broker, action.extent, 0);
            break;
        case BROKER_ACTION_LOOK:
            broker_look(broker, free_bytes, 0);
            break;
        case BROKER_ACTION_GRANT:
            first = action.request->extents[0];
            broker_request_free(broker, action.request);
            break;
        default:
            break;
        }
    }
    return first;
}

static struct broker *large_broker(unsigned n_peers, unsigned n_extents, struct broker_peer **ret_last)
{
    struct broker_config config = {
        .total_bytes = 1024 * GIB,
        .n_classes = 1,
        .class_bytes = {2 * MIB},
        .budget_bytes = 1024 * GIB,
        .warm_max = 1024,
        .creating_max = 64,
        .idle_ns = UINT64_MAX,
        .look_ns = UINT64_MAX,
    };
    struct broker *broker;
    char name[16];

    check_eq(broker_new(&config, 1024 * GIB, 0, &broker), 0);
    for (unsigned i = 0; i < n_peers; i++) {
        struct broker_request *request;

        snprintf(name, sizeof(name), "%u", i);
        check_eq(broker_peer_new(broker, i % 2 ? "d" : "e", name, 1, no_limits, ret_last), 0);
        check_eq(
            broker_take(broker, *ret_last, (uint32_t[BROKER_CLASSES_MAX]){n_extents / n_peers}, 0, &request),
            0);
        serve(broker, 1024 * GIB);
    }
    return broker;
}

/* Of one extent, asked for, granted, sent and given back. */
static uint64_t cycle_ns(struct broker *broker, struct broker_peer *peer)
{
    struct broker_request *request;
    struct broker_action action;
    uint64_t start_ns = clock_ns(), id;

    check_eq(broker_take(broker, peer, (uint32_t[BROKER_CLASSES_MAX]){1}, 0, &request), 0);
    check(broker_next_action(broker, &action));
    check_eq(action.type, BROKER_ACTION_GRANT);
    id = request->extents[0];
    broker_request_free(broker, request);
    check_eq(broker_return(broker, peer, &id, 1, 0), 0);
    start_ns = clock_ns() - start_ns;
    serve(broker, 0);
    return start_ns;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void warm_up(struct broker *broker, struct broker_peer *peer)
{
    struct broker_request *request;
    uint64_t id;

    check_eq(broker_take(broker, peer, (uint32_t[BROKER_CLASSES_MAX]){1}, 0, &request), 0);
    id = serve(broker, 0);
    check_eq(broker_return(broker, peer, &id, 1, 0), 0);
    serve(broker, 0);
}

TEST(a_grant_costs_the_same_among_many)
{
    static uint64_t few_ns[1001], many_ns[1001];
    struct broker_peer *few_peer, *many_peer;
    struct broker *few = large_broker(1, 100, &few_peer);
    struct broker *many = large_broker(PEERS, EXTENTS, &many_peer);

    warm_up(few, few_peer);
    warm_up(many, many_peer);
    for (unsigned i = 0; i < ARRAY_SIZE(few_ns); i++) {
        few_ns[i] = cycle_ns(few, few_peer);
        many_ns[i] = cycle_ns(many, many_peer);
    }
    qsort(few_ns, ARRAY_SIZE(few_ns), sizeof(*few_ns), compare_u64);
    qsort(many_ns, ARRAY_SIZE(many_ns), sizeof(*many_ns), compare_u64);
    printf("# median of one extent asked for, granted and returned: %" PRIu64 " ns, among many %" PRIu64
           " ns\n",
           few_ns[ARRAY_SIZE(few_ns) / 2], many_ns[ARRAY_SIZE(many_ns) / 2]);
    /* A walk over peers or extents would cost a hundred times as much; caches may cost some. */
    check(many_ns[ARRAY_SIZE(many_ns) / 2] <= 4 * few_ns[ARRAY_SIZE(few_ns) / 2] + 1000);
    check(!broker_check(many));
    for (struct broker_instance *i = NULL; (i = broker_instance_next(many, i));)
        broker_peer_dead(many, list_first(&i->peers, struct broker_peer, link), 0);
    broker_peer_dead(few, few_peer, 0);
    serve(few, 1024 * GIB);
    serve(many, 1024 * GIB);
    few = broker_free(few);
    many = broker_free(many);
}
