/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The books here are kept the simple way: a row per extent, peer and request, and every sum made anew when it
 * is wanted. The broker is asked only for what cannot be known from outside: how much of what is destroyed it
 * has not seen confirmed.
 */

#include "broker-world.h"

#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "broker.h"

#define PEERS 16
#define REQUESTS 64
#define SLOTS 8192
#define WORK 8192
#define N_DOMAINS 3
#define N_NAMES 3

struct row {
    uint64_t id;
    uint64_t bytes;
    unsigned class_index;
    bool exists; /* the daemon has a handle */
    bool warm, doomed;
    struct person *holder;
    unsigned domains; /* that ever had it, as bits */
    bool was_lost;    /* held by somebody lost */
};

struct person {
    struct broker_peer *peer;
    unsigned domain, name;
    bool lost, lies;
    uint64_t kept_bytes; /* of destroyed extents, by references of its own */
};

struct errand {
    struct broker_request *request;
    struct person *person;
    unsigned domain, name;
    uint32_t counts[BROKER_CLASSES_MAX];
    uint64_t bytes;
    uint64_t since_ns;
    uint64_t serial;
    bool granted; /* and not yet sent */
    bool fresh;   /* in this event */
};

struct world {
    struct broker *broker;
    struct broker_config config;
    bool honest;
    uint64_t now_ns;
    uint64_t foreign_bytes, orphaned_bytes;
    bool foreign_moved;
    bool fail_creates, fail_exports;
    struct row rows[SLOTS];
    uint32_t n_rows;
    struct person people[PEERS];
    struct errand errands[REQUESTS];
    uint64_t serial;
    struct broker_action work[WORK];
    unsigned work_first, n_work;
    enum world_op op;
    uint64_t budget_before;
    unsigned n_answers;
    const char *failure;
};

static const char *const domain_names[] = {"uid:1000", "uid:1001", "tenant"};
static const char *const instance_names[] = {"a", "b", "c"};

static void expect(struct world *w, bool condition, const char *sentence)
{
    if (!condition && !w->failure)
        w->failure = sentence;
}

/* ---- The device ---- */

static uint64_t ours(const struct world *w)
{
    uint64_t bytes = w->orphaned_bytes;

    for (uint32_t i = 0; i < w->n_rows; i++)
        bytes += w->rows[i].exists ? w->rows[i].bytes : 0;
    for (unsigned i = 0; i < PEERS; i++)
        bytes += w->people[i].kept_bytes;
    return bytes;
}

static uint64_t free_bytes(const struct world *w)
{
    return w->config.total_bytes - w->foreign_bytes - ours(w);
}

static void drive_create(struct world *w, const struct broker_action *action)
{
    struct row *row = &w->rows[(uint32_t)action->extent];
    uint64_t bytes = w->config.class_bytes[action->class_index];
    bool ok = !w->fail_creates && bytes <= free_bytes(w);

    expect(w, !row->exists, "an extent is created twice");
    expect(w, row->id != action->extent, "an extent's id comes again");
    if (!w->foreign_moved)
        expect(w, free_bytes(w) >= bytes + w->config.headroom_bytes, "a create touches the headroom");
    *row =
        (struct row){.id = action->extent, .bytes = bytes, .class_index = action->class_index, .exists = ok};
    w->n_rows = w->n_rows > (uint32_t)action->extent ? w->n_rows : (uint32_t)action->extent + 1;
    broker_created(w->broker, action->extent, ok, w->now_ns);
}

static void drive_export(struct world *w, const struct broker_action *action)
{
    struct row *row = &w->rows[(uint32_t)action->extent];

    expect(w, row->exists && row->id == action->extent && !row->holder && !row->warm,
           "an extent is exported that cannot be");
    row->warm = !w->fail_exports;
    broker_exported(w->broker, action->extent, row->warm, w->now_ns);
}

