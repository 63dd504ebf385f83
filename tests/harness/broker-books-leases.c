/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The books of leases. A person's line is memory that both sides write; between two events only the person
 * does, so what has changed in it after one is the broker's doing.
 */

#include "base/arith.h"
#include "broker-books.h"

/* ---- What there is ---- */

bool world_is_open(const struct person *person)
{
    return person->peer && !person->lost && person->lease && !broker_lease_is_frozen(person->lease);
}

uint32_t world_issued(const struct person *person)
{
    struct lease word;

    if (!world_is_open(person))
        return 0;
    if (person->scribbled)
        return person->issued;
    word = lease_read(&person->line);
    return word.offered + word.claimed + person->spent;
}

static bool is_in(const struct person *person, const struct errand *errand)
{
    return !errand || (person->domain == errand->domain && person->name == errand->name);
}

/* What a scribbler has is everybody's as soon as somebody looks. */
static uint64_t offered_by(const struct world *w, const struct errand *scope_or_null,
                           const struct person *except)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < PEERS; i++) {
        const struct person *person = &w->people[i];

        if (!world_is_open(person) || !is_in(person, scope_or_null))
            continue;
        if (person->scribbled)
            bytes += person->issued * person->page_bytes;
        else if (person != except)
            bytes += lease_read(&person->line).offered * person->page_bytes;
    }
    return bytes;
}

/* What a scheduler's hint can be about is any's of its instance. */
static bool is_mate(const struct person *person, const struct person *other)
{
    return person && person->peer && !person->lost && person->domain == other->domain &&
           person->name == other->name;
}

static uint64_t hinted(const struct world *w, const struct person *person)
{
    uint64_t bytes = (uint64_t)person->spent * person->page_bytes;

    if (!world_is_open(person) || person->scribbled)
        return 0;
    for (uint32_t i = 0; i < w->n_rows; i++)
        if (w->rows[i].exists &&
            (person->schedules ? is_mate(w->rows[i].holder, person) : w->rows[i].holder == person))
            bytes += w->rows[i].bytes;
    if (person->line.cached_pages <= bytes / person->page_bytes)
        bytes = person->line.cached_pages * person->page_bytes;
    return bytes + lease_read(&person->line).claimed * person->page_bytes;
}

static uint64_t hoped_of(const struct world *w, const struct errand *scope_or_null, const struct person *but,
                         uint64_t since_step)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < PEERS; i++) {
        const struct person *person = &w->people[i];

        if (person != but && person->peer && !person->lost && person->listens && !person->peer->missed &&
            is_in(person, scope_or_null) && (person->noticed || person->asked_step < since_step))
            bytes += u64_max(hinted(w, person), person->noticed ? person->asked_bytes : 0);
    }
    return bytes;
}

bool world_is_charged(const struct errand *errand)
{
    enum broker_request_state state;

    if (!errand->request || errand->granted || errand->reserves)
        return false;
    state = errand->request->state;
    return state == BROKER_REQUEST_PARKED || state == BROKER_REQUEST_WAITING || state == BROKER_REQUEST_READY;
}

static uint64_t courtesies(const struct world *w, const struct errand *scope_or_null)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *errand = &w->errands[i];

        if (world_is_charged(errand) && errand->courtesy &&
            (!scope_or_null ||
             (errand->domain == scope_or_null->domain && errand->name == scope_or_null->name)))
            bytes += errand->bytes;
    }
    return bytes;
}

static bool somebody_waits_for(const struct world *w, const struct errand *scope, int error)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *errand = &w->errands[i];

        if (errand->request && !errand->granted && errand->request->state == BROKER_REQUEST_UNDECIDED &&
            errand->request->error == error &&
            (error == BROKER_E_BUDGET || (errand->domain == scope->domain && errand->name == scope->name)))
            return true;
    }
    return false;
}

/* ---- Judging requests ---- */

/* Of a new errand that lacks so much: can it be met by offers, or is it at least to be hoped for? */
static enum world_verdict weigh(const struct world *w, const struct errand *errand, uint64_t lacking,
                                int error)
{
    const struct errand *scope = error == BROKER_E_LIMIT ? errand : NULL;
    const struct person *self = errand->lessee ? errand->person : NULL;
    uint64_t offered = offered_by(w, scope, self);

    if (lacking == 0)
        return WORLD_FITS;
    if (somebody_waits_for(w, errand, error))
        return WORLD_HOPES;
    if (offered + hoped_of(w, scope, errand->person, UINT64_MAX) < lacking)
        return error == BROKER_E_LIMIT ? WORLD_OVER_LIMIT : WORLD_OVER_BUDGET;
    return offered >= lacking ? WORLD_MAY_FIT : WORLD_HOPES;
}

enum world_verdict world_judge(struct world *w, const struct errand *errand)
{
    struct broker_instance *instance = errand->person->peer->instance;
    struct usage u = world_usage(w);
    bool draws = !errand->reserves && !errand->courtesy;
    uint64_t reserved = draws ? world_reserved(w, errand->domain, errand->name) : 0;
    uint64_t bytes = errand->bytes - u64_min(reserved, errand->bytes);
    uint64_t used = u.bytes[errand->domain][errand->name] + bytes;
    uint64_t charged = world_charged(&u) + bytes;
    bool fits = used <= world_limit(instance) && world_lacks(w, errand, charged) == 0;
    enum world_verdict verdict;

