/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One question, one answer, over a pair of sockets. The worker's process keeps nothing else of its parent's
 * open, leaves SIGINT and SIGTERM to the scheduler, which ends it in order, and dies with it.
 */

#include "remote.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"

#define BLOCKS_MAX 1024 /* in one question */

enum question_type {
    QUESTION_STAMP,
    QUESTION_CHECK,
};

struct question {
    uint32_t type;
    uint32_t n;
    uint32_t blocks[BLOCKS_MAX];
};

struct answer {
    int r;
    struct layout layout;
    struct worker_counts counts;
    char error[WORKER_ERROR_MAX];
};

struct process {
    pid_t pid;
    int socket;
    struct answer last;
};

struct remote {
    struct process workers[WORKERS_MAX];
    unsigned n;
    const char *error; /* that of the worker that failed */
};

/* ---- In the worker's process ---- */

static struct answer answer_of(const struct worker *w, int r)
{
    struct answer answer = {.r = r, .layout = *worker_layout(w), .counts = worker_counts(w)};

    snprintf(answer.error, sizeof(answer.error), "%s", worker_error(w));
    return answer;
}

static bool send_answer(int socket, const struct answer *answer)
{
    return send(socket, answer, sizeof(*answer), MSG_NOSIGNAL) == sizeof(*answer);
}

static bool serve_one(struct worker *w, int socket)
{
    struct question question;
    struct answer answer;
    int r;

    if (recv(socket, &question, sizeof(question), 0) < (ssize_t)offsetof(struct question, blocks))
        return false;
    if (question.type == QUESTION_STAMP)
        r = worker_stamp(w, question.blocks, question.n);
    else
        r = worker_check(w, question.blocks, question.n);
    answer = answer_of(w, r);
    return send_answer(socket, &answer);
}

static int serve(int socket, const struct worker_options *options)
{
    _cleanup_(worker_freep) struct worker *w = NULL;
    struct answer answer = {};

    answer.r = worker_new(options, &w, answer.error);
    if (answer.r < 0)
        return send_answer(socket, &answer) ? 0 : 1;
    answer = answer_of(w, 0);
    if (!send_answer(socket, &answer))
        return 1;
    while (serve_one(w, socket))
        ;
    return 0;
}

/* By exit(), so that the driver can leave in order. */
_Noreturn static void be_worker(int socket, pid_t parent, const struct worker_options *options)
{
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || dup2(socket, STDERR_FILENO + 1) < 0)
        _exit(1);
    close_range(STDERR_FILENO + 2, ~0U, 0);
    exit(serve(STDERR_FILENO + 1, options));
}

/* ---- In the scheduler's ---- */

static int lost(struct process *p)
{
    snprintf(p->last.error, sizeof(p->last.error), "the worker's process has ended");
    return -EPIPE;
}

static int receive_answer(struct process *p)
{
    ssize_t n;

    do
        n = recv(p->socket, &p->last, sizeof(p->last), 0);
    while (n < 0 && errno == EINTR);
    return n == sizeof(p->last) ? p->last.r : lost(p);
}

static int start(struct process *p, const struct worker_options *options)
{
    pid_t parent = getpid();
    int sockets[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
        return -errno;
    fflush(NULL);
    p->pid = fork();
    if (p->pid == 0)
        be_worker(sockets[1], parent, options);
    close(sockets[1]);
    p->socket = sockets[0];
    return p->pid < 0 ? -errno : 0;
}

static int add_worker(struct remote *remote, const struct worker_options *options,
                      char error[static WORKER_ERROR_MAX])
{
    struct process *p = &remote->workers[remote->n++];
    int r;

    p->socket = -1;
    r = start(p, options);
    if (r < 0) {
        snprintf(error, WORKER_ERROR_MAX, "no process for a worker: %s", strerror(-r));
        return r;
    }
    r = receive_answer(p);
    if (r < 0)
        snprintf(error, WORKER_ERROR_MAX, "%s", p->last.error);
    return r;
}

int remote_new(const struct worker_options *options, struct remote **ret_remote,
               char error[static WORKER_ERROR_MAX])
{
    _cleanup_(remote_freep) struct remote *remote = calloc(1, sizeof(*remote));
    struct worker_options worker = *options;
    int r;

    if (!remote) {
        snprintf(error, WORKER_ERROR_MAX, "out of memory");
        return -ENOMEM;
    }
    for (worker.rank = 0; worker.rank < options->workers; worker.rank++) {
        r = add_worker(remote, &worker, error);
        if (r < 0)
            return r;
    }
    *ret_remote = steal_pointer(remote);
    return 0;
}

static void end(struct process *p)
{
    close_fd(p->socket);
    if (p->pid > 0)
        while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR)
            ;
}

struct remote *remote_free(struct remote *remote)
{
    if (!remote)
        return NULL;
    for (unsigned i = 0; i < remote->n; i++)
        end(&remote->workers[i]);
    free(remote);
    return NULL;
}

static int failed(struct remote *remote, const struct process *p, int r)
{
    remote->error = p->last.error;
    return r;
}

/* They work at the same time. */
static int ask(struct remote *remote, enum question_type type, const uint32_t *blocks, size_t n)
{
    struct question question = {.type = type, .n = (uint32_t)n};
    size_t size = offsetof(struct question, blocks) + n * sizeof(*blocks);

    memcpy(question.blocks, blocks, n * sizeof(*blocks));
    for (unsigned i = 0; i < remote->n; i++) {
        struct process *p = &remote->workers[i];

        if (send(p->socket, &question, size, MSG_NOSIGNAL) != (ssize_t)size)
            return failed(remote, p, lost(p));
    }
    for (unsigned i = 0; i < remote->n; i++) {
        int r = receive_answer(&remote->workers[i]);

        if (r < 0)
            return failed(remote, &remote->workers[i], r);
    }
    return 0;
}

static int ask_all(struct remote *remote, enum question_type type, const uint32_t *blocks, size_t n)
{
    int r = 0;

    for (size_t done = 0; done < n && r == 0; done += BLOCKS_MAX)
        r = ask(remote, type, blocks + done, u64_min(n - done, BLOCKS_MAX));
    return r;
}

int remote_stamp(struct remote *remote, const uint32_t *blocks, size_t n)
{
    return ask_all(remote, QUESTION_STAMP, blocks, n);
}

int remote_check(struct remote *remote, const uint32_t *blocks, size_t n)
{
    return ask_all(remote, QUESTION_CHECK, blocks, n);
}

const char *remote_error(const struct remote *remote)
{
    return remote->error;
}

const struct layout *remote_layout(const struct remote *remote)
{
    return &remote->workers[0].last.layout;
}

struct worker_counts remote_counts(const struct remote *remote)
{
    struct worker_counts sum = {};

    for (unsigned i = 0; i < remote->n; i++) {
        sum.stamps += remote->workers[i].last.counts.stamps;
        sum.retries += remote->workers[i].last.counts.retries;
    }
    return sum;
}