static void drive_destroy(struct world *w, const struct broker_action *action)
{
    struct row *row = &w->rows[(uint32_t)action->extent];

    expect(w, row->exists && row->id == action->extent && row->doomed,
           "an extent is destroyed that cannot be");
    row->exists = false;
    for (unsigned i = 0; i < PEERS; i++)
        if (w->people[i].peer && w->people[i].lies && (row->domains & 1u << w->people[i].domain)) {
            w->people[i].kept_bytes += row->bytes;
            break;
        }
    broker_destroyed(w->broker, action->extent, w->now_ns);
}

static void drive(struct world *w)
{
    struct broker_action action = w->work[w->work_first];

    w->work_first = (w->work_first + 1) % WORK;
    w->n_work--;
    switch (action.type) {
    case BROKER_ACTION_CREATE:
        drive_create(w, &action);
        break;
    case BROKER_ACTION_EXPORT:
        drive_export(w, &action);
        break;
    case BROKER_ACTION_DESTROY:
        drive_destroy(w, &action);
        break;
    default:
        broker_look(w->broker, free_bytes(w), w->now_ns);
        break;
    }
}

/* ---- The books ---- */

static struct broker_instance *instance_of(struct world *w, unsigned domain, unsigned name)
{
    return broker_instance_find(w->broker, domain_names[domain], instance_names[name]);
}

/* By domain and name. */
struct usage {
    uint64_t bytes[N_DOMAINS][N_NAMES];
};

static struct usage usage(struct world *w)
{
    struct usage usage = {};

    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *errand = &w->errands[i];

        if (errand->request && !errand->granted)
            usage.bytes[errand->domain][errand->name] += errand->bytes;
    }
    for (uint32_t i = 0; i < w->n_rows; i++) {
        const struct person *holder = w->rows[i].exists ? w->rows[i].holder : NULL;

        if (holder)
            usage.bytes[holder->domain][holder->name] += w->rows[i].bytes;
    }
    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++) {
            const struct broker_instance *instance = instance_of(w, domain, name);

            if (instance)
                usage.bytes[domain][name] += instance->account.bytes[LEDGER_DESTROYING];
        }
    return usage;
}

static uint64_t charged(const struct usage *usage)
{
    uint64_t bytes = 0;

    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++)
            bytes += usage->bytes[domain][name];
    return bytes;
}

static uint64_t limit(const struct broker_instance *instance)
{
    for (unsigned source = BROKER_LIMIT_ADMIN; source < BROKER_LIMIT_BUDGET; source++)
        if (instance->has_limit[source])
            return instance->limit_of[source];
    return UINT64_MAX;
}

static uint64_t budget(const struct world *w)
{
    struct broker_totals totals;

    broker_totals(w->broker, &totals);
    return totals.budget_bytes;
}

static struct errand *errand_of(struct world *w, const struct broker_request *request)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].request == request)
            return &w->errands[i];
    expect(w, false, "an action names a request that nobody made");
    return NULL;
}

static unsigned n_waiting(const struct world *w)
{
    unsigned n = 0;

    for (unsigned i = 0; i < REQUESTS; i++)
        n += w->errands[i].request && !w->errands[i].granted;
    return n;
}

static bool same_classes(const struct errand *a, const struct errand *b)
{
    unsigned n = 0;

    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++) {
        if (!a->counts[i] != !b->counts[i])
            return false;
        n += a->counts[i] > 0;
    }
    return n == 1;
}

/* ---- Actions ---- */

static void check_handed(struct world *w, const struct errand *errand, uint64_t id, uint32_t *counts)
{
    struct row *row = &w->rows[(uint32_t)id];

    expect(w, row->id == id && row->exists, "an extent is granted that doesn't exist");
    expect(w, row->warm, "an extent is granted without a descriptor");
    expect(w, !row->doomed, "an extent is granted that is to be destroyed");
    expect(w, !row->holder, "an extent is granted twice");
    expect(w, !row->was_lost, "an extent of a lost peer is granted");
    expect(w, (row->domains & ~(1u << errand->domain)) == 0, "an extent crosses trust domains");
    row->holder = errand->person;
    row->domains |= 1u << errand->domain;
    counts[row->class_index]++;
}

