/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The books of reservations. What is reserved of the budget the broker is asked for, and who did nothing must
 * find it unchanged. What is expected of others is kept here: what the broker has seen of foreign memory is
 * laid to those who are held, and what they have really loaded is never more than that leaves them.
 */

#include "base/arith.h"
#include "broker-books.h"

uint64_t world_loaded(const struct world *w)
{
    uint64_t bytes = w->stray_bytes;

    for (unsigned i = 0; i < REQUESTS; i++)
        bytes += w->errands[i].loaded_bytes;
    return bytes;
}

uint64_t world_reserved(struct world *w, unsigned domain, unsigned name)
{
    const struct broker_instance *instance = world_instance(w, domain, name);

    return instance ? instance->account.bytes[LEDGER_RESERVED] : 0;
}

/* ---- What is expected ---- */

static bool is_prepared(const struct errand *errand)
{
    return errand->request && errand->reserves && !errand->granted &&
           (errand->request->state == BROKER_REQUEST_PREPARING ||
            errand->request->state == BROKER_REQUEST_READY);
}

static uint64_t expected(const struct world *w)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < REQUESTS; i++) {
        bytes += w->hopes[i].held ? w->hopes[i].left : 0;
        bytes += is_prepared(&w->errands[i]) ? w->errands[i].foreign_bytes : 0;
    }
    return bytes;
}

bool world_expects(const struct world *w)
{
    return expected(w) > 0;
}

uint64_t world_outstanding(const struct errand *errand)
{
    return errand->foreign_bytes - errand->loaded_bytes - errand->unseen_bytes;
}

/* What is still to be taken, whatever the broker has seen of it. */
static uint64_t outstanding(const struct world *w)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *errand = &w->errands[i];

        if (errand->request && (errand->held || is_prepared(errand)))
            bytes += world_outstanding(errand);
    }
    return bytes;
}

static struct hope *next_held(struct world *w, uint64_t after)
{
    struct hope *next = NULL;

    for (unsigned i = 0; i < REQUESTS; i++) {
        struct hope *hope = &w->hopes[i];

        if (hope->held > after && (!next || hope->held < next->held))
            next = hope;
    }
    return next;
}

/* In the order in which they came to be held. Returns what belongs to nobody. */
static uint64_t share_out(struct world *w)
{
    uint64_t rest = w->growth, after = 0;
    struct hope *hope;

    while ((hope = next_held(w, after))) {
        uint64_t part = u64_min(rest, hope->bytes);

        after = hope->held;
        hope->left = hope->bytes - part;
        rest -= part;
    }
    return rest;
}

static void see(struct world *w)
{
    struct broker_totals totals;

    broker_totals(w->broker, &totals);
    w->growth = u64_sub_floor(w->growth + totals.foreign_bytes, w->foreign_seen);
    w->foreign_seen = totals.foreign_bytes;
}

void world_on_looked(struct world *w)
{
    see(w);
    for (unsigned i = 0; i < REQUESTS; i++) {
        struct hope *hope = &w->hopes[i];

        if (!hope->held || !hope->end || hope->end > w->n_looks)
            continue;
        w->growth -= u64_min(w->growth, hope->bytes);
        *hope = (struct hope){};
    }
    share_out(w);
    for (unsigned i = 0; i < REQUESTS; i++)
        w->errands[i].unseen_bytes = 0;
}

void world_on_reserved(struct world *w, struct errand *errand)
{
    world_expect(w, errand->reserves && !errand->granted, "something is reserved that nobody asked for");
    errand->granted = true;
    errand->held = ++w->n_held;
    if (errand->foreign_bytes == 0)
        return;
    see(w);
    w->growth -= share_out(w);
    for (unsigned i = 0; i < REQUESTS; i++)
        if (!w->hopes[i].held) {
            w->hopes[i] = (struct hope){
                .held = errand->held,
                .bytes = errand->foreign_bytes,
                .left = errand->foreign_bytes,
            };
            break;
        }
    if (!w->foreign_moved)
        world_expect(w, world_free_bytes(w) >= outstanding(w), "what is expected of others is not free");
}

/* Its errand may go on, with nothing behind it. */
void world_end_hope(struct world *w, struct errand *errand)
{
    w->stray_bytes += errand->loaded_bytes;
    errand->loaded_bytes = errand->unseen_bytes = 0;
    for (unsigned i = 0; i < REQUESTS; i++)
        if (errand->held && w->hopes[i].held == errand->held)
            w->hopes[i].end = w->n_looks + 1;
    errand->held = 0;
}

void world_check_hopes(struct world *w)
{
    struct broker_totals totals;

    broker_totals(w->broker, &totals);
    world_expect(w, totals.expected_bytes == expected(w), "something else is expected of others");
    if (!w->foreign_moved)
        world_expect(w, totals.expected_bytes >= outstanding(w),
                     "less is expected of others than they may take");
}

/* ---- Judging ---- */

uint64_t world_lacks(struct world *w, const struct errand *errand, uint64_t charged)
{
    struct broker_totals totals;
    uint64_t ceiling;

    broker_totals(w->broker, &totals);
    ceiling = u64_sub_floor(totals.total_bytes, w->config.headroom_bytes + totals.foreign_bytes);
    if (!w->config.budget_bytes)
        ceiling = u64_min(ceiling, u64_sub_floor(totals.total_bytes / 1000 * w->config.utilization_ppm / 1000,
                                                 totals.foreign_bytes));
    if (errand->foreign_bytes == 0)
        return u64_sub_floor(charged, totals.budget_bytes);
    return u64_max(u64_sub_floor(charged, totals.budget_bytes),
                   u64_sub_floor(charged + totals.expected_bytes + errand->foreign_bytes, ceiling));
}

/* ---- Bystanders ---- */

static bool waits(const struct world *w, unsigned domain, unsigned name)
{
    for (unsigned i = 0; i < REQUESTS; i++) {
        const struct errand *errand = &w->errands[i];

        if (errand->request && !errand->granted && errand->domain == domain && errand->name == name)
            return true;
    }
    return false;
}

void world_note_reserved(struct world *w, uint64_t reserved[N_DOMAINS][N_NAMES])
{
    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++) {
            reserved[domain][name] = world_reserved(w, domain, name);
            w->acted[domain][name] = waits(w, domain, name);
        }
}

void world_check_reserved(struct world *w, uint64_t before[N_DOMAINS][N_NAMES])
{
    for (unsigned domain = 0; domain < N_DOMAINS; domain++)
        for (unsigned name = 0; name < N_NAMES; name++)
            world_expect(w, w->acted[domain][name] || world_reserved(w, domain, name) == before[domain][name],
                         "what is reserved for somebody has changed without them");
}
