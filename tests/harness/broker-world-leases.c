/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What people do with leases, and the books of it. A person has one region at most. Its line is memory that
 * both sides write; between two events only the person does, so what has changed in it after one is the
 * broker's doing.
 */

#include "base/arith.h"
#include "broker-books.h"

/* ---- The books ---- */

static bool is_open(const struct person *person)
{
    return person->peer && !person->lost && person->lease && !broker_lease_is_frozen(person->lease);
}

uint32_t world_issued(const struct person *person)
{
    struct lease word;

    if (!is_open(person))
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
uint64_t world_offered(const struct world *w, const struct errand *scope_or_null, const struct person *except)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < PEERS; i++) {
        const struct person *person = &w->people[i];

        if (!is_open(person) || !is_in(person, scope_or_null))
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

    if (!is_open(person) || person->scribbled)
        return 0;
    for (uint32_t i = 0; i < w->n_rows; i++)
        if (w->rows[i].exists &&
            (person->schedules ? is_mate(w->rows[i].holder, person) : w->rows[i].holder == person))
            bytes += w->rows[i].bytes;
    if (person->line.cached_pages <= bytes / person->page_bytes)
        bytes = person->line.cached_pages * person->page_bytes;
    return bytes + lease_read(&person->line).claimed * person->page_bytes;
}