static void on_grant(struct world *w, struct broker_request *request)
{
    struct errand *errand = errand_of(w, request);
    uint32_t counts[BROKER_CLASSES_MAX] = {};

    if (!errand)
        return;
    expect(w, !errand->granted && request->granted, "a request is granted twice");
    errand->granted = errand->fresh = true;
    for (uint32_t i = 0; i < request->n_extents; i++)
        check_handed(w, errand, request->extents[i], counts);
    expect(w, memcmp(counts, errand->counts, sizeof(counts)) == 0,
           "what is granted is not what was asked for");
}

static void on_refuse(struct world *w, struct broker_request *request, int error)
{
    struct errand *errand = errand_of(w, request);

    if (!errand)
        return;
    expect(w, !errand->granted, "a request is refused after it was granted");
    switch (error) {
    case BROKER_E_LIMIT:
        expect(w, w->op == WORLD_LIMIT, "a request is refused for a limit that has not changed");
        break;
    case BROKER_E_BUDGET:
        expect(w, budget(w) < w->budget_before, "a request is refused for a budget that has not fallen");
        break;
    case BROKER_E_FROZEN:
        expect(w, w->op == WORLD_FREEZE, "a request is refused for no reason");
        break;
    case BROKER_E_DRIVER:
        expect(w, !w->honest, "a request is refused though the driver never failed");
        expect(w, w->now_ns - errand->since_ns >= w->config.patience_ns, "a request is refused too early");
        break;
    default:
        expect(w, false, "a request is refused for an unknown reason");
        break;
    }
    *errand = (struct errand){};
    broker_request_free(w->broker, request);
}

static void on_driver_action(struct world *w, const struct broker_action *action)
{
    uint32_t index = (uint32_t)action->extent;

    if (index >= SLOTS || w->n_work == WORK) {
        expect(w, false, "the world is too small");
        return;
    }
    if (action->type == BROKER_ACTION_DESTROY) {
        struct row *row = &w->rows[index];

        expect(w, row->id == action->extent && row->exists && !row->doomed, "an extent is destroyed twice");
        expect(w, !row->holder, "an extent is destroyed while it is held");
        row->doomed = true;
    }
    w->work[(w->work_first + w->n_work++) % WORK] = *action;
}

static void on_action(struct world *w, const struct broker_action *action)
{
    switch (action->type) {
    case BROKER_ACTION_GRANT:
        w->n_answers++;
        on_grant(w, action->request);
        break;
    case BROKER_ACTION_REFUSE:
        w->n_answers++;
        on_refuse(w, action->request, action->error);
        break;
    case BROKER_ACTION_FORGET:
        expect(w, list_is_empty(&action->instance->peers) && broker_used(action->instance) == 0,
               "an instance is forgotten that is in use");
        break;
    case BROKER_ACTION_STATUS:
        break;
    default:
        on_driver_action(w, action);
        break;
    }
}

/* ---- What is checked after every event ---- */

static void check_books(struct world *w, uint64_t held_before, uint64_t budget_before)
{
    struct usage u = usage(w);
    struct broker_totals totals;
    uint64_t given = 0;

    broker_totals(w->broker, &totals);
    for (uint32_t i = 0; i < w->n_rows; i++)
        given += w->rows[i].exists ? w->rows[i].bytes : 0;
    expect(w, totals.held_bytes - totals.creating_bytes >= given,
           "the driver gave more than the ledger knows");
    if (!w->foreign_moved)
        expect(w, totals.held_bytes - totals.creating_bytes >= ours(w),
               "bytes are free that somebody still holds");
    if (held_before >= u64_max(budget_before, totals.budget_bytes))
        expect(w, totals.held_bytes <= held_before, "more is held though the budget is exceeded");
    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++) {
            const struct broker_instance *instance = instance_of(w, domain, name);

            if (instance)
                expect(w, broker_used(instance) == u.bytes[domain][name],
                       "an instance is charged something else");
        }
}

static void check_order(struct world *w, const struct errand *errand)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *other = &w->errands[i];

        if (other->request && !other->granted && other->domain == errand->domain)
            expect(w, other->serial > errand->serial || !same_classes(other, errand),
                   "a request is passed by a later one");
    }
}

