/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An epoll instance over the socket and an eventfd. Only a host that sleeps is woken, so one with a single
 * thread never pays for it; it sleeps from the moment in which it has asked how long it may.
 *
 * Who wakes writes first and says so then: so what a host that has just been woken leaves unread makes it
 * look once more, and nothing else.
 */

#include "loop.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "client.h"

struct loop {
    struct kvc_client *client;
    int fd, wake_fd; /* -1: nobody has asked */
    uint32_t watched;
    atomic_bool asleep, woken;
};

struct loop *loop_new(struct kvc_client *client)
{
    struct loop *loop = calloc(1, sizeof(*loop));

    if (!loop)
        return NULL;
    loop->client = client;
    loop->fd = loop->wake_fd = -1;
    return loop;
}

struct loop *loop_free(struct loop *loop)
{
    if (!loop)
        return NULL;
    close_fd(loop->fd);
    close_fd(loop->wake_fd);
    free(loop);
    return NULL;
}

struct loop *loop_forget(struct loop *loop)
{
    free(loop);
    return NULL;
}

static int watch(const struct loop *loop, int operation, int fd, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    return epoll_ctl(loop->fd, operation, fd, &event) < 0 ? -errno : 0;
}

static uint32_t socket_events(const struct loop *loop)
{
    return EPOLLIN | (conn_events(loop->client->conn) & POLLOUT ? EPOLLOUT : 0);
}

static int open_both(struct loop *loop)
{
    int r;

    loop->fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->fd < 0)
        return -errno;
    loop->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->wake_fd < 0)
        return -errno;
    loop->watched = socket_events(loop);
    r = watch(loop, EPOLL_CTL_ADD, loop->wake_fd, EPOLLIN);
    if (r == 0)
        r = watch(loop, EPOLL_CTL_ADD, link_fd(loop->client->conn->link), loop->watched);
    return r;
}

int loop_get_fd(struct loop *loop)
{
    int r;

    if (loop->fd >= 0)
        return loop->fd;
    r = open_both(loop);
    if (r == 0)
        return loop->fd;
    loop->fd = close_fd(loop->fd);
    loop->wake_fd = close_fd(loop->wake_fd);
    return error_set(r == -ENOMEM ? KVC_E_NOMEM : KVC_E_NOFILE, "No descriptor for an event loop: %s",
                     strerror(-r));
}

bool loop_is_polled(const struct loop *loop)
{
    return loop->fd >= 0;
}

void loop_fall_asleep(struct loop *loop)
{
    atomic_store(&loop->asleep, loop_is_polled(loop));
}

void loop_wake_up(struct loop *loop)
{
    uint64_t count;

    atomic_store(&loop->asleep, false);
    /* Fails only when somebody else has been faster. */
    if (atomic_exchange(&loop->woken, false) && read(loop->wake_fd, &count, sizeof(count)) < 0)
        return;
}

void loop_call(struct loop *loop)
{
    uint64_t one = 1;

    if (!atomic_exchange(&loop->asleep, false))
        return;
    /* Fails only when the counter is full, and then the descriptor is readable. */
    if (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        return;
    atomic_store(&loop->woken, true);
}

void loop_watch(struct loop *loop)
{
    uint32_t events = socket_events(loop);

    /* What fails is tried again next time. */
    if (events != loop->watched && watch(loop, EPOLL_CTL_MOD, link_fd(loop->client->conn->link), events) == 0)
        loop->watched = events;
}

void loop_poke(struct loop *loop)
{
    if (!atomic_load(&loop->asleep))
        return;
    loop_watch(loop);
    if (client_has_work(loop->client))
        loop_call(loop);
}
