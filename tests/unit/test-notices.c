/* SPDX-License-Identifier: Apache-2.0 */

/* Who is asked to give back how much, for whom, and what becomes of those who don't. */

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arith.h"
#include "broker-engine.h"
#include "test.h"

/* Asks for small extents, and is neither granted nor refused so far. */
static struct broker_request *ask_undecided(struct bench *b, struct broker_peer *peer, uint32_t n)
{
    uint32_t counts[BROKER_CLASSES_MAX] = {n};
    struct broker_request *request = NULL;
    unsigned n_grants = b->n_grants, n_refusals = b->n_refusals;

    check_eq(broker_take(b->broker, peer, counts, b->now_ns, &request), 0);
    bench_run(b);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    check_eq(request->charge.bytes, 0);
    check_eq(b->n_grants, n_grants);
    check_eq(b->n_refusals, n_refusals);
    return request;
}

static void check_granted(struct bench *b, struct broker_request *request)
{
    check(b->granted == request);
    broker_request_free(b->broker, request);
    bench_run(b);
}

TEST(what_others_keep_is_asked_for_and_waited_for)
{
    struct broker_request *request;
    struct engine a, c, d;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 20, 0);
    engine_start(&b, &c, "c", 10, 10);
    engine_start(&b, &d, "d", 0, 0);
    a.line.cached_pages = 6;
    c.line.cached_pages = 2;
    /* 10 are free, 6 + 12 could be. */
    check_eq(bench_ask(&b, d.peer, 29, 0), BROKER_E_BUDGET);
    check_eq(b.n_notices, 0);
    request = ask_undecided(&b, d.peer, 25);
    check_eq(b.n_notices, 2);
    check_notice(&b, 0, &a, 12 * MIB, true);
    check_notice(&b, 1, &c, 18 * MIB, true);
    check_eq(broker_pressure(a.peer->instance), 12 * MIB);
    check_eq(broker_pressure(d.peer->instance), 0);
    a.line.cached_pages = 0;
    engine_return(&b, &a, 0, 6);
    check_eq(broker_pressure(a.peer->instance), 0);
    bench_ack(&b, a.peer);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    /* Claims that are offered again come with the acknowledgement. */
    check_eq(lease_unclaim(&c.line, 9), 9);
    bench_ack(&b, c.peer);
    check_granted(&b, request);
    check_eq(broker_lease_pages(c.lease), 1);
    check_eq(b.n_notices, 2);
    check_eq(bench_totals(&b).held_bytes, 100 * MIB);
    bench_finish(&b);
}

TEST(a_request_is_refused_when_nothing_is_left_to_hope_for)
{
    struct engine a, c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 50, 0);
    engine_start(&b, &c, "c", 0, 0);
    a.line.cached_pages = 5;
    ask_undecided(&b, c.peer, 5);
    engine_return(&b, &a, 0, 3);
    a.line.cached_pages = 2;
    check_eq(b.n_refusals, 0);
    /* What it still has is in use, it says by this. */
    bench_ack(&b, a.peer);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_BUDGET);
    check_eq(broker_used(c.peer->instance), 0);
    check_eq(bench_totals(&b).pool_bytes, 6 * MIB);
    bench_finish(&b);
}

TEST(who_misses_a_notice_is_not_waited_for_again)
{
    struct broker_request *request;
    struct engine a, c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 50, 0);
    engine_start(&b, &c, "c", 0, 0);
    a.line.cached_pages = 20;
    ask_undecided(&b, c.peer, 5);
    bench_pass(&b, 499 * NSEC_PER_MSEC);
    check_eq(b.n_refusals, 0);
    bench_pass(&b, NSEC_PER_MSEC);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_BUDGET);
    check(a.peer->missed);
    check_eq(broker_pressure(a.peer->instance), 0);
    check_eq(bench_ask(&b, c.peer, 5, 0), BROKER_E_BUDGET);
    check_eq(b.n_notices, 1);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    /* It returns something, which is no answer: others would wait for it again. */
    engine_return(&b, &a, 0, 5);
    check(a.peer->missed);
    bench_take(&b, c.peer, 5, 0, NULL);
    check_eq(bench_ask(&b, c.peer, 5, 0), BROKER_E_BUDGET);
    bench_ack(&b, a.peer);
    check(!a.peer->missed);
    request = ask_undecided(&b, c.peer, 5);
    check_eq(b.n_notices, 2);
    check_notice(&b, 1, &a, 10 * MIB, true);
    engine_return(&b, &a, 5, 5);
    check_granted(&b, request);
    bench_finish(&b);
}

