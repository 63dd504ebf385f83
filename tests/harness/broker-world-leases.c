/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What people do with leases. A person has one region at most.
 */

#include "base/arith.h"
#include "broker-books.h"

static struct person *pick_lessee(struct world *w, uint32_t arg)
{
    for (unsigned i = 0; i < PEERS; i++) {
        struct person *person = &w->people[(arg + i) % PEERS];

        if (person->peer && person->lease) {
            world_note_act(w, person);
            return person;
        }
    }
    return NULL;
}

void world_do_open(struct world *w, uint32_t arg)
{
    struct person *person = NULL;
    uint32_t counts[BROKER_CLASSES_MAX] = {1 + (arg >> 8) % 3, (arg >> 10) % 2, (arg >> 11) % 2};
    int r;

    for (unsigned i = 0; i < PEERS && !person; i++)
        if (w->people[(arg + i) % PEERS].peer && !w->people[(arg + i) % PEERS].lease &&
            !w->people[(arg + i) % PEERS].controls)
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
            else if (alone && world_is_open(person) && person != errand->person)
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
           (!other->reserves || other->request->state == BROKER_REQUEST_UNDECIDED) &&
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

        if (person->peer && !person->lost && !person->controls &&
            person->peer->instance == lessee->peer->instance)
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
    if (!person || person->lost || (person->scribbled && world_is_open(person)))
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
