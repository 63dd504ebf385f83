/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The books are kept the simple way: a row per extent, peer and request, and every sum made anew when it is
 * wanted. The broker is asked only for what cannot be known from outside: how much of what is destroyed it
 * has not seen confirmed.
 */

#include "broker-books.h"

#include <string.h>

#include "base/arith.h"

const char *const world_domain_names[N_DOMAINS] = {"uid:1000", "uid:1001", "tenant"};
const char *const world_instance_names[N_NAMES] = {"a", "b", "c"};

void world_expect(struct world *w, bool condition, const char *sentence)
{
    if (!condition && !w->failure)
        w->failure = sentence;
}

/* ---- The device ---- */

uint64_t world_ours(const struct world *w)
{
    uint64_t bytes = w->orphaned_bytes;

    for (uint32_t i = 0; i < w->n_rows; i++)
        bytes += w->rows[i].exists ? w->rows[i].bytes : 0;
    for (unsigned i = 0; i < PEERS; i++)
        bytes += w->people[i].kept_bytes;
    return bytes;
}

uint64_t world_free_bytes(const struct world *w)
{
    return w->config.total_bytes - w->foreign_bytes - world_loaded(w) - world_ours(w);
}

static void drive_create(struct world *w, const struct broker_action *action)
{
    struct row *row = &w->rows[(uint32_t)action->extent];
    uint64_t bytes = w->config.class_bytes[action->class_index];
    bool ok = !w->fail_creates && bytes <= world_free_bytes(w);

    world_expect(w, !row->exists, "an extent is created twice");
    world_expect(w, row->id != action->extent, "an extent's id comes again");
    if (!w->foreign_moved)
        world_expect(w, world_free_bytes(w) >= bytes + w->config.headroom_bytes,
                     "a create touches the headroom");
    *row =
        (struct row){.id = action->extent, .bytes = bytes, .class_index = action->class_index, .exists = ok};
    w->n_rows = w->n_rows > (uint32_t)action->extent ? w->n_rows : (uint32_t)action->extent + 1;
    broker_created(w->broker, action->extent, ok, w->now_ns);
}

static void drive_export(struct world *w, const struct broker_action *action)
{
    struct row *row = &w->rows[(uint32_t)action->extent];

    world_expect(w, row->exists && row->id == action->extent && !row->holder && !row->warm,
                 "an extent is exported that cannot be");
    row->warm = !w->fail_exports;
    broker_exported(w->broker, action->extent, row->warm, w->now_ns);
}

static void drive_destroy(struct world *w, const struct broker_action *action)
{
    struct row *row = &w->rows[(uint32_t)action->extent];
    uint64_t before = world_free_bytes(w), after;
    bool reads = action->extent % 2;

    world_expect(w, row->exists && row->id == action->extent && row->doomed,
                 "an extent is destroyed that cannot be");
    row->exists = false;
    for (unsigned i = 0; i < PEERS; i++)
        if (w->people[i].peer && w->people[i].lies && (row->domains & 1u << w->people[i].domain)) {
            w->people[i].kept_bytes += row->bytes;
            break;
        }
    after = world_free_bytes(w);
    broker_destroyed(w->broker, action->extent, reads && after > before ? after - before : 0, w->now_ns);
}

void world_drive(struct world *w)
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
        broker_look(w->broker, world_free_bytes(w), w->now_ns);
        world_on_looked(w);
        break;
    }
}

/* ---- The books ---- */

struct broker_instance *world_instance(struct world *w, unsigned domain, unsigned name)
{
    return broker_instance_find(w->broker, world_domain_names[domain], world_instance_names[name]);
}

struct usage world_usage(struct world *w)
{
    struct usage usage = {};

    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *errand = &w->errands[i];

        if (world_is_charged(errand))
            usage.bytes[errand->domain][errand->name] += errand->bytes;
    }
    for (unsigned i = 0; i < PEERS; i++) {
        const struct person *person = &w->people[i];

        usage.bytes[person->domain][person->name] += world_issued(person) * person->page_bytes;
    }
    for (uint32_t i = 0; i < w->n_rows; i++) {
        const struct person *holder = w->rows[i].exists ? w->rows[i].holder : NULL;

        if (holder)
            usage.bytes[holder->domain][holder->name] += w->rows[i].bytes;
    }
    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++) {
            const struct broker_instance *instance = world_instance(w, domain, name);

            if (instance)
                usage.bytes[domain][name] +=
                    instance->account.bytes[LEDGER_DESTROYING] + instance->account.bytes[LEDGER_RESERVED];
        }
    return usage;
}