    if (fits)
        return WORLD_FITS;
    if (errand->courtesy)
        return used > world_limit(instance) ? WORLD_OVER_LIMIT : WORLD_OVER_BUDGET;
    used -= courtesies(w, errand);
    charged -= courtesies(w, NULL);
    verdict = weigh(w, errand, u64_sub_floor(used, world_limit(instance)), BROKER_E_LIMIT);
    if (verdict == WORLD_FITS)
        return weigh(w, errand, world_lacks(w, errand, charged), BROKER_E_BUDGET);
    if (verdict == WORLD_MAY_FIT && world_lacks(w, errand, charged))
        return WORLD_UNSURE;
    return verdict;
}

void world_check_verdict(struct world *w, enum world_verdict verdict, int r)
{
    switch (verdict) {
    case WORLD_FITS:
    case WORLD_MAY_FIT:
    case WORLD_HOPES:
        world_expect(w, r == 0, "a request is refused though it fits, or others could make it fit");
        break;
    case WORLD_OVER_LIMIT:
        world_expect(w, r == BROKER_E_LIMIT, "a request is not judged by its limit");
        break;
    case WORLD_OVER_BUDGET:
        world_expect(w, r == BROKER_E_BUDGET, "a request is not judged by the budget");
        break;
    case WORLD_UNSURE:
        world_expect(w, r == 0 || r == BROKER_E_LIMIT || r == BROKER_E_BUDGET,
                     "a request is refused for an unknown reason");
        break;
    }
}

/* ---- After each event ---- */

/* What has come free in this event, perhaps after somebody was refused: offers that were withdrawn, and what
 * was promised to those who are refused for want of the driver's memory. */
static uint64_t came_free(const struct world *w, const struct errand *scope_or_null)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *errand = &w->errands[i];

        if (errand->request && errand->request->state == BROKER_REQUEST_REFUSED &&
            errand->request->error == BROKER_E_DRIVER)
            bytes += errand->bytes;
    }
    for (unsigned i = 0; i < PEERS; i++) {
        const struct person *person = &w->people[i];

        if (person->peer && person->lease && is_in(person, scope_or_null))
            bytes += u64_sub_floor(person->issued, world_issued(person)) * person->page_bytes;
    }
    return bytes;
}

/* Somebody may have more to give than before this event. */
static bool has_granted(const struct world *w)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].request && w->errands[i].fresh)
            return true;
    return false;
}

/* Of one that has waited for others, and is refused now. */
void world_check_hopeless(struct world *w, const struct errand *errand, int error)
{
    const struct errand *scope = error == BROKER_E_LIMIT ? errand : NULL;
    const struct person *self = errand->lessee ? errand->person : NULL;
    struct usage u = world_usage(w);
    uint64_t offered = offered_by(w, scope, self), lacking;

    /* What was issued since then has not been there to be withdrawn. */
    if (w->n_leased)
        return;
    lacking = error == BROKER_E_LIMIT ? u64_sub_floor(u.bytes[errand->domain][errand->name] + errand->bytes,
                                                      world_limit(errand->person->peer->instance))
                                      : world_lacks(w, errand, world_charged(&u) + errand->bytes);
    lacking += came_free(w, scope);
    world_expect(w, lacking > offered, "a request is refused though it fits with what is offered");
    if (w->now_ns - errand->since_ns < w->config.courtesy_ns && !has_granted(w))
        world_expect(w, lacking > offered + hoped_of(w, scope, errand->person, errand->step),
                     "a request is refused though others could have given back");
}

void world_check_leases(struct world *w)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[i];
        struct lease word = lease_read(&person->line);

        if (!person->peer || !person->lease)
            continue;
        if (!world_is_open(person)) {
            world_expect(w, person->lost || person->scribbled, "a lease is frozen though its word is right");
            world_expect(w, broker_lease_pages(person->lease) == 0, "a lease that is closed holds memory");
            person->issued = person->spent = 0;
            continue;
        }
        world_expect(w, broker_lease_pages(person->lease) == world_issued(person),
                     "what is issued is not what is offered, claimed and on its way");
        if (person->scribbled)
            continue;
        world_expect(w, word.claimed == person->seen.claimed, "a claim is withdrawn");
        world_expect(w, word.offered <= person->seen.offered + person->n_leased,
                     "more is offered than was asked for");
        person->issued = world_issued(person);
        person->seen = word;
        person->n_leased = 0;
    }
    w->n_leased = 0;
}

/* ---- Actions ---- */

void world_on_lease(struct world *w, struct errand *errand)
{
    struct person *person = errand->person;

    world_expect(w, errand->lessee && world_is_open(person) && !person->scribbled,
                 "something is leased to somebody who cannot have it");
    person->n_leased += errand->pages;
    w->n_leased++;
    w->leased_anew[errand->domain][errand->name] = true;
    broker_request_free(w->broker, errand->request);
    *errand = (struct errand){};
}

void world_on_notice(struct world *w, const struct broker_action *action)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[i];

        if (person->peer != action->peer)
            continue;
        world_expect(w, person->listens && !person->lost, "somebody is asked who doesn't listen");
        world_expect(w, !person->noticed, "somebody has two notices at once");
        world_expect(w, action->number == person->notice_number + 1, "a notice is lost");
        world_expect(w, action->bytes > 0 && action->deadline_ns > 0, "a notice asks for nothing");
        person->noticed = true;
        person->notice_number = action->number;
        person->asked_bytes = action->bytes;
        person->asked_step = w->step;
        return;
    }
    world_expect(w, false, "a notice goes to nobody");
}

void world_on_scribbled(struct world *w, const struct broker_action *action)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[i];

        if (person->peer != action->peer)
            continue;
        world_expect(w, person->scribbled && !person->reported,
                     "a scribble is reported twice, or of somebody honest");
        person->reported = true;
    }
}
