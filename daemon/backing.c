/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One thread, four queues by urgency, one driver call at a time: what is needed for a grant (export) never
 * waits behind more than the one call that is being made. So that a stream of urgent work cannot keep memory
 * from being released for ever, a waiting queue gets a turn after it has been passed PASSES_MAX times.
 *
 * The finished jobs stand in one queue, in the driver's order: the ledger's arithmetic with free memory
 * depends on it. The thread sleeps on a condition variable and costs nothing while there is nothing to do.
 *
 * The loop is woken by an eventfd, and not under the lock: on one processor it would run at once, only to
 * wait for this thread. (uv_async_send() has such a lock of its own, for which libuv waits spinning.)
 */

#include "backing.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/arith.h"

#define PASSES_MAX 32
#define RELEASE_TRIES 3
#define UNTOLD_MAX 16

struct backing {
    struct device *device;
    void (*on_done)(void *userdata);
    void *userdata;
    uv_poll_t wakeup;
    int wakeup_fd;
    struct list staged[_BACKING_TYPES]; /* submitted since the last flush */
    bool has_staged;
    pthread_t thread;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* work has come, or the thread has ended */
    struct list queues[_BACKING_TYPES];
    unsigned passes[_BACKING_TYPES];
    struct list done;
    unsigned n_untold; /* of those, since the loop was last woken */
    struct backing_stats stats;
    uint64_t begun_ns; /* the call that is being made; 0: there is none */
    bool stopping, ended;
};

static bool is_starved(const struct backing *backing, unsigned type)
{
    return !list_is_empty(&backing->queues[type]) && backing->passes[type] >= PASSES_MAX;
}

static struct backing_job *pick(struct backing *backing)
{
    unsigned chosen = _BACKING_TYPES;

    for (unsigned type = _BACKING_TYPES; type-- > 0;) {
        if (list_is_empty(&backing->queues[type]))
            continue;
        if (chosen == _BACKING_TYPES || !is_starved(backing, chosen))
            chosen = type;
    }
    if (chosen == _BACKING_TYPES)
        return NULL;
    for (unsigned type = chosen + 1; type < _BACKING_TYPES; type++)
        backing->passes[type] += !list_is_empty(&backing->queues[type]);
    backing->passes[chosen] = 0;
    return list_first(&backing->queues[chosen], struct backing_job, link);
}

/* A handle that cannot be released is memory lost until the process ends, so a passing failure is tried
 * again. */
static int release(struct device *device, struct backing_job *job)
{
    uint64_t freed_bytes = 0;
    int r = -EIO;

    job->fd = close_fd(job->fd);
    for (unsigned i = 0; i < RELEASE_TRIES && r < 0; i++)
        r = device_release(device, job->handle, &freed_bytes, &job->why);
    job->bytes = freed_bytes;
    return r;
}

static void carry_out(struct device *device, struct backing_job *job)
{
    int r;

    switch (job->type) {
    case BACKING_EXPORT:
        r = device_export(device, job->handle, &job->fd, &job->why);
        break;
    case BACKING_CREATE:
        r = device_create(device, job->bytes, &job->handle, &job->why);
        break;
    case BACKING_LOOK:
        r = device_free_bytes(device, &job->bytes, &job->why);
        break;
    default:
        r = release(device, job);
        break;
    }
    job->r = (int16_t)r;
}

/* Whether to wake the loop. Exports are short, and several mostly serve one request: it is woken for the last
 * of them, and for every sixteenth. Other jobs take so long that nobody's answer should wait for the next. */
static bool finish(struct backing *backing, struct backing_job *job)
{
    list_append(&backing->done, &job->link);
    if (job->type == BACKING_EXPORT && !list_is_empty(&backing->queues[BACKING_EXPORT]) &&
        ++backing->n_untold < UNTOLD_MAX)
        return false;
    backing->n_untold = 0;
    return true;
}

static void count(struct backing_stats *stats, const struct backing_job *job, uint64_t took_ns)
{
    stats->n_failed[job->type] += job->r != 0 && job->r != -ENOMEM;
    histogram_add(&stats->times[job->type], took_ns);
}

static void *run(void *arg)
{
    struct backing *backing = arg;
    struct backing_job *job;
    uint64_t took_ns;
    bool tell;

    pthread_mutex_lock(&backing->lock);
    for (;;) {
        job = pick(backing);
        if (!job && backing->stopping)
            break;
        if (!job) {
            pthread_cond_wait(&backing->changed, &backing->lock);
            continue;
        }
        list_unlink(&job->link);
        backing->begun_ns = uv_hrtime();
        pthread_mutex_unlock(&backing->lock);
        carry_out(backing->device, job);
        took_ns = uv_hrtime() - backing->begun_ns;
        pthread_mutex_lock(&backing->lock);
        backing->begun_ns = 0;
        count(&backing->stats, job, took_ns);
        tell = finish(backing, job);
        if (!tell)
            continue;
        pthread_mutex_unlock(&backing->lock);
        eventfd_write(backing->wakeup_fd, 1);
        pthread_mutex_lock(&backing->lock);
    }
    backing->ended = true;
    pthread_cond_broadcast(&backing->changed);
    pthread_mutex_unlock(&backing->lock);
    return NULL;
}