/* Refusals of the same event count too, so this comes after the last of its actions. */
static void check_fresh_grants(struct world *w)
{
    struct usage u = usage(w);

    for (unsigned i = 0; i < REQUESTS; i++) {
        struct errand *errand = &w->errands[i];

        if (!errand->request || !errand->fresh)
            continue;
        errand->fresh = false;
        expect(w,
               u.bytes[errand->domain][errand->name] <= limit(instance_of(w, errand->domain, errand->name)),
               "a grant exceeds the limit");
        expect(w, charged(&u) <= budget(w), "a grant exceeds the budget");
        check_order(w, errand);
    }
}

static void settle(struct world *w)
{
    struct broker_action action;
    const char *failure;

    while (!w->failure && broker_next_action(w->broker, &action))
        on_action(w, &action);
    failure = broker_check(w->broker);
    expect(w, !failure, failure);
    check_fresh_grants(w);
}

/* ---- What people do ---- */

static struct person *pick_person(struct world *w, uint32_t arg)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[(arg + i) % PEERS];

        if (person->peer)
            return person;
    }
    return NULL;
}

static struct errand *pick_errand(struct world *w, uint32_t arg, bool granted)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        struct errand *errand = &w->errands[(arg + i) % REQUESTS];

        if (errand->request && errand->granted == granted)
            return errand;
    }
    return NULL;
}

static void do_join(struct world *w, uint32_t arg)
{
    uint64_t limits[5] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    unsigned domain = arg % N_DOMAINS, name = arg / 4 % N_NAMES;
    struct broker_instance *instance = instance_of(w, domain, name);
    struct person *person = NULL;
    int r;

    for (unsigned i = 0; i < PEERS; i++)
        if (!w->people[i].peer && !w->people[i].kept_bytes)
            person = &w->people[i];
    if (!person)
        return;
    if (arg & 64)
        limits[BROKER_LIMIT_ENGINE] = w->config.total_bytes / 4;
    *person = (struct person){.domain = domain, .name = name};
    r = broker_peer_new(w->broker, domain_names[domain], instance_names[name], 7, limits, &person->peer);
    expect(w, r == (instance && instance->frozen ? BROKER_E_FROZEN : 0), "a peer is not let in");
}

/* All that a request wants lies warm, and nobody else waits for anything? */
static bool at_hand(const struct world *w, unsigned domain, const uint32_t *counts)
{
    uint32_t warm[BROKER_CLASSES_MAX] = {};

    if (n_waiting(w))
        return false;
    for (uint32_t i = 0; i < w->n_rows; i++) {
        const struct row *row = &w->rows[i];

        warm[row->class_index] +=
            row->exists && row->warm && !row->holder && !row->doomed && (row->domains & ~(1u << domain)) == 0;
    }
    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++)
        if (counts[i] > warm[i])
            return false;
    return true;
}

static int expected(struct world *w, const struct person *person, uint64_t bytes, uint32_t n)
{
    const struct broker_instance *instance = person->peer->instance;
    struct usage u = usage(w);

    if (n == 0 || n > w->config.warm_max || person->lost)
        return BROKER_E_INVALID;
    if (instance->frozen)
        return BROKER_E_FROZEN;
    if (u.bytes[person->domain][person->name] + bytes > limit(instance))
        return BROKER_E_LIMIT;
    return charged(&u) + bytes > budget(w) ? BROKER_E_BUDGET : 0;
}