/* The first that could help is asked alone. When it lets the time pass, all others are. */
TEST(who_is_stuck_costs_a_round)
{
    struct engine stuck, liar, honest, needy;
    struct broker_request *request;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &stuck, "a", 20, 0);
    engine_start(&b, &liar, "c", 20, 0);
    engine_start(&b, &honest, "d", 10, 0);
    engine_start(&b, &needy, "e", 0, 0);
    stuck.line.cached_pages = liar.line.cached_pages = 20;
    honest.line.cached_pages = 10;
    request = ask_undecided(&b, needy.peer, 8);
    check_eq(b.n_notices, 1);
    check_notice(&b, 0, &stuck, 16 * MIB, true);
    bench_pass(&b, 499 * NSEC_PER_MSEC);
    check_eq(b.n_notices, 1);
    bench_pass(&b, NSEC_PER_MSEC);
    check(stuck.peer->missed);
    check_eq(b.n_notices, 3);
    check_notice(&b, 1, &liar, 16 * MIB, true);
    check_notice(&b, 2, &honest, 16 * MIB, true);
    bench_pass(&b, 499 * NSEC_PER_MSEC);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    engine_return(&b, &honest, 0, 8);
    check_granted(&b, request);
    bench_ack(&b, honest.peer);
    bench_finish(&b);
}

TEST(nobody_waits_for_more_than_two_rounds)
{
    struct engine a[4], needy;
    struct bench b;

    bench_begin(&b, 80 * MIB);
    for (unsigned i = 0; i < 4; i++) {
        engine_start(&b, &a[i], "a", 10, 0);
        a[i].line.cached_pages = 10;
    }
    engine_start(&b, &needy, "c", 0, 0);
    ask_undecided(&b, needy.peer, 10);
    bench_pass(&b, 500 * NSEC_PER_MSEC);
    check_eq(b.n_notices, 4);
    check_eq(b.n_refusals, 0);
    bench_pass(&b, 499 * NSEC_PER_MSEC);
    check_eq(b.n_refusals, 0);
    bench_pass(&b, NSEC_PER_MSEC);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_BUDGET);
    check_eq(bench_ask(&b, needy.peer, 10, 0), BROKER_E_BUDGET);
    check_eq(broker_deadline(b.broker), UINT64_MAX);
    bench_finish(&b);
}

/* Whoever is asked has its time, however late another has said that it has nothing. */
TEST(who_answers_with_less_leaves_it_to_the_next)
{
    struct broker_request *request;
    struct engine a, c, needy;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 30, 0);
    engine_start(&b, &c, "c", 20, 0);
    engine_start(&b, &needy, "e", 0, 0);
    a.line.cached_pages = c.line.cached_pages = 20;
    request = ask_undecided(&b, needy.peer, 8);
    check_notice(&b, 0, &a, 16 * MIB, true);
    bench_pass(&b, 499 * NSEC_PER_MSEC);
    engine_return(&b, &a, 0, 3);
    check_eq(b.n_notices, 1);
    bench_ack(&b, a.peer);
    check_eq(b.n_notices, 2);
    check_notice(&b, 1, &c, 10 * MIB, true);
    bench_pass(&b, 499 * NSEC_PER_MSEC);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    engine_return(&b, &c, 0, 5);
    check_granted(&b, request);
    bench_ack(&b, c.peer);
    bench_finish(&b);
}

TEST(who_gives_all_that_was_wanted_can_be_asked_for_more)
{
    struct broker_request *request;
    struct engine a, c, d;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 25, 0);
    engine_start(&b, &c, "c", 25, 0);
    engine_start(&b, &d, "d", 0, 0);
    a.line.cached_pages = 6;
    c.line.cached_pages = 10;
    request = ask_undecided(&b, d.peer, 10);
    check_notice(&b, 0, &a, 12 * MIB, true);
    check_notice(&b, 1, &c, 8 * MIB, true);
    /* One has lost it since, the other has more than was wanted of it. */
    a.line.cached_pages = 0;
    engine_return(&b, &c, 0, 4);
    c.line.cached_pages = 6;
    bench_ack(&b, c.peer);
    bench_ack(&b, a.peer);
    check_eq(b.n_notices, 3);
    check_notice(&b, 2, &c, 12 * MIB, true);
    engine_return(&b, &c, 4, 6);
    check_granted(&b, request);
    bench_finish(&b);
}

