/* SPDX-License-Identifier: Apache-2.0 */

#include "chain.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <uv.h>

#include "bench.h"
#include "rights.h"

struct rank {
    int socket; /* to the relay */
    pid_t relay, worker;
};

struct chain {
    unsigned n;
    struct rank ranks[];
};

/* In a relay, both sockets; in a worker, the one to its relay. */
struct hop {
    uv_loop_t loop;
    uv_poll_t from_scheduler, from_relay, from_worker;
    int scheduler, relay, worker;
    int fd; /* what is passed on */
};

/* False at end-of-file. */
static bool take_word(int socket)
{
    uint32_t n;

    return recv(socket, &n, sizeof(n), 0) == sizeof(n);
}

static void on_request(uv_poll_t *poll, int status, int events)
{
    struct hop *hop = poll->data;

    (void)status;
    (void)events;
    if (take_word(hop->scheduler))
        send_fds(hop->worker, &hop->fd, 1);
    else
        uv_stop(poll->loop);
}

static void on_answer(uv_poll_t *poll, int status, int events)
{
    struct hop *hop = poll->data;

    (void)status;
    (void)events;
    if (take_word(hop->worker))
        send_fds(hop->scheduler, NULL, 0);
}

static void on_order(uv_poll_t *poll, int status, int events)
{
    struct hop *hop = poll->data;
    char byte;
    int fd;

    (void)status;
    (void)events;
    if (recv(hop->relay, &byte, 1, MSG_PEEK) != 1) {
        uv_stop(poll->loop);
        return;
    }
    receive_fds(hop->relay, &fd, 1);
    close(fd);
    send_fds(hop->relay, NULL, 0);
}

static void watch(struct hop *hop, uv_poll_t *poll, int socket, uv_poll_cb callback)
{
    if (uv_poll_init(&hop->loop, poll, socket) < 0)
        die("no event loop");
    poll->data = hop;
    uv_poll_start(poll, UV_READABLE, callback);
}

/* Ends the process at end-of-file; what it has open goes with it. */
_Noreturn static void be_relay(int scheduler, int worker, int processor)
{
    struct hop hop = {.scheduler = scheduler, .worker = worker};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin_to(processor);
    hop.fd = memfd_create("page", MFD_CLOEXEC);
    if (hop.fd < 0 || uv_loop_init(&hop.loop) < 0)
        die("no event loop");
    watch(&hop, &hop.from_scheduler, scheduler, on_request);
    watch(&hop, &hop.from_worker, worker, on_answer);
    uv_run(&hop.loop, UV_RUN_DEFAULT);
    _exit(0);
}

_Noreturn static void be_worker(int relay, int processor)
{
    struct hop hop = {.relay = relay};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin_to(processor);
    if (uv_loop_init(&hop.loop) < 0)
        die("no event loop");
    watch(&hop, &hop.from_relay, relay, on_order);
    uv_run(&hop.loop, UV_RUN_DEFAULT);
    _exit(0);
}

static void make_pair(int sockets[static 2])
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
        die("socketpair: %s", strerror(errno));
}

static pid_t checked_fork(void)
{
    pid_t pid = fork();

    if (pid < 0)
        die("fork: %s", strerror(errno));
    return pid;
}

static void close_earlier(const struct chain *chain, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        close(chain->ranks[i].socket);
}

static void start_rank(struct chain *chain, unsigned i, int relay_processor, int worker_processor)
{
    struct rank *rank = &chain->ranks[i];
    int upper[2], lower[2];

    make_pair(upper);
    make_pair(lower);
    rank->worker = checked_fork();
    if (rank->worker == 0) {
        close_earlier(chain, i);
        close(upper[0]);
        close(upper[1]);
        close(lower[0]);
        be_worker(lower[1], worker_processor);
    }
    rank->relay = checked_fork();
    if (rank->relay == 0) {
        close_earlier(chain, i);
        close(upper[0]);
        close(lower[1]);
        be_relay(upper[1], lower[0], relay_processor);
    }
    close(upper[1]);
    close(lower[0]);
    close(lower[1]);
    rank->socket = upper[0];
}

struct chain *chain_new(unsigned ranks, int relay_processor, int worker_processor)
{
    struct chain *chain = calloc(1, sizeof(*chain) + ranks * sizeof(chain->ranks[0]));

    if (!chain)
        die("out of memory");
    for (; chain->n < ranks; chain->n++)
        start_rank(chain, chain->n, relay_processor, worker_processor);
    return chain;
}

static void wait_for(pid_t pid)
{
    int status;

    if (waitpid(pid, &status, 0) != pid || status != 0)
        die("a process of the chain failed");
}

void chain_free(struct chain *chain)
{
    for (unsigned i = 0; i < chain->n; i++)
        close(chain->ranks[i].socket);
    for (unsigned i = 0; i < chain->n; i++) {
        wait_for(chain->ranks[i].relay);
        wait_for(chain->ranks[i].worker);
    }
    free(chain);
}

void chain_go(struct chain *chain)
{
    for (unsigned i = 0; i < chain->n; i++)
        send_fds(chain->ranks[i].socket, NULL, 0);
    for (unsigned i = 0; i < chain->n; i++)
        receive_fds(chain->ranks[i].socket, NULL, 0);
}