uint64_t world_hope(const struct world *w, const struct errand *scope_or_null, const struct person *but,
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

    if (!errand->request || errand->granted)
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

/* Of a new errand that lacks so much: can it be met by offers, or is it at least to be hoped for? */
static enum world_verdict weigh(const struct world *w, const struct errand *errand, uint64_t lacking,
                                int error)
{
    const struct errand *scope = error == BROKER_E_LIMIT ? errand : NULL;
    const struct person *self = errand->lessee ? errand->person : NULL;
    uint64_t offered = world_offered(w, scope, self);

    if (lacking == 0)
        return WORLD_FITS;
    if (somebody_waits_for(w, errand, error))
        return WORLD_HOPES;
    if (offered + world_hope(w, scope, errand->person, UINT64_MAX) < lacking)
        return error == BROKER_E_LIMIT ? WORLD_OVER_LIMIT : WORLD_OVER_BUDGET;
    return offered >= lacking ? WORLD_MAY_FIT : WORLD_HOPES;
}

enum world_verdict world_judge(struct world *w, const struct errand *errand)
{
    struct broker_instance *instance = errand->person->peer->instance;
    struct usage u = world_usage(w);
    uint64_t used = u.bytes[errand->domain][errand->name] + errand->bytes;
    uint64_t charged = world_charged(&u) + errand->bytes;
    bool fits = used <= world_limit(instance) && charged <= world_budget(w);
    enum world_verdict verdict;

    if (fits)
        return WORLD_FITS;
    if (errand->courtesy)
        return used > world_limit(instance) ? WORLD_OVER_LIMIT : WORLD_OVER_BUDGET;
    used -= courtesies(w, errand);
    charged -= courtesies(w, NULL);
    verdict = weigh(w, errand, u64_sub_floor(used, world_limit(instance)), BROKER_E_LIMIT);
    if (verdict == WORLD_FITS)
        return weigh(w, errand, u64_sub_floor(charged, world_budget(w)), BROKER_E_BUDGET);
    if (verdict == WORLD_MAY_FIT && charged > world_budget(w))
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
    uint64_t offered = world_offered(w, scope, self), lacking;

    /* What was issued since then has not been there to be withdrawn. */
    if (w->n_leased)
        return;
    lacking = error == BROKER_E_LIMIT ? u64_sub_floor(u.bytes[errand->domain][errand->name] + errand->bytes,
                                                      world_limit(errand->person->peer->instance))
                                      : u64_sub_floor(world_charged(&u) + errand->bytes, world_budget(w));
    lacking += came_free(w, scope);
    world_expect(w, lacking > offered, "a request is refused though it fits with what is offered");
    if (w->now_ns - errand->since_ns < w->config.courtesy_ns && !has_granted(w))
        world_expect(w, lacking > offered + world_hope(w, scope, errand->person, errand->step),
                     "a request is refused though others could have given back");
}

void world_check_leases(struct world *w)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[i];
        struct lease word = lease_read(&person->line);

        if (!person->peer || !person->lease)
            continue;
        if (!is_open(person)) {
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

    world_expect(w, errand->lessee && is_open(person) && !person->scribbled,
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

/* ---- What people do ---- */

static struct person *pick_lessee(struct world *w, uint32_t arg)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[(arg + i) % PEERS];

        if (person->peer && person->lease)
            return person;
    }
    return NULL;
}

void world_do_open(struct world *w, uint32_t arg)
{
    struct person *person = NULL;
    uint32_t counts[BROKER_CLASSES_MAX] = {1 + (arg >> 8) % 3, (arg >> 10) % 2, (arg >> 11) % 2};
    int r;

    for (unsigned i = 0; i < PEERS && !person; i++)
        if (w->people[(arg + i) % PEERS].peer && !w->people[(arg + i) % PEERS].lease)
            person = &w->people[(arg + i) % PEERS];
    if (!person)
        return;
    person->line = (struct lease_line){};
    person->seen = (struct lease){};
    person->issued = person->spent = person->n_leased = 0;
    person->scribbled = person->reported = false;
    person->page_bytes = person->page_extents = 0;
    for (unsigned i = 0; i < w->config.n_classes; i++) {
        person->page_counts[i] = counts[i];
        person->page_extents += counts[i];
        person->page_bytes += counts[i] * w->config.class_bytes[i];
    }
    r = broker_lease_new(w->broker, person->peer, person->page_counts, &person->line, &person->lease);
    world_expect(w, r == (person->lost ? BROKER_E_INVALID : 0), "a lease is not opened");
}

void world_do_close(struct world *w, uint32_t arg)
{
    struct person *person = pick_lessee(w, arg);

    if (!person)
        return;
    person->lease = broker_lease_free(w->broker, person->lease);
}

static uint64_t half(uint64_t n)
{
    return (n + 1) / 2;
}

/* How many descriptors too many the leases of the errand's instance would have, when all offers and
 * courtesies are withdrawn or none. */
static uint64_t descriptors_over(const struct world *w, const struct errand *errand, uint32_t n, bool alone)
{
    uint64_t own = n, mates = 0, others = 0;

    for (unsigned i = 0; i < PEERS + REQUESTS; i++) {
        const struct person *person = i < PEERS ? &w->people[i] : NULL;
        const struct errand *other = i < PEERS ? NULL : &w->errands[i - PEERS];
        unsigned domain = person ? person->domain : other->domain;
        unsigned name = person ? person->name : other->name;
        uint64_t set_aside = 0;

        if (person) {
            set_aside = world_issued(person);
            if (alone && person->scribbled)
                set_aside = 0;
            else if (alone && is_open(person) && person != errand->person)
                set_aside -= lease_read(&person->line).offered;
            set_aside *= person->page_extents;
        } else if (other->lessee && world_is_charged(other) && !(alone && other->courtesy)) {
            set_aside = other->request->n_extents;
        }
        if (domain != errand->domain)
            others += set_aside;
        else if (name != errand->name)
            mates += set_aside;
        else
            own += set_aside;
    }
    return u64_sub_floor(own, half(u64_sub_floor(half(u64_sub_floor(w->config.lease_max, others)), mates)));
}

/* One that waits, but for room in another's limit. */
static bool is_in_the_way(const struct errand *other, const struct errand *errand)
{
    bool same = other->domain == errand->domain && other->name == errand->name;

    return other->request && !other->granted && !other->courtesy &&
           (same || other->request->state != BROKER_REQUEST_UNDECIDED ||
            other->request->error != BROKER_E_LIMIT);
}

/* Reading the word may find it scribbled over. */
static int expected_of_lease(const struct world *w, const struct person *person, const struct errand *errand,
                             uint32_t n)
{
    if (person->lost)
        return BROKER_E_NOT_LEASED;
    if (n == 0 || n > w->config.warm_max)
        return BROKER_E_INVALID;
    if (person->peer->instance->frozen)
        return BROKER_E_FROZEN;
    for (unsigned i = 0; i < REQUESTS && errand->courtesy; i++)
        if (is_in_the_way(&w->errands[i], errand))
            return BROKER_E_BUDGET;
    if (person->scribbled)
        return BROKER_E_NOT_LEASED;
    return descriptors_over(w, errand, n, !errand->courtesy) ? BROKER_E_DESCRIPTORS : 0;
}

void world_do_ask(struct world *w, uint32_t arg)
{
    struct person *person = pick_lessee(w, arg);
    struct errand *errand = world_spare_errand(w);
    uint32_t pages = (arg >> 8) % 6, n;
    enum world_verdict verdict;
    bool instant, fits;
    int r, should;

    if (!person || !errand)
        return;
    world_begin_errand(w, errand, person);
    errand->lessee = true;
    errand->courtesy = arg & 4096;
    errand->pages = pages;
    for (unsigned i = 0; i < w->config.n_classes; i++)
        errand->counts[i] = pages * person->page_counts[i];
    errand->bytes = pages * person->page_bytes;
    n = pages * person->page_extents;
    should = expected_of_lease(w, person, errand, n);
    verdict =
        should == 0 && descriptors_over(w, errand, n, false) == 0 ? world_judge(w, errand) : WORLD_UNSURE;
    fits = verdict == WORLD_FITS && should == 0;
    instant = fits && world_is_at_hand(w, person->domain, errand->counts);
    r = broker_lease_ask(w->broker, person->lease, pages, errand->courtesy, w->now_ns, &errand->request);
    if (should == 0)
        world_check_verdict(w, verdict, r);
    else
        world_expect(w, r == should, "a lease is not refused as it should be");
    world_settle(w);
    if (instant)
        world_expect(w, !errand->request, "a lease waits though all is warm");
}

static void after_client(struct person *person)
{
    person->seen = lease_read(&person->line);
}

void world_do_claim(struct world *w, uint32_t arg)
{
    struct person *person = pick_lessee(w, arg);

    if (!person || person->scribbled)
        return;
    if (arg & 256)
        lease_claim(&person->line, 1 + (arg >> 9) % 8);
    else
        lease_unclaim(&person->line, 1 + (arg >> 9) % 8);
    after_client(person);
}

static struct person *pick_holder(struct world *w, struct person *lessee, uint32_t arg)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[(arg + i) % PEERS];

        if (person->peer && !person->lost && person->peer->instance == lessee->peer->instance)
            return person;
    }
    return lessee;
}