uint64_t world_charged(const struct usage *usage)
{
    uint64_t bytes = 0;

    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++)
            bytes += usage->bytes[domain][name];
    return bytes;
}

uint64_t world_limit(const struct broker_instance *instance)
{
    for (unsigned source = BROKER_LIMIT_ADMIN; source < BROKER_LIMIT_BUDGET; source++)
        if (instance->has_limit[source])
            return instance->limit_of[source];
    return UINT64_MAX;
}

uint64_t world_budget(const struct world *w)
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
    world_expect(w, false, "an action names a request that nobody made");
    return NULL;
}

unsigned world_n_waiting(const struct world *w)
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

    world_expect(w, row->id == id && row->exists, "an extent is granted that doesn't exist");
    world_expect(w, row->warm, "an extent is granted without a descriptor");
    world_expect(w, !row->doomed, "an extent is granted that is to be destroyed");
    world_expect(w, !row->holder, "an extent is granted twice");
    world_expect(w, !row->was_lost, "an extent of a lost peer is granted");
    world_expect(w, (row->domains & ~(1u << errand->domain)) == 0, "an extent crosses trust domains");
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
    world_expect(w, !errand->granted && request->granted, "a request is granted twice");
    errand->granted = errand->fresh = true;
    for (uint32_t i = 0; i < request->n_extents; i++)
        check_handed(w, errand, request->extents[i], counts);
    world_expect(w, memcmp(counts, errand->counts, sizeof(counts)) == 0,
                 "what is granted is not what was asked for");
}

static void on_refuse(struct world *w, struct broker_request *request, int error)
{
    struct errand *errand = errand_of(w, request);

    if (!errand)
        return;
    world_expect(w, !errand->granted, "a request is refused after it was granted");
    /* One that is new may have stood behind others, and be judged in the same event. */
    errand->undecided |= !errand->courtesy && errand->step == w->step;
    if (errand->undecided && (error == BROKER_E_LIMIT || error == BROKER_E_BUDGET))
        world_check_hopeless(w, errand, error);
    switch (error) {
    case BROKER_E_NOT_LEASED:
        world_expect(w, errand->lessee && (w->op == WORLD_CLOSE || errand->person->scribbled),
                     "a lease is closed for no reason");
        break;
    case BROKER_E_DESCRIPTORS:
        world_expect(w, errand->lessee && errand->undecided, "a lease is refused that was admitted");
        break;
    case BROKER_E_LIMIT:
        world_expect(w, w->op == WORLD_LIMIT || errand->undecided,
                     "a request is refused for a limit that has not changed");
        break;
    case BROKER_E_BUDGET:
        world_expect(w,
                     world_budget(w) < w->budget_before || errand->undecided || errand->courtesy ||
                         errand->foreign_bytes,
                     "a request is refused for a budget that has not fallen");
        break;
    case BROKER_E_FROZEN:
        world_expect(w, w->op == WORLD_FREEZE, "a request is refused for no reason");
        break;
    case BROKER_E_DRIVER:
        /* What was loaded and stays is no part of a fixed budget. */
        world_expect(w, w->kind != WORLD_HONEST || (w->config.budget_bytes && world_loaded(w)),
                     "a request is refused though the driver never failed");
        world_expect(w, w->now_ns - errand->since_ns >= w->config.patience_ns,
                     "a request is refused too early");
        break;
    default:
        world_expect(w, false, "a request is refused for an unknown reason");
        break;
    }
    *errand = (struct errand){};
    broker_request_free(w->broker, request);
}

static void on_driver_action(struct world *w, const struct broker_action *action)
{
    uint32_t index = (uint32_t)action->extent;

    if (index >= SLOTS || w->n_work == WORK) {
        world_expect(w, false, "the world is too small");
        return;
    }
    if (action->type == BROKER_ACTION_DESTROY) {
        struct row *row = &w->rows[index];

        world_expect(w, row->id == action->extent && row->exists && !row->doomed,
                     "an extent is destroyed twice");
        world_expect(w, !row->holder, "an extent is destroyed while it is held");
        row->doomed = true;
    }
    w->n_looks += action->type == BROKER_ACTION_LOOK;
    w->work[(w->work_first + w->n_work++) % WORK] = *action;
}

