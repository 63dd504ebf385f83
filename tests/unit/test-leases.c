/* SPDX-License-Identifier: Apache-2.0 */

/* What is set aside for a region: how it grows, who may have it, and where it goes in the end. */

#include "base/arith.h"
#include "broker-engine.h"
#include "test.h"

static void check_word(const struct lease_line *line, uint32_t offered, uint32_t claimed)
{
    struct lease word = lease_read(line);

    check_eq(word.offered, offered);
    check_eq(word.claimed, claimed);
}

TEST(pages_are_issued_offered_and_granted)
{
    struct broker_lease *lease;
    struct broker_peer *peer;
    struct lease_line line;
    struct bench b;
    uint64_t ids[9];

    bench_begin(&b, 100 * MIB);
    peer = bench_join(&b, "d", "a");
    lease = bench_lease(&b, peer, 2, 1, &line);
    check_eq(bench_lease_ask(&b, lease, 3, false), 0);
    check_eq(b.n_leases, 1);
    check_eq(broker_lease_pages(lease), 3);
    check_word(&line, 3, 0);
    check_eq(b.n_creates, 9);
    check_eq(bench_totals(&b).leased_bytes, 36 * MIB);
    check_eq(bench_totals(&b).held_bytes, 36 * MIB);
    check_eq(bench_totals(&b).pool_bytes, 0);
    check_eq(peer->instance->account.bytes[LEDGER_LEASED], 36 * MIB);
    check_eq(broker_used(peer->instance), 36 * MIB);
    bench_lease_take(&b, lease, &line, peer, 2, ids);
    check_eq(b.n_grants, 1);
    check_eq(b.n_creates, 9);
    check_eq(broker_lease_pages(lease), 1);
    check_word(&line, 1, 0);
    check_eq(broker_used(peer->instance), 36 * MIB);
    check_eq(peer->held_bytes, 24 * MIB);
    /* Largest class first. */
    for (unsigned i = 0; i < 6; i++)
        check_eq(b.sizes[(uint32_t)ids[i]], i < 2 ? 8 * MIB : 2 * MIB);
    check_eq(broker_return(b.broker, peer, ids, 6, b.now_ns), 0);
    bench_run(&b);
    bench_lease_end(&b, lease);
    check_word(&line, 0, 0);
    check_eq(bench_totals(&b).pool_bytes, 36 * MIB);
    check_eq(broker_used(peer->instance), 0);
    bench_finish(&b);
}

/* 144 MiB = 128 + 8 + 8. */
TEST(a_page_can_have_several_classes)
{
    uint32_t counts[BROKER_CLASSES_MAX] = {0, 2, 0, 1};
    struct broker_lease *lease = NULL;
    struct broker_peer *peer;
    struct lease_line line = {};
    struct bench b;
    uint64_t ids[6];

    bench_init(&b, 600 * MIB);
    b.config.n_classes = 4;
    b.config.class_bytes[2] = 32 * MIB;
    b.config.class_bytes[3] = 128 * MIB;
    bench_start(&b);
    peer = bench_join(&b, "d", "a");
    check_eq(broker_lease_new(b.broker, peer, counts, &line, &lease), 0);
    check_eq(bench_lease_ask(&b, lease, 3, false), 0);
    check_eq(broker_used(peer->instance), 432 * MIB);
    bench_lease_take(&b, lease, &line, peer, 2, ids);
    for (unsigned i = 0; i < 6; i++)
        check_eq(b.sizes[(uint32_t)ids[i]], i < 2 ? 128 * MIB : 8 * MIB);
    check_eq(peer->held_bytes, 288 * MIB);
    check_eq(broker_lease_pages(lease), 1);
    bench_end(&b, peer);
    check_eq(broker_lease_pages(lease), 0);
    lease = broker_lease_free(b.broker, lease);
    bench_finish(&b);
}

