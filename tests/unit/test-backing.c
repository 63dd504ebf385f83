/* SPDX-License-Identifier: Apache-2.0 */

/* The backing thread over a driver that the test holds up and lets go on, call by call. */

#include "backing.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"

#define JOBS_MAX 256

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned n_allowed, n_entered, n_failures;
static char calls[JOBS_MAX];

/* Each call waits until the test lets it go on. */
static int call(char name, const char **ret_why)
{
    int r = 0;

    pthread_mutex_lock(&lock);
    calls[n_entered++] = name;
    pthread_cond_broadcast(&changed);
    while (n_entered > n_allowed)
        pthread_cond_wait(&changed, &lock);
    if (n_failures > 0) {
        n_failures--;
        *ret_why = "UNKNOWN";
        r = -EIO;
    }
    pthread_mutex_unlock(&lock);
    return r;
}

static void allow(unsigned n)
{
    pthread_mutex_lock(&lock);
    n_allowed += n;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void wait_until_entered(unsigned n)
{
    pthread_mutex_lock(&lock);
    while (n_entered < n)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

int device_create(struct device *device, uint64_t bytes, CUmemGenericAllocationHandle *ret,
                  const char **ret_why)
{
    *ret = bytes + 1;
    return call('c', ret_why);
}

int device_export(struct device *device, CUmemGenericAllocationHandle handle, int *ret_fd,
                  const char **ret_why)
{
    *ret_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return call('e', ret_why);
}

int device_release(struct device *device, CUmemGenericAllocationHandle handle, uint64_t *ret_freed_bytes,
                   const char **ret_why)
{
    *ret_freed_bytes = 815;
    return call('r', ret_why);
}

int device_free_bytes(struct device *device, uint64_t *ret, const char **ret_why)
{
    *ret = 4711;
    return call('l', ret_why);
}

struct fixture {
    uv_loop_t loop;
    struct backing *backing;
    struct backing_job jobs[JOBS_MAX];
    unsigned n_jobs, n_done;
    struct backing_job *done[JOBS_MAX];
};

static void on_done(void *userdata)
{
    struct fixture *f = userdata;
    struct backing_job *job;

    while ((job = backing_next_done(f->backing)))
        f->done[f->n_done++] = job;
}

static struct fixture *setup(void)
{
    struct fixture *f = calloc(1, sizeof(*f));

    check(f != NULL);
    check_eq(uv_loop_init(&f->loop), 0);
    check_eq(backing_new(&f->loop, NULL, on_done, f, &f->backing), 0);
    return f;
}

static struct backing_job *submit(struct fixture *f, enum backing_type type)
{
    struct backing_job *job = &f->jobs[f->n_jobs++];

    list_init(&job->link);
    job->fd = -1;
    backing_submit(f->backing, job, type);
    backing_flush(f->backing);
    return job;
}

static void wait_until_done(struct fixture *f, unsigned n)
{
    while (f->n_done < n)
        uv_run(&f->loop, UV_RUN_ONCE);
}

static void stop(struct fixture *f)
{
    check_eq(backing_stop(f->backing, uv_hrtime() + 10 * NSEC_PER_SEC), 0);
}

static void free_all(struct fixture *f)
{
    uv_run(&f->loop, UV_RUN_DEFAULT);
    check_eq(uv_loop_close(&f->loop), 0);
    uv_library_shutdown();
    backing_free(f->backing);
    free(f);
}

static void teardown(struct fixture *f)
{
    allow(JOBS_MAX);
    stop(f);
    free_all(f);
}

TEST(urgent_first)
{
    struct fixture *f = setup();

    submit(f, BACKING_RELEASE);
    wait_until_entered(1);
    submit(f, BACKING_RELEASE);
    submit(f, BACKING_LOOK);
    submit(f, BACKING_CREATE);
    submit(f, BACKING_EXPORT);
    submit(f, BACKING_CREATE);
    allow(6);
    wait_until_done(f, 6);
    check_str(calls, "recclr");
    for (unsigned i = 0; i < f->n_done; i++)
        f->done[i]->fd = close_fd(f->done[i]->fd);
    teardown(f);
}

TEST(answers_in_the_drivers_order)
{
    struct fixture *f = setup();
    struct backing_job *release = submit(f, BACKING_RELEASE), *create, *look;

    wait_until_entered(1);
    look = submit(f, BACKING_LOOK);
    create = submit(f, BACKING_CREATE);
    check(create->busy);
    allow(3);
    wait_until_done(f, 3);
    check(f->done[0] == release && f->done[1] == create && f->done[2] == look);
    check(!create->busy);
    check_eq(create->handle, 1);
    check_eq(look->bytes, 4711);
    teardown(f);
}

/* However much urgent work there is, memory is released now and then. */
TEST(nobody_starves)
{
    struct fixture *f = setup();

    submit(f, BACKING_CREATE);
    wait_until_entered(1);
    submit(f, BACKING_RELEASE);
    for (unsigned i = 0; i < 100; i++)
        submit(f, BACKING_CREATE);
    allow(102);
    wait_until_done(f, 102);
    check(strchr(calls, 'r') - calls < 40);
    teardown(f);
}

TEST(failures_are_answers)
{
    struct fixture *f = setup();
    struct backing_job *create;

    n_failures = 1;
    allow(2);
    create = submit(f, BACKING_CREATE);
    wait_until_done(f, 1);
    check_eq(create->r, -EIO);
    check_str(create->why, "UNKNOWN");
    teardown(f);
}

TEST(release_is_tried_again)
{
    struct fixture *f = setup();
    struct backing_job *release;

    n_failures = 2;
    allow(3);
    release = submit(f, BACKING_RELEASE);
    wait_until_done(f, 1);
    check_eq(release->r, 0);
    check_str(calls, "rrr");
    teardown(f);
}

TEST(release_closes_the_descriptor)
{
    struct fixture *f = setup();
    struct backing_job *job = submit(f, BACKING_EXPORT);

    allow(2);
    wait_until_done(f, 1);
    check(job->fd >= 0);
    backing_submit(f->backing, job, BACKING_RELEASE);
    backing_flush(f->backing);
    wait_until_done(f, 2);
    check_eq(job->fd, -1);
    teardown(f);
}

/* A driver that doesn't come back is left behind. */
TEST(stop_does_not_wait_for_ever)
{
    struct fixture *f = setup();
    uint64_t before;

    submit(f, BACKING_CREATE);
    wait_until_entered(1);
    before = uv_hrtime();
    check_eq(backing_stop(f->backing, before + 100 * NSEC_PER_MSEC), -ETIMEDOUT);
    check(uv_hrtime() - before < 5 * NSEC_PER_SEC);
    teardown(f);
}

TEST(stop_finishes_what_was_asked_for)
{
    struct fixture *f = setup();

    for (unsigned i = 0; i < 20; i++)
        submit(f, BACKING_RELEASE);
    allow(20);
    stop(f);
    on_done(f);
    check_eq(f->n_done, 20);
    free_all(f);
}
