/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The events of a replay in virtual time. An engine has at most two to come: its next arrival and the end of
 * its step. They happen by time; at the same time by the engines' order, and an engine's arrival before its
 * step's end. Nothing else decides, so a run is the same every time.
 *
 * Engines that are busy when a step begins slow it down equally: the GPU is shared by time. When a step ends,
 * memory may have come free, so engines that have found nothing to do look again.
 *
 * When nobody is busy and nobody will come, but requests wait, the shortage had no reason in the replay: a
 * driver call may have failed. Then all look again, a number of times.
 */

#include "virtual.h"

#include <errno.h>
#include <math.h>

/* A broker that refuses so often in a row while it has everything means it. */
#define LOOKS_MAX 1000

struct timeline {
    struct engine **engines;
    double *step_ends; /* INFINITY for who is not busy */
    size_t n;
    double now;
    unsigned n_looks; /* since something happened */
};

static int start_step(struct timeline *t, size_t i, double now)
{
    unsigned sharing = 0;
    int r;

    r = engine_step(t->engines[i]);
    if (r < 0)
        return r;
    t->step_ends[i] = (double)INFINITY;
    if (!engine_is_busy(t->engines[i]))
        return 0;
    for (size_t k = 0; k < t->n; k++)
        sharing += engine_is_busy(t->engines[k]);
    t->step_ends[i] = now + engine_step_cost(t->engines[i], sharing);
    return 0;
}

static int arrive(struct timeline *t, size_t i, double now)
{
    engine_arrive(t->engines[i]);
    return engine_is_busy(t->engines[i]) ? 0 : start_step(t, i, now);
}

static int finish_step(struct timeline *t, size_t i, double now)
{
    int r;

    r = engine_finish(t->engines[i], now);
    if (r < 0)
        return r;
    r = start_step(t, i, now);
    for (size_t k = 0; r == 0 && k < t->n; k++)
        if (!engine_is_busy(t->engines[k]) && engine_has_work(t->engines[k]))
            r = start_step(t, k, now);
    return r;
}

struct event {
    double when;
    size_t engine;
    bool is_arrival;
};

static struct event next_event(const struct timeline *t)
{
    struct event first = {.when = (double)INFINITY};

    for (size_t i = 0; i < t->n; i++) {
        double arrival = engine_next_arrival(t->engines[i]);

        if (arrival < first.when)
            first = (struct event){.when = arrival, .engine = i, .is_arrival = true};
        if (t->step_ends[i] < first.when)
            first = (struct event){.when = t->step_ends[i], .engine = i, .is_arrival = false};
    }
    return first;
}

static bool all_done(const struct timeline *t)
{
    for (size_t i = 0; i < t->n; i++)
        if (!engine_is_done(t->engines[i]))
            return false;
    return true;
}

static int happen(struct timeline *t, const struct event *event)
{
    t->now = event->when;
    t->n_looks = 0;
    return event->is_arrival ? arrive(t, event->engine, t->now) : finish_step(t, event->engine, t->now);
}

static int look_again(struct timeline *t)
{
    int r = 0;

    if (t->n_looks++ == LOOKS_MAX)
        return VIRTUAL_E_STUCK;
    for (size_t i = 0; i < t->n && r == 0; i++)
        if (engine_has_work(t->engines[i]))
            r = start_step(t, i, t->now);
    return r;
}

int virtual_run(struct engine **engines, size_t n, virtual_go_on_fn go_on, void *data)
{
    _cleanup_free_ double *step_ends = calloc(n, sizeof(*step_ends));
    struct timeline t = {.engines = engines, .step_ends = step_ends, .n = n};
    int r = 0;

    if (!step_ends)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        step_ends[i] = (double)INFINITY;
    while (r == 0 && !all_done(&t)) {
        struct event event = next_event(&t);

        if (!go_on(data, isinf(event.when) ? t.now : event.when))
            return VIRTUAL_E_STOPPED;
        r = isinf(event.when) ? look_again(&t) : happen(&t, &event);
    }
    return r;
}
