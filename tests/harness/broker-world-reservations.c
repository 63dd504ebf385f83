/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What people do with reservations. What they said that they will take of the driver's memory, they may take
 * at any time while it is held; they may keep it longer.
 */

#include "base/arith.h"
#include "broker-books.h"

static struct errand *pick_held(struct world *w, uint32_t arg)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        struct errand *errand = &w->errands[(arg + i) % REQUESTS];

        if (errand->request && errand->reserves && errand->granted) {
            w->acted[errand->domain][errand->name] = true;
            return errand;
        }
    }
    return NULL;
}

static bool has_reservation(const struct world *w, const struct person *person)
{
    for (unsigned i = 0; i < REQUESTS; i++)
        if (w->errands[i].request && w->errands[i].reserves && w->errands[i].person == person)
            return true;
    return false;
}

static bool somebody_is_undecided(const struct world *w, const struct person *person)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *errand = &w->errands[i];

        if (errand->request && errand->undecided && errand->domain == person->domain &&
            errand->name == person->name)
            return true;
    }
    return false;
}

void world_do_reserve(struct world *w, uint32_t arg)
{
    struct person *person = world_pick_person(w, arg);
    struct errand *errand = world_spare_errand(w);
    enum world_verdict verdict;
    uint64_t reserved;
    bool alone;
    int r, should;

    if (!person || !errand)
        return;
    should = has_reservation(w, person) ? BROKER_E_INVALID : world_expected(w, person, 1);
    reserved = world_reserved(w, person->domain, person->name);
    alone = !somebody_is_undecided(w, person);
    world_begin_errand(w, errand, person);
    errand->reserves = true;
    errand->bytes = (arg >> 8 & 15) * 5 * MIB;
    errand->foreign_bytes = arg >> 12 & 3 ? (arg >> 14 & 31) * 7 * MIB : 0;
    if (errand->bytes == 0 && errand->foreign_bytes == 0)
        should = BROKER_E_INVALID;
    verdict = should == 0 ? world_judge(w, errand) : WORLD_UNSURE;
    r = broker_reserve(w->broker, person->peer, errand->bytes, errand->foreign_bytes, w->now_ns,
                       &errand->request);
    if (should == 0)
        world_check_verdict(w, verdict, r);
    else
        world_expect(w, r == should, "a reservation is not refused as it should be");
    if (verdict == WORLD_FITS && alone && r == 0)
        world_expect(w, world_reserved(w, person->domain, person->name) == reserved + errand->bytes,
                     "something else is reserved than was asked for");
    world_settle(w);
    if (verdict == WORLD_FITS && r == 0 && errand->foreign_bytes == 0)
        world_expect(w, errand->granted, "a reservation waits for nothing");
}

static void release(struct world *w, struct errand *errand)
{
    world_end_hope(w, errand);
    broker_request_free(w->broker, errand->request);
    *errand = (struct errand){};
}

void world_do_release(struct world *w, uint32_t arg)
{
    struct errand *errand = pick_held(w, arg);

    if (errand)
        release(w, errand);
}

void world_release_all(struct world *w)
{
    struct errand *errand;

    while ((errand = pick_held(w, 0)))
        release(w, errand);
    w->stray_bytes = 0;
}

/* What comes free and what goes between two looks hide each other, which delays proofs: not in an honest
 * world, where nobody accepted is ever refused. */
static bool is_quiet(struct world *w)
{
    struct broker_totals totals;

    world_drive_all(w);
    broker_totals(w->broker, &totals);
    return totals.destroying_bytes == 0;
}

static void look_at_once(struct world *w)
{
    broker_look(w->broker, world_free_bytes(w), w->now_ns);
    world_on_looked(w);
    world_settle(w);
}

void world_do_load(struct world *w, uint32_t arg)
{
    struct errand *errand = pick_held(w, arg);
    uint64_t bytes;

    if (!errand || !errand->held || (w->kind == WORLD_HONEST && !is_quiet(w)) || !errand->held)
        return;
    bytes = world_outstanding(errand);
    bytes = arg & 256 ? bytes : bytes / 16 * (arg >> 9 & 15);
    if (!w->foreign_moved)
        world_expect(w, bytes <= world_free_bytes(w),
                     "what was promised of the driver's memory is not there");
    errand->loaded_bytes += u64_min(bytes, world_free_bytes(w));
    if (w->kind == WORLD_HONEST)
        look_at_once(w);
}

/* Free memory that rises may pass for what is on its way out, so nothing is. */
void world_do_unload(struct world *w, uint32_t arg)
{
    struct errand *errand = pick_held(w, arg);
    uint64_t bytes;

    if (!is_quiet(w))
        return;
    if (errand && errand->held && arg & 256) {
        bytes = errand->loaded_bytes / 16 * (arg >> 9 & 15);
        errand->loaded_bytes -= bytes;
        errand->unseen_bytes += bytes;
    } else {
        w->stray_bytes -= w->stray_bytes / 16 * (arg >> 9 & 15);
    }
    look_at_once(w);
}
