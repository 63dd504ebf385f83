/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What people do in this world, and when it may end. What must be true of the broker meanwhile is in
 * broker-books.c.
 */

#include "broker-world.h"

#include <stdlib.h>

#include "base/arith.h"
#include "broker-books.h"

/* ---- What people do ---- */

void world_note_act(struct world *w, const struct person *person)
{
    w->acted[person->domain][person->name] = true;
}

struct person *world_pick_person(struct world *w, uint32_t arg)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[(arg + i) % PEERS];

        if (person->peer) {
            world_note_act(w, person);
            return person;
        }
    }
    return NULL;
}

static struct errand *pick_errand(struct world *w, uint32_t arg, bool granted)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        struct errand *errand = &w->errands[(arg + i) % REQUESTS];

        if (errand->request && errand->granted == granted && !(granted && errand->reserves)) {
            w->acted[errand->domain][errand->name] = true;
            return errand;
        }
    }
    return NULL;
}

/* Its name is not free yet. */
static bool is_occupied(const struct world *w, const struct broker_instance *instance, unsigned domain,
                        unsigned name)
{
    for (unsigned i = 0; i < PEERS; i++) {
        const struct person *person = &w->people[i];

        if (person->peer && !person->controls && person->domain == domain && person->name == name)
            return true;
    }
    return broker_used(instance) > instance->account.bytes[LEDGER_RESERVED];
}

static void do_join(struct world *w, uint32_t arg)
{
    uint64_t limits[5] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    unsigned domain = arg % N_DOMAINS, name = arg / 4 % N_NAMES;
    struct broker_instance *instance = world_instance(w, domain, name);
    struct person *person = NULL;
    bool frozen;
    int r;

    for (unsigned i = 0; i < PEERS; i++)
        if (!w->people[i].peer && !w->people[i].kept_bytes)
            person = &w->people[i];
    if (!person)
        return;
    if (arg & 64)
        limits[BROKER_LIMIT_ENGINE] = w->config.total_bytes / 4;
    *person = (struct person){.domain = domain,
                              .name = name,
                              .controls = (arg >> 12 & 7) == 0,
                              .listens = arg & 384,
                              .schedules = arg & 512,
                              .obeys = (arg & 1536) == 1024};
    frozen = instance && instance->frozen && is_occupied(w, instance, domain, name);
    r = person->controls ? broker_controller_new(w->broker, world_domain_names[domain],
                                                 world_instance_names[name], limits, &person->peer)
                         : broker_peer_new(w->broker, world_domain_names[domain], world_instance_names[name],
                                           7, limits, &person->peer);
    world_expect(w, r == (frozen ? BROKER_E_FROZEN : 0), "a peer is not let in");
    if (r == 0 && person->listens)
        broker_peer_listens(w->broker, person->peer, person->schedules, person->obeys);
}

/* Which extents leases hold cannot be seen, so any of a class may be one of theirs. */
bool world_is_at_hand(const struct world *w, unsigned domain, const uint32_t *counts)
{
    uint32_t warm[BROKER_CLASSES_MAX] = {};

    if (world_n_waiting(w))
        return false;
    for (uint32_t i = 0; i < w->n_rows; i++) {
        const struct row *row = &w->rows[i];

        warm[row->class_index] +=
            row->exists && row->warm && !row->holder && !row->doomed && (row->domains & ~(1u << domain)) == 0;
    }
    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++) {
        uint32_t leased = 0;

        for (unsigned k = 0; k < PEERS; k++)
            leased += world_issued(&w->people[k]) * w->people[k].page_counts[i];
        if (counts[i] + leased > warm[i])
            return false;
    }
    return true;
}

struct errand *world_spare_errand(struct world *w)
{
    struct errand *errand = NULL;

    for (unsigned i = 0; i < REQUESTS; i++)
        if (!w->errands[i].request)
            errand = &w->errands[i];
    return errand;
}

void world_begin_errand(struct world *w, struct errand *errand, struct person *person)
{
    *errand = (struct errand){
        .person = person,
        .domain = person->domain,
        .name = person->name,
        .since_ns = w->now_ns,
        .serial = ++w->serial,
        .step = w->step,
    };
}