static void do_take(struct world *w, uint32_t arg)
{
    struct person *person = pick_person(w, arg);
    struct errand *errand = NULL;
    unsigned answers = w->n_answers;
    uint32_t n = 0;
    bool instant;
    int r, should;

    for (unsigned i = 0; i < REQUESTS; i++)
        if (!w->errands[i].request)
            errand = &w->errands[i];
    if (!person || !errand)
        return;
    *errand = (struct errand){
        .person = person,
        .domain = person->domain,
        .name = person->name,
        .since_ns = w->now_ns,
        .serial = ++w->serial,
    };
    for (unsigned i = 0; i < w->config.n_classes; i++) {
        errand->counts[i] = arg >> (8 + 2 * i) & 3 ? arg >> (14 + 4 * i) & (i ? 3 : 15) : 0;
        errand->bytes += errand->counts[i] * w->config.class_bytes[i];
        n += errand->counts[i];
    }
    should = expected(w, person, errand->bytes, n);
    instant = at_hand(w, person->domain, errand->counts);
    r = broker_take(w->broker, person->peer, errand->counts, w->now_ns, &errand->request);
    expect(w, r == should, "a request is not judged by limit and budget");
    settle(w);
    if (r == 0 && instant)
        expect(w, w->n_answers == answers + 1, "a request waits though all is warm");
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

/* Descriptors of what is granted are closed when it is sent, so what is still warm cannot be returned yet. */
static unsigned collect(const struct world *w, const struct person *person, uint64_t *ids, unsigned max)
{
    unsigned n = 0;

    for (uint32_t i = 0; i < w->n_rows && n < max; i++)
        if (w->rows[i].exists && w->rows[i].holder == person && !w->rows[i].warm)
            ids[n++] = w->rows[i].id;
    return n;
}

static void do_return(struct world *w, uint32_t arg)
{
    struct person *person = pick_person(w, arg);
    uint64_t ids[64];
    unsigned n;

    if (!person || person->lost)
        return;
    n = collect(w, person, ids, 1 + (arg >> 8) % 64);
    for (unsigned i = 0; i < n; i++)
        w->rows[(uint32_t)ids[i]].holder = NULL;
    expect(w, broker_return(w->broker, person->peer, ids, n, w->now_ns) == 0,
           "what is held cannot be returned");
}

static void do_return_bad(struct world *w, uint32_t arg)
{
    struct person *person = pick_person(w, arg);
    uint64_t ids[8];
    unsigned n;

    if (!person)
        return;
    n = collect(w, person, ids, 6);
    ids[n] = n && arg & 256 ? ids[0] : arg;
    if (!(n && arg & 256))
        for (uint32_t i = 0; i < w->n_rows; i++)
            if (w->rows[i].exists && w->rows[i].holder != person)
                ids[n] = w->rows[i].id;
    expect(w, broker_return(w->broker, person->peer, ids, n + 1, w->now_ns) == BROKER_E_NOT_HELD,
           "what is not held can be returned");
}

static void forget_errands(struct world *w, const struct person *person)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].person == person && !w->errands[i].granted)
            w->errands[i] = (struct errand){};
}

static void do_lose(struct world *w, uint32_t arg)
{
    struct person *person = pick_person(w, arg);

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
    struct person *person = pick_person(w, arg);
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
    /* Some leave a child behind that keeps what they had. */
    *person = (struct person){};
    if (!w->honest && arg & 1024)
        w->orphaned_bytes += kept_bytes;
}

static void do_limit(struct world *w, uint32_t arg)
{
    unsigned domain = arg % N_DOMAINS, name = arg / 4 % N_NAMES;
    enum broker_limit_source source = BROKER_LIMIT_ADMIN + arg / 16 % 3;
    uint64_t bytes = arg & 256 ? UINT64_MAX : w->config.total_bytes / 16 * (arg >> 9 & 15);
    bool known = instance_of(w, domain, name);
    int r;

    r = broker_set_limit(w->broker, domain_names[domain], instance_names[name], source, bytes);
    expect(w, r == (known || (source == BROKER_LIMIT_ADMIN && bytes != UINT64_MAX) ? 0 : BROKER_E_NOT_FOUND),
           "a limit is not taken");
}

static void do_delete(struct world *w, uint32_t arg)
{
    struct broker_instance *instance = instance_of(w, arg % N_DOMAINS, arg / 4 % N_NAMES);

    if (instance)
        expect(w,
               broker_instance_delete(w->broker, instance) ==
                   (list_is_empty(&instance->peers) ? 0 : BROKER_E_HAS_PEERS),
               "an instance is deleted with peers, or not without");
}

static void do_freeze(struct world *w, uint32_t arg)
{
    struct broker_instance *instance = instance_of(w, arg % N_DOMAINS, arg / 4 % N_NAMES);

    if (instance && arg % 7 == 0)
        broker_instance_freeze(w->broker, instance);
}

