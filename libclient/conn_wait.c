/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Several threads may wait for answers on the one socket. One of them leads: it alone polls and receives,
 * with the lock released while it polls, and hands each packet to the request that it answers, whoever waits
 * for that. When its own answer is complete it resigns, and another waiting thread takes over. Threads that
 * do not wait (an event loop's dispatch, the library's own thread) receive only while there is no leader; so
 * an answer is never taken away from under a thread that sleeps in poll().
 *
 * Most answers come so soon that poll() would cost more than it tells: the leader waits for the first packet
 * in recvmsg(), for a moment, where nobody's deadline is so near. What it has received then is nobody else's
 * to see until it has the lock again.
 *
 * The leader keeps everybody's time, but it may have gone to sleep before somebody came whose deadline is
 * nearer: who follows wakes up for it, too. A deadline counts only after the socket has been found empty, and
 * no leader has something in hand: a process that was stopped for an hour finds its answers waiting, and
 * nobody times out. Each packet of an answer starts the time anew.
 *
 * A host may want a call to end before that. It is asked without the lock, and by a thread that does not
 * lead: its answer may take long, and come from code that waits for the same daemon.
 */

#include <errno.h>
#include <poll.h>
#include <time.h>

#include "base/arith.h"
#include "conn.h"

/* ---- Time ---- */