TEST(the_limit_asks_only_its_own_instance)
{
    struct broker_request *request;
    struct engine a, mate, c;
    struct bench b;

    bench_begin(&b, 200 * MIB);
    engine_start(&b, &c, "c", 20, 0);
    engine_start(&b, &a, "a", 10, 5);
    engine_start(&b, &mate, "a", 5, 0);
    c.line.cached_pages = 20;
    a.line.cached_pages = 3;
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 40 * MIB), 0);
    check_eq(bench_ask(&b, mate.peer, 9, 0), BROKER_E_LIMIT);
    check_eq(b.n_notices, 0);
    request = ask_undecided(&b, mate.peer, 8);
    check_eq(b.n_notices, 1);
    check_notice(&b, 0, &a, 16 * MIB, true);
    check_eq(lease_unclaim(&a.line, 5), 5);
    engine_return(&b, &a, 0, 2);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    engine_return(&b, &a, 2, 1);
    check_granted(&b, request);
    check_eq(broker_used(a.peer->instance), 40 * MIB);
    bench_finish(&b);
}

TEST(who_lacks_room_in_its_limit_switches_off_nobody_elses_courtesies)
{
    struct engine a, mate, c;
    struct broker_request *request;
    struct bench b;

    bench_begin(&b, 200 * MIB);
    engine_start(&b, &a, "a", 10, 0);
    engine_start(&b, &mate, "a", 0, 0);
    engine_start(&b, &c, "c", 0, 0);
    a.line.cached_pages = 10;
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 20 * MIB), 0);
    request = ask_undecided(&b, mate.peer, 4);
    check_eq(bench_lease_ask(&b, mate.lease, 1, true), BROKER_E_BUDGET);
    check_eq(bench_lease_ask(&b, c.lease, 5, true), 0);
    engine_return(&b, &a, 0, 4);
    check_granted(&b, request);
    bench_ack(&b, a.peer);
    bench_finish(&b);
}

TEST(later_ones_that_lack_the_same_stand_behind_and_others_pass)
{
    struct broker_request *first, *second;
    struct engine a, c, d;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 46, 0);
    engine_start(&b, &c, "c", 0, 0);
    engine_start(&b, &d, "d", 0, 0);
    a.line.cached_pages = 20;
    first = ask_undecided(&b, c.peer, 12);
    second = ask_undecided(&b, d.peer, 5);
    check_eq(b.n_notices, 1);
    check_notice(&b, 0, &a, 16 * MIB, true);
    /* What fits is granted. */
    bench_take(&b, d.peer, 2, 0, NULL);
    /* Enough for the second, not for the first. */
    engine_return(&b, &a, 0, 5);
    check_eq(second->state, BROKER_REQUEST_UNDECIDED);
    a.line.cached_pages = 15;
    engine_return(&b, &a, 5, 5);
    check_granted(&b, first);
    check_eq(second->state, BROKER_REQUEST_UNDECIDED);
    a.line.cached_pages = 10;
    /* Its own time begins when it is first. */
    bench_pass(&b, 400 * NSEC_PER_MSEC);
    check_eq(second->state, BROKER_REQUEST_UNDECIDED);
    bench_ack(&b, a.peer);
    check_eq(b.n_notices, 2);
    check_notice(&b, 1, &a, 10 * MIB, true);
    engine_return(&b, &a, 10, 5);
    check_granted(&b, second);
    bench_finish(&b);
}

TEST(one_who_waits_for_others_ends_with_its_peer_and_theirs)
{
    struct engine a, c, d;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 50, 0);
    engine_start(&b, &c, "c", 0, 0);
    engine_start(&b, &d, "d", 0, 0);
    a.line.cached_pages = 20;
    ask_undecided(&b, c.peer, 12);
    ask_undecided(&b, d.peer, 12);
    broker_peer_lost(b.broker, c.peer, b.now_ns);
    bench_run(&b);
    check_eq(b.n_refusals, 0);
    /* The bytes of one who is lost are not free. */
    broker_peer_lost(b.broker, a.peer, b.now_ns);
    bench_run(&b);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_BUDGET);
    bench_finish(&b);
}