static void do_budget(struct world *w, uint32_t arg)
{
    w->config.budget_bytes = arg & 1 ? 0 : w->config.total_bytes / 16 * (1 + (arg >> 1 & 15));
    w->config.headroom_bytes = w->config.total_bytes / 64 * (arg >> 5 & 3);
    w->config.reserve_bytes = w->config.class_bytes[0] * (arg >> 7 & 15);
    broker_reconfigure(w->broker, &w->config, w->now_ns);
}

static void do_foreign(struct world *w, uint32_t arg)
{
    uint64_t bytes = (uint64_t)arg * 4096 % (w->config.total_bytes / 2);

    w->foreign_moved = true;
    w->foreign_bytes = u64_min(bytes, w->foreign_bytes + free_bytes(w));
}

static void do_lie(struct world *w, uint32_t arg)
{
    struct person *person = pick_person(w, arg);

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
        drive(w);
        settle(w);
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
    struct broker_totals before;

    if (w->honest && op >= _WORLD_N_HONEST)
        return w->failure;
    broker_totals(w->broker, &before);
    w->op = op;
    w->budget_before = before.budget_bytes;
    act(w, op, arg);
    settle(w);
    check_books(w, before.held_bytes, before.budget_bytes);
    return w->failure;
}

static bool all_answered(const struct world *w)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].request)
            return false;
    return true;
}

static void drive_all(struct world *w)
{
    while (w->n_work && !w->failure)
        world_step(w, WORLD_DRIVE, 7);
}

static bool is_clean(const struct world *w)
{
    if (w->foreign_moved || w->orphaned_bytes)
        return false;
    for (unsigned i = 0; i < PEERS; i++)
        if (w->people[i].lost || w->people[i].kept_bytes)
            return false;
    return true;
}

const char *world_quiesce(struct world *w)
{
    for (unsigned n = 0; !w->failure && !all_answered(w); n++) {
        expect(w, n < 2000, "somebody waits for ever");
        drive_all(w);
        for (unsigned i = 0; i < 4; i++)
            world_step(w, WORLD_SENT, i * 16);
        world_step(w, WORLD_PASS, 1);
    }
    drive_all(w);
    for (unsigned n = 0; !w->failure && is_clean(w) && broker_deadline(w->broker) != UINT64_MAX; n++) {
        expect(w, n < 2000, "an idle broker is awake");
        w->now_ns = u64_max(w->now_ns, broker_deadline(w->broker));
        broker_tick(w->broker, w->now_ns);
        settle(w);
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
    world_quiesce(w);
    broker_drain(w->broker, w->now_ns);
    settle(w);
    world_quiesce(w);
    expect(w, ours(w) == 0, "the device is not as it was");
    broker_totals(w->broker, &totals);
    expect(w, totals.held_bytes == totals.destroying_bytes, "something is held at the end");
    if (!w->foreign_moved)
        expect(w, totals.held_bytes == 0, "something is never confirmed");
    return w->failure;
}

struct world *world_new(uint64_t seed, bool honest)
{
    struct world *w = calloc(1, sizeof(*w));

    if (!w)
        abort();
    w->honest = honest;
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
        .creating_max = seed >> 7 & 1 ? 2 : 16,
        .idle_ns = seed >> 8 & 1 ? 3 * NSEC_PER_SEC : 60 * NSEC_PER_SEC,
        .look_ns = 250 * NSEC_PER_MSEC,
        .budget_rise_ns = NSEC_PER_SEC,
        .patience_ns = 5 * NSEC_PER_SEC,
    };
    /* A fixed budget that headroom and others leave room for, or even an honest driver refuses. */
    if (honest && w->config.budget_bytes > 400 * MIB)
        w->config.budget_bytes = 400 * MIB;
    w->foreign_bytes = seed >> 9 & 1 ? 37 * MIB : 0;
    if (broker_new(&w->config, free_bytes(w), w->now_ns, &w->broker) != 0)
        abort();
    return w;
}

struct world *world_free(struct world *w)
{
    w->broker = broker_free(w->broker);
    free(w);
    return NULL;
}