static void free_unstarted(uv_handle_t *handle)
{
    backing_free(handle->data);
}

static void on_wakeup(uv_poll_t *poll, int status, int events)
{
    struct backing *backing = poll->data;
    eventfd_t count;

    eventfd_read(backing->wakeup_fd, &count);
    backing->on_done(backing->userdata);
}

/* The loop's thread takes all signals. */
static int start_thread(struct backing *backing)
{
    sigset_t all, before;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&backing->thread, NULL, run, backing);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -r;
}

static void init_sync(struct backing *backing)
{
    pthread_condattr_t attr;

    pthread_mutex_init(&backing->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&backing->changed, &attr);
    pthread_condattr_destroy(&attr);
}

int backing_new(uv_loop_t *loop, struct device *device, void (*on_done)(void *userdata), void *userdata,
                struct backing **ret)
{
    struct backing *backing = calloc(1, sizeof(*backing));
    int r;

    if (!backing)
        return -ENOMEM;
    backing->device = device;
    backing->on_done = on_done;
    backing->userdata = userdata;
    for (unsigned type = 0; type < _BACKING_TYPES; type++) {
        list_init(&backing->queues[type]);
        list_init(&backing->staged[type]);
    }
    list_init(&backing->done);
    init_sync(backing);
    backing->wakeup_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r = backing->wakeup_fd < 0 ? -errno : uv_poll_init(loop, &backing->wakeup, backing->wakeup_fd);
    if (r < 0) {
        backing_free(backing);
        return r;
    }
    backing->wakeup.data = backing;
    r = uv_poll_start(&backing->wakeup, UV_READABLE, on_wakeup);
    if (r == 0)
        r = start_thread(backing);
    if (r < 0) {
        uv_close((uv_handle_t *)&backing->wakeup, free_unstarted);
        return r;
    }
    *ret = backing;
    return 0;
}

int backing_stop(struct backing *backing, uint64_t deadline_ns)
{
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / NSEC_PER_SEC),
                                .tv_nsec = (long)(deadline_ns % NSEC_PER_SEC)};
    bool ended;

    pthread_mutex_lock(&backing->lock);
    backing->stopping = true;
    pthread_cond_broadcast(&backing->changed);
    while (!backing->ended) {
        if (pthread_cond_timedwait(&backing->changed, &backing->lock, &deadline) == ETIMEDOUT)
            break;
    }
    ended = backing->ended;
    pthread_mutex_unlock(&backing->lock);
    if (!ended)
        return -ETIMEDOUT;
    pthread_join(backing->thread, NULL);
    uv_close((uv_handle_t *)&backing->wakeup, NULL);
    return 0;
}

struct backing *backing_free(struct backing *backing)
{
    if (!backing)
        return NULL;
    pthread_cond_destroy(&backing->changed);
    pthread_mutex_destroy(&backing->lock);
    close_fd(backing->wakeup_fd);
    free(backing);
    return NULL;
}

void backing_submit(struct backing *backing, struct backing_job *job, enum backing_type type)
{
    job->type = (uint8_t)type;
    job->busy = true;
    list_append(&backing->staged[type], &job->link);
    backing->has_staged = true;
}

/* The lock is taken once for all that an event has led to. */
void backing_flush(struct backing *backing)
{
    if (!backing->has_staged)
        return;
    backing->has_staged = false;
    pthread_mutex_lock(&backing->lock);
    for (unsigned type = 0; type < _BACKING_TYPES; type++)
        list_splice(&backing->queues[type], &backing->staged[type]);
    pthread_mutex_unlock(&backing->lock);
    pthread_cond_signal(&backing->changed); /* not before, or the thread would wake up to wait for the lock */
}

void backing_stats(struct backing *backing, struct backing_stats *ret)
{
    pthread_mutex_lock(&backing->lock);
    *ret = backing->stats;
    if (backing->begun_ns)
        ret->busy_ns = uv_hrtime() - backing->begun_ns;
    pthread_mutex_unlock(&backing->lock);
}

struct backing_job *backing_next_done(struct backing *backing)
{
    struct backing_job *job;

    pthread_mutex_lock(&backing->lock);
    job = list_first(&backing->done, struct backing_job, link);
    if (job) {
        list_unlink(&job->link);
        job->busy = false;
    }
    pthread_mutex_unlock(&backing->lock);
    return job;
}