TEST(hints_are_cut_to_what_the_books_say)
{
    struct engine a, c, mute;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 10, 0);
    engine_start(&b, &c, "c", 0, 0);
    a.line.cached_pages = UINT64_MAX;
    engine_join(&b, &mute, "d", "mute");
    mute.line.cached_pages = 40;
    bench_take(&b, mute.peer, 40, 0, NULL);
    check_eq(bench_ask(&b, c.peer, 11, 0), BROKER_E_BUDGET);
    ask_undecided(&b, c.peer, 10);
    check_eq(b.n_notices, 1);
    check_notice(&b, 0, &a, 20 * MIB, true);
    bench_pass(&b, NSEC_PER_SEC);
    check_eq(b.n_refusals, 1);
    bench_finish(&b);
}

/* From the claim on, over its way to the client, until it is a free page there. */
TEST(what_is_on_its_way_to_be_kept_is_asked_for)
{
    struct broker_request *request, *take;
    struct engine a, c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 0, 4);
    engine_start(&b, &c, "c", 46, 0);
    a.line.cached_pages = 4;
    check(lease_spend(&a.line, 4));
    check_eq(bench_ask(&b, c.peer, 5, 0), BROKER_E_BUDGET);
    request = ask_undecided(&b, c.peer, 4);
    check_notice(&b, 0, &a, 8 * MIB, true);
    check_eq(broker_lease_take(b.broker, a.lease, a.peer, 4, b.now_ns, &take), 0);
    bench_run(&b);
    check(b.granted == take);
    memcpy(a.ids, take->extents, 4 * sizeof(a.ids[0]));
    broker_request_free(b.broker, take);
    bench_run(&b);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    a.line.cached_pages = 0;
    engine_return(&b, &a, 0, 4);
    check_granted(&b, request);
    bench_ack(&b, a.peer);
    bench_finish(&b);
}

/* Its answer decides, whatever is seen of it before: what it gives is in no hint while it is on its way. */
TEST(who_is_at_it_is_waited_for)
{
    struct broker_request *request;
    struct engine a, c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 46, 4);
    engine_start(&b, &c, "c", 0, 0);
    request = ask_undecided(&b, c.peer, 3);
    check(lease_spend(&a.line, 4));
    engine_return(&b, &a, 0, 1);
    check_eq(request->state, BROKER_REQUEST_UNDECIDED);
    lease_unspend(&a.line, 4);
    check_eq(lease_unclaim(&a.line, 4), 4);
    bench_ack(&b, a.peer);
    check_granted(&b, request);
    bench_finish(&b);
}

TEST(a_scheduler_answers_for_its_workers_pages)
{
    struct broker_request *request;
    struct engine scheduler, worker, c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &scheduler, "a", 0, 0);
    engine_start(&b, &worker, "a", 20, 0);
    engine_start(&b, &c, "c", 30, 0);
    scheduler.line.cached_pages = UINT64_MAX;
    /* Nobody else does. */
    check_eq(bench_ask(&b, c.peer, 1, 0), BROKER_E_BUDGET);
    scheduler.peer->schedules = worker.peer->obeys = true;
    check_eq(bench_ask(&b, c.peer, 21, 0), BROKER_E_BUDGET);
    scheduler.line.cached_pages = 6;
    check_eq(bench_ask(&b, c.peer, 7, 0), BROKER_E_BUDGET);
    request = ask_undecided(&b, c.peer, 6);
    check_eq(b.n_notices, 1);
    check_notice(&b, 0, &scheduler, 12 * MIB, true);
    scheduler.line.cached_pages = 0;
    engine_return(&b, &worker, 0, 6);
    check_granted(&b, request);
    bench_ack(&b, scheduler.peer);
    /* The limit asks it for all, used or not. */
    scheduler.line.cached_pages = 7;
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 0), 0);
    bench_run(&b);
    check_eq(b.n_notices, 2);
    check_notice(&b, 1, &scheduler, 28 * MIB, false);
    engine_return(&b, &worker, 6, 14);
    bench_finish(&b);
}

