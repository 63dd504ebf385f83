/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Threads that are not Python's, in the interpreter. They may come while it ends, when taking its lock is
 * undefined: so they announce themselves, and its end waits for those who have, and turns the others away. A
 * mutex of our own is never held while its holder waits for the interpreter's lock.
 *
 * What has to be done by another thread than the one at hand, which has no Python frame to wait in, is done
 * here, too.
 */

#include "native.h"

#include <pthread.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t arrived = PTHREAD_COND_INITIALIZER;
static unsigned n_coming;
static bool closed_for_good;

bool threads_enter(PyGILState_STATE *ret)
{
    bool may;

    pthread_mutex_lock(&lock);
    may = !closed_for_good;
    n_coming += may;
    pthread_mutex_unlock(&lock);
    if (!may)
        return false;
    *ret = PyGILState_Ensure();
    pthread_mutex_lock(&lock);
    if (--n_coming == 0)
        pthread_cond_broadcast(&arrived);
    pthread_mutex_unlock(&lock);
    return true;
}

void threads_leave(PyGILState_STATE state)
{
    PyGILState_Release(state);
}

static void turn_away(void)
{
    pthread_mutex_lock(&lock);
    closed_for_good = true;
    while (n_coming > 0)
        pthread_cond_wait(&arrived, &lock);
    pthread_mutex_unlock(&lock);
}

void threads_end(void)
{
    Py_BEGIN_ALLOW_THREADS
    turn_away();
    Py_END_ALLOW_THREADS
}

/* ---- Another thread ---- */

struct errand {
    void (*run)(PyObject *object);
    PyObject *object;
};

static void *run_errand(void *data)
{
    struct errand *errand = data;
    PyGILState_STATE state;

    if (threads_enter(&state)) {
        errand->run(errand->object);
        Py_DECREF(errand->object);
        PyMem_Free(errand);
        threads_leave(state);
    }
    return NULL;
}

bool threads_run_apart(void (*run)(PyObject *object), PyObject *object)
{
    struct errand *errand = PyMem_Malloc(sizeof(*errand));
    pthread_t thread;

    if (!errand)
        return false;
    *errand = (struct errand){run, object};
    Py_INCREF(object);
    if (pthread_create(&thread, NULL, run_errand, errand) == 0)
        return pthread_detach(thread) == 0;
    Py_DECREF(object);
    PyMem_Free(errand);
    return false;
}

/* ---- Fork ---- */

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    n_coming = 0; /* they are the parent's */
    pthread_mutex_unlock(&lock);
}

int threads_init(void)
{
    if (pthread_atfork(before_fork, after_fork, after_fork_in_child) == 0)
        return 0;
    PyErr_NoMemory();
    return -1;
}