int world_expected(const struct world *w, const struct person *person, uint32_t n)
{
    if (n == 0 || n > w->config.warm_max || person->lost)
        return BROKER_E_INVALID;
    return person->peer->instance->frozen ? BROKER_E_FROZEN : 0;
}

static void do_take(struct world *w, uint32_t arg)
{
    struct person *person = world_pick_person(w, arg);
    struct errand *errand = world_spare_errand(w);
    unsigned answers = w->n_answers;
    enum world_verdict verdict;
    uint32_t n = 0;
    bool instant;
    int r, should;

    if (!person || !errand || person->controls)
        return;
    world_begin_errand(w, errand, person);
    for (unsigned i = 0; i < w->config.n_classes; i++) {
        errand->counts[i] = arg >> (8 + 2 * i) & 3 ? arg >> (14 + 4 * i) & (i ? 3 : 15) : 0;
        errand->bytes += errand->counts[i] * w->config.class_bytes[i];
        n += errand->counts[i];
    }
    should = world_expected(w, person, n);
    verdict = should == 0 ? world_judge(w, errand) : WORLD_UNSURE;
    instant = verdict == WORLD_FITS && world_is_at_hand(w, person->domain, errand->counts);
    r = broker_take(w->broker, person->peer, errand->counts, w->now_ns, &errand->request);
    if (should == 0)
        world_check_verdict(w, verdict, r);
    else
        world_expect(w, r == should, "a request is not refused as it should be");
    world_settle(w);
    if (r == 0 && instant)
        world_expect(w, w->n_answers == answers + 1, "a request waits though all is warm");
}

static void do_sent(struct world *w, uint32_t arg)
{
    struct errand *errand = pick_errand(w, arg, true);

    if (!errand)
        return;
    for (uint32_t i = 0; i < errand->request->n_extents; i++) {
        struct row *row = &w->rows[(uint32_t)errand->request->extents[i]];

        if (row->id == errand->request->extents[i] && !row->doomed)
            row->warm = false;
    }
    broker_request_free(w->broker, errand->request);
    *errand = (struct errand){};
}

static void do_withdraw(struct world *w, uint32_t arg)
{
    struct errand *errand = pick_errand(w, arg, false);

    if (!errand)
        return;
    broker_request_free(w->broker, errand->request);
    *errand = (struct errand){};
}

unsigned world_collect(const struct world *w, const struct person *person, uint64_t *ids, unsigned max)
{
    unsigned n = 0;

    for (uint32_t i = 0; i < w->n_rows && n < max; i++)
        if (w->rows[i].exists && w->rows[i].holder == person && !w->rows[i].warm)
            ids[n++] = w->rows[i].id;
    return n;
}

void world_give(struct world *w, struct person *person, uint64_t id)
{
    struct row *row = &w->rows[(uint32_t)id];

    row->holder = NULL;
    person->asked_bytes = u64_sub_floor(person->asked_bytes, row->bytes);
}

static void do_return(struct world *w, uint32_t arg)
{
    struct person *person = world_pick_person(w, arg);
    uint64_t ids[64];
    unsigned n;

    if (!person || person->lost)
        return;
    n = world_collect(w, person, ids, 1 + (arg >> 8) % 64);
    for (unsigned i = 0; i < n; i++)
        world_give(w, person, ids[i]);
    world_expect(w, broker_return(w->broker, person->peer, ids, n, w->now_ns) == 0,
                 "what is held cannot be returned");
}

static void do_return_bad(struct world *w, uint32_t arg)
{
    struct person *person = world_pick_person(w, arg);
    uint64_t ids[8];
    unsigned n;

    if (!person)
        return;
    n = world_collect(w, person, ids, 6);
    ids[n] = n && arg & 256 ? ids[0] : arg;
    if (!(n && arg & 256))
        for (uint32_t i = 0; i < w->n_rows; i++)
            if (w->rows[i].exists && w->rows[i].holder != person)
                ids[n] = w->rows[i].id;
    world_expect(w, broker_return(w->broker, person->peer, ids, n + 1, w->now_ns) == BROKER_E_NOT_HELD,
                 "what is not held can be returned");
}