TEST(only_what_was_claimed_and_spent_is_granted)
{
    struct broker_request *request;
    struct engine a;
    struct broker_peer *other;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    other = bench_join(&b, "d", "b");
    check_eq(bench_lease_ask(&b, a.lease, 4, false), 0);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 1, b.now_ns, &request), BROKER_E_NOT_LEASED);
    check_eq(lease_claim(&a.line, 2), 2);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 1, b.now_ns, &request), BROKER_E_NOT_LEASED);
    check(lease_spend(&a.line, 2));
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 3, b.now_ns, &request), BROKER_E_NOT_LEASED);
    check_eq(broker_lease_take(b.broker, a.lease, other, 2, b.now_ns, &request), BROKER_E_INVALID);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 0, b.now_ns, &request), BROKER_E_INVALID);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 2, b.now_ns, &request), 0);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 1, b.now_ns, &request), BROKER_E_NOT_LEASED);
    bench_run(&b);
    check_eq(b.n_scribbles, 0);
    broker_request_free(b.broker, b.granted);
    bench_finish(&b);
}

TEST(a_scheduler_leases_for_its_worker)
{
    struct engine scheduler;
    struct broker_peer *worker;
    struct broker_request *request;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &scheduler, "d", "a");
    worker = bench_join(&b, "d", "a");
    check_eq(bench_lease_ask(&b, scheduler.lease, 4, false), 0);
    bench_lease_take(&b, scheduler.lease, &scheduler.line, worker, 3, NULL);
    check_eq(worker->held_bytes, 6 * MIB);
    check_eq(scheduler.peer->held_bytes, 0);
    bench_end(&b, worker);
    check_eq(lease_claim(&scheduler.line, 1), 1);
    check(lease_spend(&scheduler.line, 1));
    check_eq(broker_lease_take(b.broker, scheduler.lease, scheduler.peer, 1, b.now_ns, &request), 0);
    bench_run(&b);
    broker_request_free(b.broker, b.granted);
    bench_finish(&b);
}

TEST(a_request_that_is_short_of_budget_has_the_offers_of_whoever_was_idle_longest)
{
    struct engine a, c;
    struct broker_peer *d;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    engine_join(&b, &c, "d", "c");
    d = bench_join(&b, "e", "d");
    check_eq(bench_lease_ask(&b, a.lease, 10, false), 0);
    check_eq(bench_lease_ask(&b, c.lease, 10, false), 0);
    check_eq(lease_claim(&a.line, 4), 4);
    bench_take(&b, d, 33, 0, NULL);
    check_word(&a.line, 3, 4);
    check_word(&c.line, 10, 0);
    check_eq(broker_lease_pages(a.lease), 7);
    bench_take(&b, d, 5, 0, NULL);
    check_word(&a.line, 0, 4);
    check_word(&c.line, 8, 0);
    /* More than can be had takes nothing from anybody. */
    check_eq(bench_ask(&b, d, 9, 0), BROKER_E_BUDGET);
    check_word(&c.line, 8, 0);
    bench_take(&b, d, 8, 0, NULL);
    check_eq(bench_ask(&b, d, 1, 0), BROKER_E_BUDGET);
    check_word(&a.line, 0, 4);
    bench_lease_take(&b, a.lease, &a.line, a.peer, 4, NULL);
    bench_finish(&b);
}

TEST(a_request_that_is_short_of_its_limit_has_its_own_instances_offers)
{
    struct engine a, other;
    struct broker_peer *mate;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    mate = bench_join(&b, "d", "a");
    engine_join(&b, &other, "d", "b");
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 20 * MIB), 0);
    check_eq(bench_lease_ask(&b, other.lease, 5, false), 0);
    check_eq(bench_lease_ask(&b, a.lease, 6, false), 0);
    check_eq(lease_claim(&a.line, 2), 2);
    bench_take(&b, mate, 7, 0, NULL);
    check_word(&a.line, 1, 2);
    check_word(&other.line, 5, 0);
    check_eq(broker_used(a.peer->instance), 20 * MIB);
    check_eq(bench_ask(&b, mate, 2, 0), BROKER_E_LIMIT);
    check_word(&a.line, 1, 2);
    /* A lease doesn't grow out of its own offers. */
    check_eq(bench_lease_ask(&b, a.lease, 1, false), BROKER_E_LIMIT);
    bench_finish(&b);
}