/* Rounded up, so that a wait never ends just before its deadline. */
static int poll_timeout(uint64_t deadline_ns)
{
    uint64_t left_ms;

    if (deadline_ns == UINT64_MAX)
        return -1;
    left_ms = (u64_sub_floor(deadline_ns, conn_now_ns()) + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC;
    return (int)u64_min(left_ms, INT32_MAX);
}

static uint64_t next_deadline(struct conn *conn)
{
    uint64_t earliest = UINT64_MAX;

    list_for_each (it, &conn->requests)
        earliest = u64_min(earliest, container_of(it, struct request, link)->deadline_ns);
    return earliest;
}

static void expire(struct conn *conn)
{
    uint64_t now = conn_now_ns();

    list_for_each (it, &conn->requests) {
        struct request *request = container_of(it, struct request, link);

        if (request->deadline_ns > now)
            continue;
        request->expired = true;
        request->deadline_ns = UINT64_MAX;
        pthread_cond_broadcast(&conn->changed);
    }
}

/* ---- Leading ---- */

static void sleep_in_poll(struct conn *conn, uint64_t deadline_ns)
{
    struct pollfd pfd = {.fd = link_fd(conn->link), .events = conn_events(conn)};
    int timeout = poll_timeout(deadline_ns);

    pthread_mutex_unlock(&conn->lock);
    poll(&pfd, 1, timeout);
    pthread_mutex_lock(&conn->lock);
}

static void sleep_in_receive(struct conn *conn)
{
    conn->receiving = true;
    pthread_mutex_unlock(&conn->lock);
    link_await(conn->link);
    pthread_mutex_lock(&conn->lock);
    conn->receiving = false;
}

/* Receives until the leader has what it waits for: what else has come is the next one's to find. */
static void lead(struct conn *conn, bool (*pending)(const void *data), const void *data, uint64_t until_ns,
                 bool first)
{
    uint64_t deadline_ns = u64_min(next_deadline(conn), until_ns);
    bool in_receive =
        first && conn->alive && !link_wants_write(conn->link) &&
        (deadline_ns == UINT64_MAX || deadline_ns > u64_add_ceil(conn_now_ns(), CONN_MOMENT_NS));
    bool waits;

    if (in_receive)
        sleep_in_receive(conn);
    else
        sleep_in_poll(conn, deadline_ns);
    conn_flush(conn);
    conn->receiving = true;
    /* What came in the sleep is handled whatever has become of the wait since: nobody else would be told. */
    if (in_receive && conn->alive)
        conn_receive_one(conn);
    while ((waits = pending(data)) && conn_receive_one(conn))
        ;
    conn->receiving = false;
    if (waits)
        expire(conn);
    if (conn->watched)
        pthread_cond_broadcast(&conn->changed);
}

/* ---- Following ---- */

static bool is_readable(const struct conn *conn)
{
    struct pollfd pfd = {.fd = link_fd(conn->link), .events = POLLIN};

    return poll(&pfd, 1, 0) > 0;
}

/* When who follows has to look at the time. What the leader has in hand may be the answer; it will be back
 * before that. */
static uint64_t follower_deadline(struct conn *conn)
{
    uint64_t deadline_ns = next_deadline(conn);

    if (conn->receiving)
        deadline_ns = u64_max(deadline_ns, u64_add_ceil(conn_now_ns(), CONN_MOMENT_NS));
    return deadline_ns;
}

static void expire_unread(struct conn *conn)
{
    if (!conn->receiving && !is_readable(conn))
        expire(conn);
}

/* A thread that follows sees to its own question, if the socket didn't take it at once: the leader may have
 * gone to sleep before there was anything to send. */
static void push(struct conn *conn, uint64_t until_ns)
{
    struct pollfd pfd = {.fd = link_fd(conn->link), .events = POLLOUT};
    int timeout = poll_timeout(u64_min(follower_deadline(conn), until_ns)), n;

    pthread_mutex_unlock(&conn->lock);
    n = poll(&pfd, 1, timeout);
    pthread_mutex_lock(&conn->lock);
    conn_flush(conn);
    if (n == 0)
        expire_unread(conn);
}

/* A thread that follows sleeps until something has changed, or until the next deadline. */
static void follow(struct conn *conn, uint64_t until_ns)
{
    uint64_t deadline_ns = u64_min(follower_deadline(conn), until_ns);
    struct timespec until = {
        .tv_sec = (time_t)(deadline_ns / NSEC_PER_SEC),
        .tv_nsec = (long)(deadline_ns % NSEC_PER_SEC),
    };

    if (deadline_ns == UINT64_MAX)
        pthread_cond_wait(&conn->changed, &conn->lock);
    else if (pthread_cond_timedwait(&conn->changed, &conn->lock, &until) == ETIMEDOUT)
        expire_unread(conn);
}

/* ---- Waiting ---- */

static bool is_time(uint64_t due_ns)
{
    return due_ns != UINT64_MAX && conn_now_ns() >= due_ns;
}

static void lead_until(struct conn *conn, bool (*pending)(const void *data), const void *data,
                       uint64_t until_ns, uint64_t ask_ns)
{
    conn->has_leader = true;
    for (bool first = true; first || (pending(data) && !is_time(ask_ns)); first = false)
        lead(conn, pending, data, u64_min(until_ns, ask_ns), first);
    conn->has_leader = false;
    pthread_cond_broadcast(&conn->changed);
}

static int ask_host(struct conn *conn)
{
    int r;

    pthread_mutex_unlock(&conn->lock);
    r = interrupt_ask(&conn->interrupt);
    pthread_mutex_lock(&conn->lock);
    return r;
}

int conn_wait_while_until(struct conn *conn, bool (*pending)(const void *data), const void *data,
                          uint64_t until_ns)
{
    int r = 0;

    while (pending(data) && r == 0) {
        uint64_t ask_ns = interrupt_due_ns(&conn->interrupt);

        if (is_time(ask_ns))
            r = ask_host(conn);
        else if (conn->has_leader && conn->alive && link_wants_write(conn->link))
            push(conn, ask_ns);
        else if (conn->has_leader)
            follow(conn, u64_min(until_ns, ask_ns));
        else
            lead_until(conn, pending, data, until_ns, ask_ns);
    }
    return r;
}

int conn_wait_while(struct conn *conn, bool (*pending)(const void *data), const void *data)
{
    return conn_wait_while_until(conn, pending, data, UINT64_MAX);
}

uint64_t conn_deadline(uint64_t timeout_ns)
{
    return u64_add_ceil(conn_now_ns(), timeout_ns);
}

void conn_start_time(struct conn *conn, struct request *request)
{
    request->expired = false;
    request->deadline_ns = conn_deadline(conn->timeout_ns);
}

static bool is_unanswered(const void *data)
{
    const struct request *request = data;

    return !request->done && !request->expired;
}

void conn_wait_begin(struct request *request, uint64_t deadline_ns)
{
    if (request->done)
        return;
    request->waited = true;
    request->expired = false;
    request->deadline_ns = deadline_ns;
}

int conn_wait_end(struct request *request, int r)
{
    request->waited = false;
    if (!request->done)
        return r < 0 ? r : error_set(KVC_E_TIMEOUT, "kvcachedd did not answer in time");
    return request->result < 0 ? error_set(request->result, "%s", request->reason) : 0;
}

int conn_wait(struct conn *conn, struct request *request)
{
    return conn_wait_until(conn, request, conn_deadline(conn->timeout_ns));
}

int conn_wait_until(struct conn *conn, struct request *request, uint64_t deadline_ns)
{
    conn_wait_begin(request, deadline_ns);
    return conn_wait_end(request, conn_wait_while(conn, is_unanswered, request));
}