static void forget_errands(struct world *w, const struct person *person)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].person == person && !w->errands[i].granted)
            w->errands[i] = (struct errand){};
        else if (w->errands[i].person == person)
            world_end_hope(w, &w->errands[i]);
}

static void do_lose(struct world *w, uint32_t arg)
{
    struct person *person = world_pick_person(w, arg);

    if (!person || person->lost)
        return;
    person->lost = true;
    forget_errands(w, person);
    for (uint32_t i = 0; i < w->n_rows; i++)
        w->rows[i].was_lost |= w->rows[i].exists && w->rows[i].holder == person;
    broker_peer_lost(w->broker, person->peer, w->now_ns);
}

static void do_die(struct world *w, uint32_t arg)
{
    struct person *person = world_pick_person(w, arg);
    uint64_t kept_bytes;

    if (!person)
        return;
    forget_errands(w, person);
    for (uint32_t i = 0; i < w->n_rows; i++)
        if (w->rows[i].exists && w->rows[i].holder == person) {
            w->rows[i].was_lost = true;
            w->rows[i].holder = NULL;
        }
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].person == person)
            w->errands[i].person = NULL;
    kept_bytes = person->kept_bytes;
    broker_peer_dead(w->broker, person->peer, w->now_ns);
    person->lease = broker_lease_free(w->broker, person->lease);
    /* Some leave a child behind that keeps what they had. */
    *person = (struct person){};
    if (w->kind != WORLD_HONEST && arg & 1024)
        w->orphaned_bytes += kept_bytes;
}

static void do_limit(struct world *w, uint32_t arg)
{
    unsigned domain = arg % N_DOMAINS, name = arg / 4 % N_NAMES;
    enum broker_limit_source source = BROKER_LIMIT_ADMIN + arg / 16 % 3;
    uint64_t bytes = arg & 256 ? UINT64_MAX : w->config.total_bytes / 16 * (arg >> 9 & 15);
    bool known = world_instance(w, domain, name);
    int r;

    r = broker_set_limit(w->broker, world_domain_names[domain], world_instance_names[name], source, bytes);
    world_expect(
        w, r == (known || (source == BROKER_LIMIT_ADMIN && bytes != UINT64_MAX) ? 0 : BROKER_E_NOT_FOUND),
        "a limit is not taken");
}

static void do_delete(struct world *w, uint32_t arg)
{
    struct broker_instance *instance = world_instance(w, arg % N_DOMAINS, arg / 4 % N_NAMES);

    if (instance)
        world_expect(w,
                     broker_instance_delete(w->broker, instance) ==
                         (list_is_empty(&instance->peers) ? 0 : BROKER_E_HAS_PEERS),
                     "an instance is deleted with peers, or not without");
}

static void do_freeze(struct world *w, uint32_t arg)
{
    struct broker_instance *instance = world_instance(w, arg % N_DOMAINS, arg / 4 % N_NAMES);

    if (instance && arg % 7 == 0)
        broker_instance_freeze(w->broker, instance);
}

static void do_budget(struct world *w, uint32_t arg)
{
    w->config.budget_bytes = arg & 1 ? 0 : w->config.total_bytes / 16 * (1 + (arg >> 1 & 15));
    /* Creates that were ordered before may touch what became headroom since. */
    if (w->foreign_moved)
        w->config.headroom_bytes = w->config.total_bytes / 64 * (arg >> 5 & 3);
    w->config.reserve_bytes = w->config.class_bytes[0] * (arg >> 7 & 15);
    broker_reconfigure(w->broker, &w->config, w->now_ns);
}

static void do_foreign(struct world *w, uint32_t arg)
{
    uint64_t bytes = (uint64_t)arg * 4096 % (w->config.total_bytes / 2);

    w->foreign_moved = true;
    w->foreign_bytes = u64_min(bytes, w->foreign_bytes + world_free_bytes(w));
}