static int expected_of_take(const struct person *person, const struct person *holder, uint32_t pages)
{
    if (person->lost)
        return BROKER_E_NOT_LEASED;
    if (pages == 0 || holder->lost)
        return BROKER_E_INVALID;
    if (holder->peer->instance->frozen)
        return BROKER_E_FROZEN;
    return person->scribbled || pages > person->spent ? BROKER_E_NOT_LEASED : 0;
}

/* Spends claims and takes their memory, or takes more than was spent. What was claimed is never refused. */
void world_do_spend(struct world *w, uint32_t arg)
{
    struct person *person = pick_lessee(w, arg);
    struct errand *errand = world_spare_errand(w);
    struct person *holder;
    uint32_t n = (arg >> 8) % 4, pages;
    int r;

    if (!person || !errand)
        return;
    if (!person->lost && !person->scribbled && lease_spend(&person->line, n)) {
        person->spent += n;
        after_client(person);
    }
    if (arg >> 12 & 1)
        return;
    pages = person->spent + (arg >> 13 & 15 ? 0 : 1);
    holder = arg >> 17 & 1 ? pick_holder(w, person, arg >> 4) : person;
    world_begin_errand(w, errand, holder);
    errand->lessor = person;
    errand->pages = pages;
    for (unsigned i = 0; i < w->config.n_classes; i++)
        errand->counts[i] = pages * person->page_counts[i];
    errand->bytes = pages * person->page_bytes;
    r = broker_lease_take(w->broker, person->lease, holder->peer, pages, w->now_ns, &errand->request);
    world_expect(w, r == expected_of_take(person, holder, pages), "a lease hands over what it should not");
    if (r == 0)
        person->spent -= pages;
    world_settle(w);
    if (r == 0)
        world_expect(w, errand->granted, "a claim is not met at once");
}

