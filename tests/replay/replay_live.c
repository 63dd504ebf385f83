/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A replay in real time: a process for each engine, as in life. This one starts them, lets them begin
 * together once all are connected, watches, and reaps; it has no GPU and no client of its own.
 *
 * Engines end with it: by SIGTERM when it is asked to end, by PR_SET_PDEATHSIG when it is killed.
 */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "live_engine.h"
#include "progress.h"
#include "replay.h"
#include "shares.h"
#include "signals.h"

struct fleet {
    struct board *board;
    struct live_gate gate;
    struct progress progress;
    pid_t pids[ENGINES_MAX]; /* 0: gone */
    size_t n_ready;
    int signals;
    int signal; /* that ended the replay */
};

/* By exit(), so that the driver can leave in order. The child has its own copy of the traces. */
_Noreturn static void be_engine(struct fleet *f, size_t i)
{
    int status;

    f->gate.open_write = close_fd(f->gate.open_write);
    status = live_engine_run(f->board, i, &f->gate, f->signals);
    f->board = board_free(f->board);
    exit(status);
}

static int start_engine(struct fleet *f, size_t i)
{
    pid_t parent = getpid(), pid;

    /* What waits in our buffers is not the child's to write. */
    fflush(NULL);
    pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        be_engine(f, i);
    }
    f->pids[i] = pid;
    return 0;
}

static size_t n_alive(const struct fleet *f)
{
    size_t n = 0;

    for (size_t i = 0; i < f->board->n; i++)
        n += f->pids[i] != 0;
    return n;
}

static void tell_all(const struct fleet *f, int signo)
{
    for (size_t i = 0; i < f->board->n; i++)
        if (f->pids[i])
            kill(f->pids[i], signo);
}

static void bury(struct fleet *f, size_t i, int status)
{
    struct slot *slot = &f->board->slots[i];

    f->pids[i] = 0;
    atomic_store(&slot->busy, false);
    if (!WIFSIGNALED(status))
        return;
    slot->counts.served = atomic_load(&slot->served);
    slot->counts.refused = atomic_load(&slot->refused);
    slot->counts.preempted = atomic_load(&slot->preempted);
    snprintf(slot->error, sizeof(slot->error), "killed by signal %d (%s)", WTERMSIG(status),
             strsignal(WTERMSIG(status)));
}

static void reap(struct fleet *f)
{
    int status;

    for (size_t i = 0; i < f->board->n; i++)
        if (f->pids[i] && waitpid(f->pids[i], &status, WNOHANG) == f->pids[i])
            bury(f, i, status);
}

static void handle_signals(struct fleet *f)
{
    int signo = signals_read_end(f->signals);

    if (signo && !f->signal) {
        f->signal = signo;
        f->board->interrupted = true;
        tell_all(f, SIGTERM);
    }
    reap(f);
}

static int count_ready(struct fleet *f)
{
    char bytes[ENGINES_MAX];
    ssize_t n = read(f->gate.ready_read, bytes, sizeof(bytes));

    if (n < 0 && errno != EAGAIN && errno != EINTR)
        return -errno;
    f->n_ready += n > 0 ? (size_t)n : 0;
    return 0;
}

/* Until each engine is connected and has its weights, or is gone. */
static int gather(struct fleet *f)
{
    struct pollfd fds[] = {
        {.fd = f->gate.ready_read, .events = POLLIN},
        {.fd = f->signals, .events = POLLIN},
    };
    int r = 0;

    while (r == 0 && n_alive(f) == f->board->n && f->n_ready < f->board->n) {
        poll(fds, 2, -1);
        handle_signals(f);
        r = count_ready(f);
    }
    return r;
}

static void open_gate(struct fleet *f)
{
    f->board->start_s = progress_clock();
    f->gate.open_write = close_fd(f->gate.open_write);
}

static void watch(struct fleet *f)
{
    struct board *b = f->board;

    progress_init(&f->progress);
    while (n_alive(f) > 0) {
        signals_wait(f->signals, progress_clock() + progress_wait_s(&f->progress));
        handle_signals(f);
        b->wall_s = progress_clock() - b->start_s;
        b->replayed_s = b->wall_s * b->options->speed;
        progress_show(&f->progress, b, b->replayed_s);
    }
    progress_end(&f->progress);
}

static void end_early(struct fleet *f)
{
    tell_all(f, SIGTERM);
    f->gate.open_write = close_fd(f->gate.open_write);
    while (n_alive(f) > 0) {
        signals_wait(f->signals, progress_clock() + 1);
        handle_signals(f);
    }
}

static int start_all(struct fleet *f, char error[static REPLAY_ERROR_MAX])
{
    int r = 0;

    for (size_t i = 0; i < f->board->n && r == 0; i++)
        r = start_engine(f, i);
    if (r == 0)
        r = gather(f);
    if (r < 0)
        snprintf(error, REPLAY_ERROR_MAX, "starting engines: %s", strerror(-r));
    if (r == 0 && n_alive(f) < f->board->n && !f->signal) {
        snprintf(error, REPLAY_ERROR_MAX, "not all engines could start");
        r = -ECANCELED;
    }
    return r;
}

static int prepare(struct fleet *f, char error[static REPLAY_ERROR_MAX])
{
    const struct options *o = f->board->options;
    char reason[SHARES_ERROR_MAX];
    int r;

    r = shares_budget(o->socket, &f->board->budget_bytes, reason);
    if (r == 0 && !o->elastic)
        r = shares_set(o->socket, f->board, f->board->slots[0].page_bytes, reason);
    if (r < 0)
        snprintf(error, REPLAY_ERROR_MAX, "%s", reason);
    return r;
}

static int run(struct fleet *f, char error[static REPLAY_ERROR_MAX])
{
    int r;

    r = start_all(f, error);
    if (r == 0 && !f->signal)
        r = prepare(f, error);
    if (r < 0 || f->signal) {
        end_early(f);
        return r;
    }
    open_gate(f);
    watch(f);
    return 0;
}

static int open_fds(struct fleet *f)
{
    f->signals = signals_open();
    if (f->signals < 0)
        return f->signals;
    return live_gate_open(&f->gate);
}

int replay_live(struct board *board, int *ret_signal, char error[static REPLAY_ERROR_MAX])
{
    struct fleet f = {.board = board, .gate = LIVE_GATE_INIT, .signals = -1};
    char reason[SHARES_ERROR_MAX];
    int r;

    r = open_fds(&f);
    if (r < 0)
        snprintf(error, REPLAY_ERROR_MAX, "no descriptors: %s", strerror(-r));
    else
        r = run(&f, error);
    live_gate_close(&f.gate);
    close_fd(f.signals);
    if (!board->options->elastic && shares_clear(board->options->socket, board, reason) < 0 && r == 0) {
        snprintf(error, REPLAY_ERROR_MAX, "clearing the limits: %s", reason);
        r = -EIO;
    }
    *ret_signal = f.signal;
    return r;
}