TEST(courtesy_asks_nobody_for_anything)
{
    struct engine a, c;
    struct broker_request *waits;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    engine_join(&b, &c, "e", "c");
    check_eq(bench_lease_ask(&b, a.lease, 29, false), 0);
    bench_take(&b, c.peer, 19, 0, NULL);
    check_eq(bench_lease_ask(&b, c.lease, 3, true), BROKER_E_BUDGET);
    check_eq(bench_lease_ask(&b, c.lease, 2, true), 0);
    check_eq(broker_lease_pages(c.lease), 2);
    check_eq(broker_lease_pages(a.lease), 29);
    bench_lease_end(&b, a.lease);
    b.fail_creates = true;
    check_eq(broker_take(b.broker, a.peer, (uint32_t[BROKER_CLASSES_MAX]){0, 1}, b.now_ns, &waits), 0);
    bench_run(&b);
    check_eq(bench_lease_ask(&b, c.lease, 1, true), BROKER_E_BUDGET);
    waits = broker_request_free(b.broker, waits);
    bench_finish(&b);
}

TEST(what_is_asked_for_out_of_courtesy_gives_way)
{
    struct engine a;
    struct broker_peer *c;
    struct bench b;
    uint64_t ids[2];

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    c = bench_join(&b, "d", "c");
    bench_take(&b, c, 2, 0, ids);
    check_eq(broker_return(b.broker, c, ids, 2, b.now_ns), 0);
    bench_run(&b);
    b.hold_creates = true;
    check_eq(bench_lease_ask(&b, a.lease, 4, true), 0);
    check_eq(b.n_leases, 0);
    check_eq(broker_used(a.peer->instance), 8 * MIB);
    /* The two that it had collected are at hand again. */
    bench_take(&b, c, 2, 0, NULL);
    check_eq(b.n_refusals, 1);
    check_eq(broker_used(a.peer->instance), 0);
    bench_answer(&b, 0);
    bench_answer(&b, 1);
    b.hold_creates = false;
    bench_run(&b);
    bench_finish(&b);
}

/* 16 for the only domain, 8 for its only instance. */
TEST(leases_have_a_bound_of_descriptors)
{
    struct broker_peer *a, *c;
    struct lease_line line_a, line_c;
    struct broker_lease *of_a, *of_c;
    struct bench b;

    bench_init(&b, 1024 * MIB);
    b.config.lease_max = 32;
    bench_start(&b);
    a = bench_join(&b, "d", "a");
    c = bench_join(&b, "d", "c");
    of_a = bench_lease(&b, a, 3, 0, &line_a);
    of_c = bench_lease(&b, c, 1, 0, &line_c);
    check_eq(bench_lease_ask(&b, of_a, 3, false), BROKER_E_DESCRIPTORS);
    check_eq(bench_lease_ask(&b, of_a, 2, false), 0);
    check_eq(bench_lease_ask(&b, of_a, 1, false), BROKER_E_DESCRIPTORS);
    /* Half of what the other leaves of 16. */
    check_eq(bench_lease_ask(&b, of_c, 6, true), BROKER_E_DESCRIPTORS);
    check_eq(bench_lease_ask(&b, of_c, 5, true), 0);
    check_word(&line_a, 2, 0);
    check_eq(bench_lease_ask(&b, of_c, 1, false), 0);
    check_word(&line_a, 1, 0);
    check_eq(lease_claim(&line_a, 1), 1);
    check_eq(bench_lease_ask(&b, of_c, 2, false), BROKER_E_DESCRIPTORS);
    check_eq(bench_lease_ask(&b, of_c, 1, false), 0);
    check_eq(b.n_notices, 0);
    /* Whatever leases hold, the largest request has its descriptors. */
    bench_take(&b, c, 64, 0, NULL);
    bench_finish(&b);
}

