/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The thread sleeps in poll() until it is poked, or the socket has something for it; behind a leader, until
 * that one has looked. While no background request is under way, and neither notices nor orders can come,
 * that is only the end of the connection: answers to the host's own calls are received by the threads that
 * wait for them, and waking a second thread for each would cost more than the call.
 *
 * All signals are blocked: they are the host's.
 */

#include "worker.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "client.h"

struct worker {
    struct kvc_client *client;
    pthread_t thread;
    int wake_fd;
    struct interrupt interrupt;
    atomic_bool stopping; /* written with the lock */
    bool poked;
    bool listening; /* for whatever comes on the socket */
    bool writing;   /* waits for the socket to take more */
};

static bool needs_look(const struct worker *worker)
{
    struct conn *conn = worker->client->conn;

    if (!conn->alive)
        return false;
    return client_has_work(worker->client) || (client_listens(worker->client) && !worker->listening) ||
           (link_wants_write(conn->link) && !worker->writing);
}

static void wake(struct worker *worker)
{
    uint64_t one = 1;

    if (worker->poked)
        return;
    /* Fails only when the counter is full, and then the thread is awake. */
    worker->poked = write(worker->wake_fd, &one, sizeof(one)) == sizeof(one);
}

void worker_poke(struct worker *worker)
{
    if (needs_look(worker))
        wake(worker);
}

void worker_call(struct worker *worker)
{
    uint64_t one = 1;

    /* As above. */
    if (write(worker->wake_fd, &one, sizeof(one)) < 0)
        return;
}

static void clear_poke(struct worker *worker)
{
    uint64_t count;

    if (read(worker->wake_fd, &count, sizeof(count)) > 0)
        worker->poked = false;
}

/* Sleeps; with the lock released. */
static void wait_for_events(struct worker *worker)
{
    struct conn *conn = worker->client->conn;
    struct pollfd pfds[2] = {
        {.fd = worker->wake_fd, .events = POLLIN},
        {.fd = conn->alive ? link_fd(conn->link) : -1, .events = POLLRDHUP},
    };
    int timeout;

    worker->listening = client_listens(worker->client);
    worker->writing = link_wants_write(conn->link);
    pfds[1].events |= (short)((worker->listening ? POLLIN : 0) | (worker->writing ? POLLOUT : 0));
    timeout = client_timeout_ms(worker->client);
    pthread_mutex_unlock(&conn->lock);
    poll(pfds, 2, timeout);
    pthread_mutex_lock(&conn->lock);
    worker->listening = worker->writing = false;
    if (pfds[0].revents) {
        clear_poke(worker);
        return;
    }
    /* A leader takes what has come, and still lies there. Looking again before it has done so would be a busy
     * loop; it won't be long. */
    pfds[1].events &= ~POLLOUT;
    if (pfds[1].revents && conn->has_leader && !worker->stopping && poll(&pfds[1], 1, 0) > 0) {
        conn->watched = true;
        pthread_cond_wait(&conn->changed, &conn->lock);
        conn->watched = false;
    }
}

/* Who stops the thread closes everything, and waits for the daemon then; and may itself be told to end. */
static int is_stopping(void *data)
{
    const struct worker *worker = data;

    return atomic_load(&worker->stopping);
}

static void *run(void *data)
{
    struct worker *worker = data;
    struct conn *conn = worker->client->conn;

    interrupt_replace(&worker->interrupt);
    pthread_mutex_lock(&conn->lock);
    while (!worker->stopping) {
        client_work(worker->client);
        if (!worker->stopping)
            wait_for_events(worker);
    }
    pthread_mutex_unlock(&conn->lock);
    return NULL;
}

static int start_thread(struct worker *worker)
{
    sigset_t all, before;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&worker->thread, NULL, run, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0)
        return error_set(KVC_E_NOMEM, "Cannot start a thread: %s", strerror(r));
    pthread_setname_np(worker->thread, "kvclient");
    return 0;
}

int worker_start(struct kvc_client *client, struct worker **ret)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    int r;

    if (!worker)
        return error_nomem();
    worker->client = client;
    worker->interrupt = (struct interrupt){.is_wanted = is_stopping, .data = worker};
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->wake_fd < 0) {
        worker_forget(worker);
        return error_set(KVC_E_NOFILE, "No descriptor is left for the library's thread");
    }
    r = start_thread(worker);
    if (r < 0) {
        close_fd(worker->wake_fd);
        worker_forget(worker);
        return r;
    }
    *ret = worker;
    return 0;
}

struct worker *worker_stop(struct worker *worker)
{
    struct conn *conn;

    if (!worker)
        return NULL;
    conn = worker->client->conn;
    pthread_mutex_lock(&conn->lock);
    worker->stopping = true;
    wake(worker);
    pthread_cond_broadcast(&conn->changed);
    pthread_mutex_unlock(&conn->lock);
    pthread_join(worker->thread, NULL);
    close_fd(worker->wake_fd);
    return worker_forget(worker);
}

struct worker *worker_forget(struct worker *worker)
{
    free(worker);
    return NULL;
}
