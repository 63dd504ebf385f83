/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Two eventfds and one place for an answer. Neither side waits for the other: the lock is held for a few
 * assignments, and eventfds are written without it, or on one processor whom it wakes would run only to wait
 * for it.
 */

#include "state_share.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "base/cleanup.h"
#include "state.h"

struct state_share {
    state_take_fn take;
    void *userdata;
    uv_poll_t asked;
    int asked_fd, told_fd;

    pthread_mutex_t lock;
    struct state *state; /* not collected yet */
    int r;
    bool has_answer;
    bool stopping;
};

static void tell(struct state_share *share, int r, struct state *state)
{
    struct state *old;

    pthread_mutex_lock(&share->lock);
    old = share->state;
    share->state = state;
    share->r = r;
    share->has_answer = true;
    pthread_mutex_unlock(&share->lock);
    state_free(old);
    eventfd_write(share->told_fd, 1);
}

static void on_asked(uv_poll_t *poll, int status, int events)
{
    struct state_share *share = poll->data;
    struct state *state = NULL;
    eventfd_t count;
    int r;

    if (eventfd_read(share->asked_fd, &count) < 0)
        return;
    r = share->take(share->userdata, &state);
    tell(share, r, state);
}

static void destroy(struct state_share *share)
{
    close_fd(share->asked_fd);
    close_fd(share->told_fd);
    state_free(share->state);
    pthread_mutex_destroy(&share->lock);
    free(share);
}

static void on_closed(uv_handle_t *handle)
{
    destroy(handle->data);
}

int state_share_new(uv_loop_t *loop, state_take_fn take, void *userdata, struct state_share **ret)
{
    struct state_share *share = calloc(1, sizeof(*share));
    int r = 0;

    if (!share)
        return -ENOMEM;
    share->take = take;
    share->userdata = userdata;
    share->told_fd = -1;
    pthread_mutex_init(&share->lock, NULL);
    share->asked_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (share->asked_fd >= 0)
        share->told_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (share->told_fd < 0)
        r = -errno;
    if (r == 0)
        r = uv_poll_init(loop, &share->asked, share->asked_fd);
    if (r < 0) {
        destroy(share);
        return r;
    }
    share->asked.data = share;
    r = uv_poll_start(&share->asked, UV_READABLE, on_asked);
    if (r < 0) {
        uv_close((uv_handle_t *)&share->asked, on_closed);
        return r;
    }
    *ret = share;
    return 0;
}

struct state_share *state_share_free(struct state_share *share)
{
    if (share)
        uv_close((uv_handle_t *)&share->asked, on_closed);
    return NULL;
}

int state_share_fd(const struct state_share *share)
{
    return share->told_fd;
}

void state_share_ask(struct state_share *share)
{
    eventfd_write(share->asked_fd, 1);
}

int state_share_collect(struct state_share *share, struct state **ret)
{
    eventfd_t count;
    int r = STATE_SHARE_E_NOTHING;

    eventfd_read(share->told_fd, &count);
    pthread_mutex_lock(&share->lock);
    if (share->stopping) {
        r = STATE_SHARE_E_STOP;
    } else if (share->has_answer) {
        r = share->r;
        if (r == 0)
            *ret = steal_pointer(share->state);
        share->has_answer = false;
    }
    pthread_mutex_unlock(&share->lock);
    return r;
}

void state_share_stop(struct state_share *share)
{
    pthread_mutex_lock(&share->lock);
    share->stopping = true;
    pthread_mutex_unlock(&share->lock);
    eventfd_write(share->told_fd, 1);
}