/* As many as it gets, and claims them. */
static uint32_t hoard(struct bench *b, struct engine *engine)
{
    while (bench_lease_ask(b, engine->lease, 1, false) == 0)
        check_eq(lease_claim(&engine->line, 1), 1);
    return broker_lease_pages(engine->lease);
}

TEST(what_one_tenant_claims_leaves_the_others_their_share)
{
    static const char *const names[] = {"a", "b", "c", "d"};
    static const uint32_t shares[] = {8, 4, 2, 1};
    struct engine engines[4], other;
    struct bench b;

    bench_init(&b, 1024 * MIB);
    b.config.lease_max = 32;
    bench_start(&b);
    engine_join(&b, &other, "other", "a");
    for (unsigned i = 0; i < 4; i++) {
        engine_join(&b, &engines[i], "d", names[i]);
        check_eq(hoard(&b, &engines[i]), shares[i]);
    }
    /* Half of the half of 17; and what it offers is for others to take. */
    check_eq(bench_lease_ask(&b, other.lease, 6, false), BROKER_E_DESCRIPTORS);
    check_eq(bench_lease_ask(&b, other.lease, 5, false), 0);
    check_word(&other.line, 5, 0);
    bench_finish(&b);
}

TEST(offers_of_the_same_tenant_make_room_first)
{
    struct engine a, c, other;
    struct bench b;

    bench_init(&b, 1024 * MIB);
    b.config.lease_max = 32;
    bench_start(&b);
    engine_join(&b, &a, "d", "a");
    engine_join(&b, &c, "d", "c");
    engine_join(&b, &other, "other", "a");
    check_eq(bench_lease_ask(&b, other.lease, 8, false), 0);
    /* 12 for the domain. */
    check_eq(bench_lease_ask(&b, a.lease, 6, false), 0);
    check_eq(bench_lease_ask(&b, c.lease, 5, false), 0);
    check_word(&a.line, 3, 0);
    check_word(&other.line, 8, 0);
    /* With none in its own domain, 6 of 12; 7 of 13. */
    check_eq(bench_lease_ask(&b, c.lease, 2, false), 0);
    check_word(&a.line, 0, 0);
    check_word(&other.line, 7, 0);
    check_eq(bench_lease_ask(&b, c.lease, 2, false), BROKER_E_DESCRIPTORS);
    check_word(&other.line, 7, 0);
    bench_finish(&b);
}

TEST(a_scribble_is_put_right_and_freezes_the_lease)
{
    struct broker_request *request;
    struct engine a;
    struct broker_peer *c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    c = bench_join(&b, "d", "c");
    check_eq(bench_lease_ask(&b, a.lease, 10, false), 0);
    a.line.word = lease_pack((struct lease){.offered = 8, .claimed = 3});
    bench_take(&b, c, 41, 0, NULL);
    check(broker_lease_is_frozen(a.lease));
    check_eq(b.n_scribbles, 1);
    check_word(&a.line, 0, 0);
    check_eq(broker_lease_pages(a.lease), 0);
    check_eq(broker_used(a.peer->instance), 0);
    check_eq(bench_lease_ask(&b, a.lease, 1, false), BROKER_E_NOT_LEASED);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 1, b.now_ns, &request), BROKER_E_NOT_LEASED);
    a.line.word = UINT64_MAX;
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 1, b.now_ns, &request), BROKER_E_NOT_LEASED);
    bench_run(&b);
    check_eq(b.n_scribbles, 1);
    /* Only this lease, and its peer's takes go on. */
    bench_take(&b, a.peer, 9, 0, NULL);
    bench_finish(&b);
}