void world_do_hint(struct world *w, uint32_t arg)
{
    struct person *person = pick_lessee(w, arg);
    uint64_t ids[64], bytes = 0;
    unsigned n;

    if (!person)
        return;
    n = world_collect(w, person, ids, ARRAY_SIZE(ids));
    for (unsigned i = 0; i < n; i++)
        bytes += w->rows[(uint32_t)ids[i]].bytes;
    person->line.cached_pages = bytes / person->page_bytes;
    person->line.pinned_pages = arg >> 8 & 7;
    if (w->kind == WORLD_HONEST)
        return;
    person->line.cached_pages = arg & 4096 ? arg >> 13 : (arg & 8192 ? UINT64_MAX : 0);
    person->line.pinned_pages = arg & 2048 ? UINT64_MAX : 0;
}

static void give_all(struct world *w, struct person *person)
{
    uint64_t ids[64];
    unsigned n = world_collect(w, person, ids, ARRAY_SIZE(ids));

    if (person->lease && !person->scribbled) {
        lease_unclaim(&person->line, UINT32_MAX);
        person->line.cached_pages = 0;
        after_client(person);
    }
    for (unsigned i = 0; i < n; i++)
        world_give(w, person, ids[i]);
    if (n)
        world_expect(w, broker_return(w->broker, person->peer, ids, n, w->now_ns) == 0,
                     "what is held cannot be returned");
    world_settle(w);
}

void world_do_ack(struct world *w, uint32_t arg)
{
    struct person *person = NULL;

    for (unsigned i = 0; i < PEERS && !person; i++)
        if (w->people[(arg + i) % PEERS].peer && w->people[(arg + i) % PEERS].noticed)
            person = &w->people[(arg + i) % PEERS];
    if (!person || person->lost)
        return;
    if (arg & 256) {
        broker_notice_acked(w->broker, person->peer, person->notice_number + 1, w->now_ns);
        world_expect(w, person->peer->noticed, "a notice is acknowledged that was never sent");
    }
    if (w->kind == WORLD_HONEST || arg & 512)
        give_all(w, person);
    person->noticed = false;
    broker_notice_acked(w->broker, person->peer, person->notice_number, w->now_ns);
}

void world_do_scribble(struct world *w, uint32_t arg)
{
    struct person *person = pick_lessee(w, arg);
    struct lease word = {.offered = arg >> 8 & 7, .claimed = arg >> 11 & 7};

    /* One that waits to be noticed stays what it is. */
    if (!person || person->lost || (person->scribbled && is_open(person)))
        return;
    if ((arg >> 14 & 7) == 0)
        word = (struct lease){.offered = UINT32_MAX, .claimed = UINT32_MAX};
    if (!person->scribbled && word.offered + (uint64_t)word.claimed <= person->issued)
        person->spent = person->issued - word.offered - word.claimed;
    else
        person->scribbled = true;
    person->line.word = lease_pack(word);
    after_client(person);
}