/* Each has up to 256 lines, and there may be many such peers. */
TEST(nobody_reads_the_lines_of_who_has_nothing)
{
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    struct lease_line *lines = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct engine a, c;
    struct broker_lease *lease;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 0, 0);
    engine_start(&b, &c, "c", 10, 0);
    check_eq(broker_lease_new(b.broker, a.peer, (uint32_t[BROKER_CLASSES_MAX]){1}, lines, &lease), 0);
    c.line.cached_pages = 10;
    check_eq(bench_ask(&b, bench_join(&b, "d", "e"), 51, 0), BROKER_E_BUDGET);
    ask_undecided(&b, list_first(&broker_instance_find(b.broker, "d", "e")->peers, struct broker_peer, link),
                  45);
    check_eq(broker_set_limit(b.broker, "d", "c", BROKER_LIMIT_ADMIN, 0), 0);
    bench_run(&b);
    check_eq(mprotect(lines, size, PROT_READ | PROT_WRITE), 0);
    lease = broker_lease_free(b.broker, lease);
    bench_finish(&b);
    munmap(lines, size);
}

/* Who waits for others is judged again when something has changed, or its time is over. */
TEST(what_has_not_changed_is_not_judged_again)
{
    struct broker_request *request;
    struct engine a, mate, c;
    struct bench b;
    uint64_t judged;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 10, 0);
    engine_start(&b, &mate, "a", 0, 0);
    engine_start(&b, &c, "c", 10, 0);
    a.line.cached_pages = 10;
    check_eq(broker_set_limit(b.broker, "d", "a", BROKER_LIMIT_ADMIN, 20 * MIB), 0);
    request = ask_undecided(&b, mate.peer, 4);
    broker_tick(b.broker, b.now_ns);
    bench_run(&b);
    check(request->judged_touches >= request->peer->instance->touched);
    /* Others' affairs are none of its. */
    judged = request->judged_touches;
    engine_return(&b, &c, 0, 10);
    check_eq(request->judged_touches, judged);
    engine_return(&b, &a, 0, 3);
    check(request->judged_touches > judged);
    engine_return(&b, &a, 3, 1);
    check_granted(&b, request);
    bench_ack(&b, a.peer);
    bench_finish(&b);
}

TEST(an_instance_has_a_bound_of_requests_that_wait_for_others)
{
    struct engine a, c, d;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 50, 0);
    engine_start(&b, &c, "c", 0, 0);
    engine_start(&b, &d, "d", 0, 0);
    a.line.cached_pages = 50;
    for (unsigned i = 0; i < 64; i++)
        ask_undecided(&b, c.peer, 1);
    check_eq(bench_ask(&b, c.peer, 1, 0), BROKER_E_BUDGET);
    ask_undecided(&b, d.peer, 1);
    check_eq(b.n_notices, 1);
    bench_end(&b, c.peer);
    c.peer = bench_join(&b, "d", "c");
    ask_undecided(&b, c.peer, 1);
    bench_finish(&b);
}

TEST(two_race_for_the_last_page_and_one_has_it)
{
    struct engine a, c;
    struct bench b;

    bench_begin(&b, 100 * MIB);
    engine_start(&b, &a, "a", 24, 0);
    engine_start(&b, &c, "c", 25, 0);
    check_eq(bench_lease_ask(&b, a.lease, 1, false), 0);
    /* It claims just before the other asks. */
    check_eq(lease_claim(&a.line, 1), 1);
    ask_undecided(&b, c.peer, 1);
    bench_lease_take(&b, a.lease, &a.line, a.peer, 1, NULL);
    check_eq(b.n_refusals, 0);
    bench_ack(&b, a.peer);
    check_eq(b.n_refusals, 1);
    check_eq(b.error, BROKER_E_BUDGET);
    engine_return(&b, &a, 0, 1);
    check_eq(bench_lease_ask(&b, a.lease, 1, false), 0);
    /* It claims just after. */
    bench_take(&b, c.peer, 1, 0, NULL);
    check_eq(lease_claim(&a.line, 1), 0);
    bench_finish(&b);
}