TEST(a_scribble_while_a_lease_grows_is_noticed)
{
    struct broker_request *request;
    struct engine a;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    b.hold_creates = true;
    check_eq(broker_lease_ask(b.broker, a.lease, 1, false, b.now_ns, &request), 0);
    bench_run(&b);
    a.line.word = 1;
    bench_answer(&b, 0);
    bench_run(&b);
    check_eq(b.n_leases, 0);
    check_eq(b.error, BROKER_E_NOT_LEASED);
    check_eq(b.n_scribbles, 1);
    check_eq(broker_used(a.peer->instance), 0);
    check_eq(bench_totals(&b).pool_bytes, 2 * MIB);
    bench_finish(&b);
}

TEST(what_a_lost_peer_leased_was_never_handed_over)
{
    struct engine a;
    struct broker_peer *heir;
    struct bench b;
    uint64_t ids[6], theirs[10];

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    heir = bench_join(&b, "e", "b");
    check_eq(bench_lease_ask(&b, a.lease, 10, false), 0);
    check_eq(lease_claim(&a.line, 7), 7);
    bench_lease_take(&b, a.lease, &a.line, a.peer, 2, ids);
    check(lease_spend(&a.line, 1));
    broker_peer_lost(b.broker, a.peer, b.now_ns);
    bench_run(&b);
    check_eq(broker_lease_pages(a.lease), 0);
    check_word(&a.line, 0, 0);
    check_eq(bench_totals(&b).limbo_bytes, 4 * MIB);
    check_eq(bench_totals(&b).pool_bytes, 16 * MIB);
    check_eq(bench_lease_ask(&b, a.lease, 1, false), BROKER_E_NOT_LEASED);
    bench_lease_end(&b, a.lease);
    /* Clean still: another domain can have it. */
    bench_take(&b, heir, 8, 0, theirs);
    check_eq(b.n_creates, 10);
    for (unsigned i = 0; i < 8; i++)
        check(theirs[i] != ids[0] && theirs[i] != ids[1]);
    bench_finish(&b);
}

TEST(a_lease_that_is_closed_refuses_what_it_waits_for)
{
    struct broker_request *request;
    struct broker_lease *lease;
    struct engine a;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    b.hold_creates = true;
    check_eq(broker_lease_ask(b.broker, a.lease, 2, false, b.now_ns, &request), 0);
    bench_run(&b);
    bench_lease_end(&b, a.lease);
    check_eq(b.error, BROKER_E_NOT_LEASED);
    check_eq(broker_used(a.peer->instance), 0);
    bench_answer(&b, 0);
    bench_answer(&b, 1);
    bench_run(&b);
    bench_end(&b, a.peer);
    check_eq(broker_lease_new(b.broker, bench_join(&b, "d", "b"), (uint32_t[BROKER_CLASSES_MAX]){0, 0, 1},
                              &a.line, &lease),
             BROKER_E_INVALID);
    bench_finish(&b);
}

TEST(offers_yield_to_other_programs_after_the_pool)
{
    struct broker_peer *a;
    struct lease_line line;
    struct broker_lease *lease;
    struct bench b;
    uint64_t ids[10];

    bench_init(&b, 512 * MIB);
    b.config.headroom_bytes = 32 * MIB;
    bench_start(&b);
    a = bench_join(&b, "d", "a");
    lease = bench_lease(&b, a, 0, 1, &line);
    bench_take(&b, a, 0, 10, ids);
    check_eq(bench_lease_ask(&b, lease, 20, false), 0);
    check_eq(lease_claim(&line, 5), 5);
    check_eq(broker_return(b.broker, a, ids, 5, b.now_ns), 0);
    bench_run(&b);
    check_eq(bench_totals(&b).held_bytes, 240 * MIB);
    b.foreign_bytes = 1024 * MIB - 240 * MIB;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(bench_totals(&b).pool_bytes, 8 * MIB);
    check_word(&line, 15, 5);
    b.foreign_bytes += 24 * MIB;
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(bench_totals(&b).pool_bytes, 0);
    check_word(&line, 13, 5);
    check_eq(bench_free(&b), 32 * MIB);
    b.foreign_bytes += 32 * MIB;
    bench_pass(&b, NSEC_PER_SEC);
    check_word(&line, 9, 5);
    check_eq(bench_totals(&b).leased_bytes, 112 * MIB);
    bench_finish(&b);
}

