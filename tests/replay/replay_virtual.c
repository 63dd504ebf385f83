/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A replay in virtual time: all engines in this process, each a client of its own, one thing after the other.
 * Time costs nothing and the broker's answers come in the order of the questions, so the result is the same
 * every time, and can be compared with a model's for equality.
 */

#include <errno.h>
#include <math.h>
#include <stdio.h>

#include "progress.h"
#include "replay.h"
#include "shares.h"
#include "signals.h"
#include "virtual.h"

/* Without a guarantee for each, engines can take memory from themselves for ever. */
#define STALLED_AFTER_S 36000.0

/* Events between looks at the clock and at signals. */
#define LOOK_EVERY 64

struct session {
    struct board *board;
    struct remote *remotes[ENGINES_MAX]; /* until a borrow has it */
    struct borrow *borrows[ENGINES_MAX];
    struct engine *engines[ENGINES_MAX];
    struct progress progress;
    int signals;
    int signal;
    unsigned n_events;
    uint64_t through;  /* requests served or refused */
    double through_at; /* when that last changed */
};

/* All of them first: a process that has threads and a driver is not one to fork. */
static int start_workers(struct session *s, char error[static REPLAY_ERROR_MAX])
{
    char reason[WORKER_ERROR_MAX];
    int r = 0;

    for (size_t i = 0; i < s->board->n && s->board->options->workers && r == 0; i++) {
        const struct worker_options options = slot_borrow_options(s->board, i);

        r = remote_new(&options, &s->remotes[i], reason);
        if (r < 0)
            snprintf(error, REPLAY_ERROR_MAX, "%s: %s", options.instance, reason);
    }
    return r;
}

static int open_engine(struct session *s, size_t i, char error[static REPLAY_ERROR_MAX])
{
    const struct worker_options options = slot_borrow_options(s->board, i);
    const struct options *o = s->board->options;
    struct slot *slot = &s->board->slots[i];
    char reason[BORROW_ERROR_MAX];
    int r;

    r = borrow_new(&options, steal_pointer(s->remotes[i]), &s->borrows[i], reason);
    if (r < 0) {
        snprintf(error, REPLAY_ERROR_MAX, "%s: %s", slot->instance, reason);
        return r;
    }
    r = engine_new(&o->model, borrow_memory(s->borrows[i]), slot->trace, &s->engines[i]);
    if (r < 0)
        snprintf(error, REPLAY_ERROR_MAX, "out of memory");
    return r;
}

static uint64_t requests_through(const struct session *s)
{
    uint64_t n = 0;

    for (size_t i = 0; i < s->board->n; i++)
        n += engine_counts(s->engines[i])->served + engine_counts(s->engines[i])->refused;
    return n;
}

/* Looked at now and then only. */
static bool look(struct session *s, double now)
{
    uint64_t through = requests_through(s);

    if (through != s->through) {
        s->through = through;
        s->through_at = now;
    }
    for (size_t i = 0; i < s->board->n; i++)
        slot_update(&s->board->slots[i], s->engines[i]);
    progress_show(&s->progress, s->board, now);
    s->signal = signals_read_end(s->signals);
    return !s->signal && now - s->through_at <= STALLED_AFTER_S;
}

static bool on_event(void *data, double now)
{
    struct session *s = data;

    s->board->replayed_s = now;
    return s->n_events++ % LOOK_EVERY == 0 ? look(s, now) : true;
}

static void blame(struct session *s)
{
    for (size_t i = 0; i < s->board->n; i++)
        snprintf(s->board->slots[i].error, sizeof(s->board->slots[i].error), "%s",
                 borrow_error(s->borrows[i]));
}

static int run(struct session *s, char error[static REPLAY_ERROR_MAX])
{
    double begin = progress_clock();
    int r;

    progress_init(&s->progress);
    r = virtual_run(s->engines, s->board->n, on_event, s);
    progress_end(&s->progress);
    s->board->wall_s = progress_clock() - begin;
    s->board->interrupted = r == VIRTUAL_E_STOPPED && s->signal;
    if (r < 0) {
        blame(s);
        if (board_has_failed(s->board))
            return 0;
        snprintf(error, REPLAY_ERROR_MAX, "out of memory");
        return r;
    }
    if (r == 0 || s->board->interrupted)
        return 0;
    snprintf(error, REPLAY_ERROR_MAX,
             "no request has come to an end since %.0f s: each engine holds memory that another one needs",
             s->through_at);
    return -ETIME;
}

static int abandon(struct session *s)
{
    int r = 0;

    for (size_t i = 0; i < s->board->n && r == 0; i++)
        r = engine_abandon(s->engines[i]);
    if (r < 0)
        blame(s);
    return r;
}

static void close_engines(struct session *s)
{
    for (size_t i = 0; i < s->board->n; i++) {
        slot_close(&s->board->slots[i], s->engines[i], s->borrows[i]);
        engine_free(s->engines[i]);
        borrow_free(s->borrows[i]);
        remote_free(s->remotes[i]);
    }
}

static int run_open(struct session *s, char error[static REPLAY_ERROR_MAX])
{
    const struct options *o = s->board->options;
    int r;

    r = start_workers(s, error);
    for (size_t i = 0; i < s->board->n && r == 0; i++)
        r = open_engine(s, i, error);
    if (r < 0)
        return r;
    s->board->budget_bytes = borrow_budget_bytes(s->borrows[0]);
    if (!o->elastic)
        r = shares_set(o->socket, s->board, borrow_page_bytes(s->borrows[0]), error);
    for (size_t i = 0; i < s->board->n && o->hold && r == 0; i++) {
        r = borrow_fill(s->borrows[i], s->board->share_bytes);
        if (r < 0)
            snprintf(error, REPLAY_ERROR_MAX, "%s", borrow_error(s->borrows[i]));
    }
    if (r == 0)
        r = run(s, error);
    if (r == 0 && s->board->interrupted)
        abandon(s);
    return r;
}

int replay_virtual(struct board *board, int *ret_signal, char error[static REPLAY_ERROR_MAX])
{
    struct session s = {.board = board};
    char reason[SHARES_ERROR_MAX];
    int r;

    s.signals = signals_open();
    if (s.signals < 0) {
        snprintf(error, REPLAY_ERROR_MAX, "no signal descriptor");
        return s.signals;
    }
    r = run_open(&s, error);
    close_engines(&s);
    close_fd(s.signals);
    if (!board->options->elastic && shares_clear(board->options->socket, board, reason) < 0 && r == 0) {
        snprintf(error, REPLAY_ERROR_MAX, "clearing the limits: %s", reason);
        r = -EIO;
    }
    *ret_signal = s.signal;
    return r;
}