static void do_lie(struct world *w, uint32_t arg)
{
    struct person *person = world_pick_person(w, arg);

    w->orphaned_bytes = 0;
    if (!person)
        return;
    person->lies = arg & 256;
    if (!person->lies)
        person->kept_bytes = 0;
}

static void do_pass(struct world *w, uint32_t arg)
{
    uint64_t end_ns = w->now_ns + (uint64_t)(arg & 0xffff) * 50 * NSEC_PER_USEC;

    if ((arg & 0xf0000) == 0)
        end_ns += (arg >> 20 & 31) * NSEC_PER_SEC;
    if (arg & 1)
        end_ns = u64_min(u64_max(broker_deadline(w->broker), w->now_ns), w->now_ns + NSEC_PER_SEC);
    w->now_ns = end_ns;
    broker_tick(w->broker, w->now_ns);
}

static void do_drive(struct world *w, uint32_t arg)
{
    for (unsigned n = 1 + arg % 8; n && w->n_work && !w->failure; n--) {
        world_drive(w);
        world_settle(w);
    }
}

static void act(struct world *w, enum world_op op, uint32_t arg)
{
    static void (*const ops[_WORLD_N])(struct world *, uint32_t) = {
        [WORLD_JOIN] = do_join,
        [WORLD_TAKE] = do_take,
        [WORLD_SENT] = do_sent,
        [WORLD_RETURN] = do_return,
        [WORLD_RETURN_BAD] = do_return_bad,
        [WORLD_WITHDRAW] = do_withdraw,
        [WORLD_DRIVE] = do_drive,
        [WORLD_PASS] = do_pass,
        [WORLD_LOSE] = do_lose,
        [WORLD_DIE] = do_die,
        [WORLD_LIMIT] = do_limit,
        [WORLD_DELETE] = do_delete,
        [WORLD_OPEN] = world_do_open,
        [WORLD_CLOSE] = world_do_close,
        [WORLD_ASK] = world_do_ask,
        [WORLD_CLAIM] = world_do_claim,
        [WORLD_SPEND] = world_do_spend,
        [WORLD_HINT] = world_do_hint,
        [WORLD_ACK] = world_do_ack,
        [WORLD_RESERVE] = world_do_reserve,
        [WORLD_RELEASE] = world_do_release,
        [WORLD_LOAD] = world_do_load,
        [WORLD_UNLOAD] = world_do_unload,
        [WORLD_SCRIBBLE] = world_do_scribble,
        [WORLD_BUDGET] = do_budget,
        [WORLD_FOREIGN] = do_foreign,
        [WORLD_LIE] = do_lie,
        [WORLD_FREEZE] = do_freeze,
    };

    if (op == WORLD_FAIL) {
        w->fail_creates = arg & 1;
        w->fail_exports = arg & 2;
        return;
    }
    ops[op](w, arg);
}

const char *world_step(struct world *w, enum world_op op, uint32_t arg)
{
    static const enum world_op ends[_WORLD_KINDS] = {_WORLD_N_HONEST, _WORLD_N_LYING, _WORLD_N};
    uint64_t reserved[N_DOMAINS][N_NAMES];
    struct broker_totals before;

    if (op >= ends[w->kind])
        return w->failure;
    broker_totals(w->broker, &before);
    w->op = op;
    w->step++;
    w->budget_before = before.budget_bytes;
    world_note_reserved(w, reserved);
    act(w, op, arg);
    world_settle(w);
    world_check_reserved(w, reserved);
    world_check(w, before.held_bytes, before.budget_bytes);
    return w->failure;
}

static bool all_answered(const struct world *w)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].request && !(w->errands[i].granted && w->errands[i].reserves))
            return false;
    return true;
}

void world_drive_all(struct world *w)
{
    while (w->n_work && !w->failure) {
        world_drive(w);
        world_settle(w);
    }
}

static void drive_all(struct world *w)
{
    while (w->n_work && !w->failure)
        world_step(w, WORLD_DRIVE, 7);
}

