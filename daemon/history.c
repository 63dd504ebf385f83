/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Samples come with events, as many as there are. Within one second the newer one replaces the older, so the
 * ring holds at least HISTORY_MAX seconds in which something happened, however fast it did.
 */

#include "history.h"

static int differ(const struct history_sample *a, const struct history_sample *b)
{
    return a->granted_bytes != b->granted_bytes || a->leased_bytes != b->leased_bytes ||
           a->pool_bytes != b->pool_bytes || a->leaving_bytes != b->leaving_bytes ||
           a->foreign_bytes != b->foreign_bytes || a->budget_bytes != b->budget_bytes;
}

void history_note(struct history *history, const struct history_sample *sample)
{
    struct history_sample *last = &history->ring[(history->n + HISTORY_MAX - 1) % HISTORY_MAX];

    if (history->n > 0 && !differ(last, sample))
        return;
    if (history->n > 0 && sample->ns - last->ns < HISTORY_STEP_NS) {
        uint64_t ns = last->ns;

        *last = *sample;
        last->ns = ns;
        return;
    }
    history->ring[history->n++ % HISTORY_MAX] = *sample;
}

unsigned history_copy(const struct history *history, struct history_sample ret[static HISTORY_MAX])
{
    unsigned n = history->n < HISTORY_MAX ? (unsigned)history->n : HISTORY_MAX;

    for (unsigned i = 0; i < n; i++)
        ret[i] = history->ring[(history->n - n + i) % HISTORY_MAX];
    return n;
}