static void on_action(struct world *w, const struct broker_action *action)
{
    struct errand *errand;

    switch (action->type) {
    case BROKER_ACTION_GRANT:
        w->n_answers++;
        on_grant(w, action->request);
        break;
    case BROKER_ACTION_LEASE:
        w->n_answers++;
        errand = errand_of(w, action->request);
        if (errand)
            world_on_lease(w, errand);
        break;
    case BROKER_ACTION_RESERVED:
        w->n_answers++;
        errand = errand_of(w, action->request);
        if (errand)
            world_on_reserved(w, errand);
        break;
    case BROKER_ACTION_NOTICE:
        world_on_notice(w, action);
        break;
    case BROKER_ACTION_SCRIBBLED:
        world_on_scribbled(w, action);
        break;
    case BROKER_ACTION_REFUSE:
        w->n_answers++;
        on_refuse(w, action->request, action->error);
        break;
    case BROKER_ACTION_FORGET:
        world_expect(w, list_is_empty(&action->instance->peers) && broker_used(action->instance) == 0,
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

void world_check(struct world *w, uint64_t held_before, uint64_t budget_before)
{
    struct usage u = world_usage(w);
    struct broker_totals totals;
    uint64_t given = 0;

    broker_totals(w->broker, &totals);
    for (uint32_t i = 0; i < w->n_rows; i++)
        given += w->rows[i].exists ? w->rows[i].bytes : 0;
    world_expect(w, totals.held_bytes - totals.creating_bytes >= given,
                 "the driver gave more than the ledger knows");
    if (!w->foreign_moved)
        world_expect(w, totals.held_bytes - totals.creating_bytes >= world_ours(w),
                     "bytes are free that somebody still holds");
    if (held_before >= u64_max(budget_before, totals.budget_bytes))
        world_expect(w, totals.held_bytes <= held_before, "more is held though the budget is exceeded");
    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++) {
            const struct broker_instance *instance = world_instance(w, domain, name);

            if (instance)
                world_expect(w, broker_used(instance) == u.bytes[domain][name],
                             "an instance is charged something else");
        }
}

/* Whether one that came in the event in which the other was admitted was judged before it cannot be seen. */
static bool is_ordered(const struct errand *a, const struct errand *b)
{
    return a->step != b->placed_step && b->step != a->placed_step;
}

static void check_order(struct world *w, const struct errand *errand)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *other = &w->errands[i];

        if (other->request && !other->granted && other->domain == errand->domain && !other->courtesy &&
            !other->undecided && other->request->state != BROKER_REQUEST_UNDECIDED)
            world_expect(w,
                         other->serial > errand->serial || !same_classes(other, errand) ||
                             !is_ordered(other, errand),
                         "a request is passed by a later one");
    }
}

/* Refusals of the same event count too, so this comes after the last of its actions. */
static void check_fresh_grants(struct world *w)
{
    struct usage u = world_usage(w);

    for (unsigned i = 0; i < REQUESTS; i++) {
        struct errand *errand = &w->errands[i];

        if (!errand->request || !errand->fresh)
            continue;
        errand->fresh = false;
        /* What comes out of a lease was promised before, and passes everybody. */
        if (errand->lessor)
            continue;
        world_expect(w,
                     u.bytes[errand->domain][errand->name] <=
                         world_limit(world_instance(w, errand->domain, errand->name)),
                     "a grant exceeds the limit");
        world_expect(w, world_charged(&u) <= world_budget(w), "a grant exceeds the budget");
        if (!errand->undecided)
            check_order(w, errand);
    }
    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++) {
            if (!w->leased_anew[domain][name])
                continue;
            w->leased_anew[domain][name] = false;
            world_expect(w, u.bytes[domain][name] <= world_limit(world_instance(w, domain, name)),
                         "a lease exceeds the limit");
            world_expect(w, world_charged(&u) <= world_budget(w), "a lease exceeds the budget");
        }
}

/* Who was undecided stands behind all who are admitted by then, the oldest first. */
static void renew_places(struct world *w)
{
    struct errand *next;
    uint64_t end = w->serial;

    do {
        next = NULL;
        for (unsigned i = 0; i < REQUESTS; i++) {
            struct errand *errand = &w->errands[i];

            if (errand->request && errand->undecided && errand->serial <= end &&
                (errand->granted || errand->request->state != BROKER_REQUEST_UNDECIDED) &&
                (!next || errand->serial < next->serial))
                next = errand;
        }
        if (next) {
            next->serial = ++w->serial;
            next->placed_step = w->step;
            next->undecided = false;
        }
    } while (next);
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].request && !w->errands[i].granted)
            w->errands[i].undecided = w->errands[i].request->state == BROKER_REQUEST_UNDECIDED;
}

void world_settle(struct world *w)
{
    struct broker_action action;
    const char *failure;

    while (!w->failure && broker_next_action(w->broker, &action))
        on_action(w, &action);
    failure = broker_check(w->broker);
    world_expect(w, !failure, failure);
    check_fresh_grants(w);
    world_check_leases(w);
    world_check_hopes(w);
    renew_places(w);
}