static bool is_clean(const struct world *w)
{
    if (w->foreign_moved || w->orphaned_bytes || world_expects(w))
        return false;
    /* It may have hidden what came free. */
    if (w->kind != WORLD_HONEST && world_loaded(w))
        return false;
    for (unsigned i = 0; i < PEERS; i++)
        if (w->people[i].lost || w->people[i].kept_bytes)
            return false;
    return true;
}

const char *world_quiesce(struct world *w)
{
    for (unsigned n = 0; !w->failure && !all_answered(w); n++) {
        world_expect(w, n < 2000, "somebody waits for ever");
        drive_all(w);
        for (unsigned i = 0; i < 4; i++)
            world_step(w, WORLD_SENT, i * 16);
        world_step(w, WORLD_PASS, 1);
    }
    drive_all(w);
    for (unsigned n = 0; !w->failure && is_clean(w) && broker_deadline(w->broker) != UINT64_MAX; n++) {
        world_expect(w, n < 2000, "an idle broker is awake");
        w->now_ns = u64_max(w->now_ns, broker_deadline(w->broker));
        broker_tick(w->broker, w->now_ns);
        world_settle(w);
        drive_all(w);
    }
    return w->failure;
}

const char *world_end(struct world *w)
{
    struct broker_totals totals;

    for (unsigned i = 0; i < PEERS; i++) {
        w->people[i].lies = false;
        w->people[i].kept_bytes = 0;
        if (w->people[i].peer)
            world_step(w, WORLD_DIE, i);
    }
    w->orphaned_bytes = 0;
    world_release_all(w);
    world_quiesce(w);
    broker_drain(w->broker, w->now_ns);
    world_settle(w);
    world_quiesce(w);
    world_expect(w, world_ours(w) == 0, "the device is not as it was");
    broker_totals(w->broker, &totals);
    world_expect(w, totals.held_bytes == totals.destroying_bytes, "something is held at the end");
    if (!w->foreign_moved)
        world_expect(w, totals.held_bytes == 0, "something is never confirmed");
    return w->failure;
}

struct world *world_new(uint64_t seed, enum world_kind kind)
{
    struct world *w = calloc(1, sizeof(*w));

    if (!w)
        abort();
    w->kind = kind;
    w->now_ns = NSEC_PER_SEC;
    w->config = (struct broker_config){
        .total_bytes = 512 * MIB,
        .n_classes = 1 + seed % 3,
        .class_bytes = {2 * MIB, 8 * MIB, 32 * MIB},
        .budget_bytes = seed >> 2 & 1 ? 0 : 256 * MIB << (seed >> 3 & 1),
        .utilization_ppm = 900000,
        .headroom_bytes = seed >> 4 & 1 ? 16 * MIB : 0,
        .reserve_bytes = seed >> 5 & 1 ? 24 * MIB : 0,
        .warm_max = seed >> 6 & 1 ? 24 : 200,
        .lease_max = seed >> 6 & 1 ? 12 : 100,
        .creating_max = seed >> 7 & 1 ? 2 : 16,
        .idle_ns = seed >> 8 & 1 ? 3 * NSEC_PER_SEC : 60 * NSEC_PER_SEC,
        .look_ns = 250 * NSEC_PER_MSEC,
        .budget_rise_ns = NSEC_PER_SEC,
        .patience_ns = 5 * NSEC_PER_SEC,
        .notice_ns = 2 * NSEC_PER_SEC,
        .courtesy_ns = 500 * NSEC_PER_MSEC,
    };
    /* A fixed budget that headroom and others leave room for, or even an honest driver refuses. */
    if (kind == WORLD_HONEST && w->config.budget_bytes > 400 * MIB)
        w->config.budget_bytes = 400 * MIB;
    w->foreign_bytes = seed >> 9 & 1 ? 37 * MIB : 0;
    if (broker_new(&w->config, world_free_bytes(w), w->now_ns, &w->broker) != 0)
        abort();
    return w;
}

struct world *world_free(struct world *w)
{
    w->broker = broker_free(w->broker);
    free(w);
    return NULL;
}