TEST(an_idle_pool_withdraws_offers_and_keeps_claims)
{
    struct engine a;
    struct bench b;
    unsigned looks;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    check_eq(bench_lease_ask(&b, a.lease, 10, false), 0);
    check_eq(lease_claim(&a.line, 4), 4);
    bench_pass(&b, 29 * NSEC_PER_SEC);
    check_word(&a.line, 6, 4);
    bench_pass(&b, 2 * NSEC_PER_SEC);
    check_word(&a.line, 0, 4);
    check_eq(bench_totals(&b).held_bytes, 8 * MIB);
    check_eq(b.ours_bytes, 8 * MIB);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    looks = b.n_looks;
    bench_pass(&b, 1000 * NSEC_PER_SEC);
    check_eq(b.n_looks, looks);
    check_eq(b.n_notices, 0);
    bench_lease_take(&b, a.lease, &a.line, a.peer, 4, NULL);
    bench_finish(&b);
}

TEST(a_lease_of_a_frozen_instance_hands_nothing_over)
{
    struct broker_request *request;
    struct engine a;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    check_eq(bench_lease_ask(&b, a.lease, 4, false), 0);
    check_eq(lease_claim(&a.line, 2), 2);
    check(lease_spend(&a.line, 1));
    broker_instance_freeze(b.broker, a.peer->instance);
    bench_run(&b);
    check_word(&a.line, 0, 1);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 1, b.now_ns, &request), BROKER_E_FROZEN);
    check_eq(bench_lease_ask(&b, a.lease, 1, false), BROKER_E_FROZEN);
    bench_finish(&b);
}

TEST(what_is_refused_on_its_way_is_the_pools)
{
    struct engine a;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    check_eq(bench_lease_ask(&b, a.lease, 10, false), 0);
    check_eq(lease_claim(&a.line, 6), 6);
    check(lease_spend(&a.line, 4));
    broker_lease_forgo(b.broker, a.lease, 1, b.now_ns);
    check_eq(broker_lease_pages(a.lease), 9);
    check_eq(bench_totals(&b).pool_bytes, 2 * MIB);
    /* Never more than what is on its way, and of a frozen instance, too. */
    broker_instance_freeze(b.broker, a.peer->instance);
    bench_run(&b);
    broker_lease_forgo(b.broker, a.lease, UINT32_MAX, b.now_ns);
    bench_run(&b);
    check_word(&a.line, 0, 2);
    check_eq(broker_lease_pages(a.lease), 2);
    check_eq(b.n_scribbles, 0);
    broker_lease_forgo(b.broker, a.lease, 1, b.now_ns);
    check_eq(broker_lease_pages(a.lease), 2);
    bench_end(&b, a.peer);
    broker_lease_forgo(b.broker, a.lease, 1, b.now_ns);
    bench_finish(&b);
}

TEST(what_is_on_its_way_is_nobody_elses)
{
    struct broker_request *request;
    struct engine a;
    struct broker_peer *c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_join(&b, &a, "d", "a");
    c = bench_join(&b, "d", "c");
    check_eq(bench_lease_ask(&b, a.lease, 10, false), 0);
    check_eq(lease_claim(&a.line, 6), 6);
    check(lease_spend(&a.line, 5));
    check_eq(bench_ask(&b, c, 45, 0), BROKER_E_BUDGET);
    bench_take(&b, c, 44, 0, NULL);
    bench_pass(&b, 31 * NSEC_PER_SEC);
    check_eq(broker_lease_pages(a.lease), 6);
    check_word(&a.line, 0, 1);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 5, b.now_ns, &request), 0);
    bench_run(&b);
    check(b.granted == request);
    broker_request_free(b.broker, request);
    bench_finish(&b);
}
