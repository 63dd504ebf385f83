/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An engine against the clock. The scheduler is the same as in virtual time; a step of the GPU is a sleep
 * until its computed end. What the broker takes to answer comes on top of that, as it would in life.
 *
 * An engine that finds no memory at all, not even for its oldest request, looks again after the time of an
 * empty step: that is what a server's scheduling loop does.
 */

#include "live_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "progress.h"
#include "signals.h"

struct live_engine {
    struct board *board;
    struct slot *slot;
    const struct options *options;
    struct borrow *borrow;
    struct engine *engine;
    double start_s; /* by progress_clock(): all at once, but for those that first have to take their memory */
    double next;    /* end of the step, or when to look for memory again; INFINITY: neither */
    int signals;
    bool stopped;
};

int live_gate_open(struct live_gate *gate)
{
    int ready[2], open[2];

    if (pipe2(ready, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    gate->ready_read = ready[0];
    gate->ready_write = ready[1];
    if (pipe2(open, O_CLOEXEC) < 0)
        return -errno;
    gate->open_read = open[0];
    gate->open_write = open[1];
    return 0;
}

void live_gate_close(struct live_gate *gate)
{
    gate->ready_read = close_fd(gate->ready_read);
    gate->ready_write = close_fd(gate->ready_write);
    gate->open_read = close_fd(gate->open_read);
    gate->open_write = close_fd(gate->open_write);
}

/* Time in the traces. */
static double replay_clock(const struct live_engine *e)
{
    return (progress_clock() - e->start_s) * e->options->speed;
}

static void wait_until(struct live_engine *e, double replay_s)
{
    signals_wait(e->signals, e->start_s + replay_s / e->options->speed);
    e->stopped = signals_read_end(e->signals) != 0;
}

static unsigned n_busy(const struct board *board)
{
    unsigned n = 0;

    for (size_t i = 0; i < board->n; i++)
        n += atomic_load_explicit(&board->slots[i].busy, memory_order_relaxed);
    return n;
}

static int start_step(struct live_engine *e)
{
    bool busy;
    int r;

    r = engine_step(e->engine);
    if (r < 0)
        return r;
    busy = engine_is_busy(e->engine);
    atomic_store_explicit(&e->slot->busy, busy, memory_order_relaxed);
    if (busy)
        e->next = replay_clock(e) + engine_step_cost(e->engine, n_busy(e->board));
    else
        e->next = engine_has_work(e->engine) ? replay_clock(e) + e->options->model.step_s : (double)INFINITY;
    slot_update(e->slot, e->engine);
    return 0;
}

static void arrivals(struct live_engine *e, double now)
{
    while (engine_next_arrival(e->engine) <= now)
        engine_arrive(e->engine);
}

static int next_event(struct live_engine *e)
{
    double arrival = engine_next_arrival(e->engine), now;
    bool busy = engine_is_busy(e->engine);
    int r = 0;

    wait_until(e, busy || e->next < arrival ? e->next : arrival);
    now = replay_clock(e);
    arrivals(e, now);
    if (busy && now < e->next)
        return 0;
    if (busy)
        r = engine_finish(e->engine, now);
    return r < 0 ? r : start_step(e);
}

static int replay(struct live_engine *e)
{
    int r = 0;

    e->next = (double)INFINITY;
    while (r == 0 && !e->stopped && !engine_is_done(e->engine))
        r = next_event(e);
    atomic_store(&e->slot->busy, false);
    return r == 0 ? engine_abandon(e->engine) : r;
}

static int set_up(struct live_engine *e)
{
    const struct worker_options options = slot_borrow_options(e->board, (size_t)(e->slot - e->board->slots));
    struct remote *remote = NULL;
    int r = 0;

    if (options.workers)
        r = remote_new(&options, &remote, e->slot->error);
    if (r == 0)
        r = borrow_new(&options, remote, &e->borrow, e->slot->error);
    if (r < 0)
        return r;
    e->slot->page_bytes = borrow_page_bytes(e->borrow);
    return engine_new(&e->options->model, borrow_memory(e->borrow), e->slot->trace, &e->engine);
}

/* False when a signal came first. */
static bool pass_gate(struct live_engine *e, const struct live_gate *gate)
{
    struct pollfd fds[] = {
        {.fd = gate->open_read, .events = POLLIN},
        {.fd = e->signals, .events = POLLIN},
    };

    if (write(gate->ready_write, "", 1) != 1)
        return false;
    while (!fds[0].revents) {
        poll(fds, 2, -1);
        if (signals_read_end(e->signals))
            return false;
    }
    return true;
}

static int run(struct live_engine *e, const struct live_gate *gate)
{
    int r;

    r = set_up(e);
    if (r < 0)
        return r;
    if (!pass_gate(e, gate))
        return 0;
    r = e->options->hold ? borrow_fill(e->borrow, e->board->share_bytes) : 0;
    e->start_s = e->options->hold ? progress_clock() : e->board->start_s;
    if (r == 0)
        r = replay(e);
    if (r < 0)
        snprintf(e->slot->error, sizeof(e->slot->error), "%s", borrow_error(e->borrow));
    return r;
}

int live_engine_run(struct board *board, size_t i, const struct live_gate *gate, int signals)
{
    struct live_engine e = {
        .board = board, .slot = &board->slots[i], .options = board->options, .signals = signals};
    int r;

    /* Steps of a fast replay are shorter than the 50 µs by which the kernel may be late otherwise. */
    prctl(PR_SET_TIMERSLACK, 1);
    r = run(&e, gate);
    if (r < 0 && !*e.slot->error)
        snprintf(e.slot->error, sizeof(e.slot->error), "out of memory");
    slot_close(e.slot, e.engine, e.borrow);
    engine_free(e.engine);
    borrow_free(e.borrow);
    return r < 0;
}
