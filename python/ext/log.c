/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the library has to say comes from any thread, with locks of its own held, so it must not wait for the
 * interpreter's. It is put into a ring, and the interpreter's main thread passes it on to the handler when it
 * next gets to it. What doesn't fit is counted, and what comes when the interpreter ends is dropped.
 */

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "native.h"

#define RING 64
#define SENTENCE_MAX 400

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry {
    enum kvc_log_level level;
    char sentence[SENTENCE_MAX];
} ring[RING];
static unsigned first, n, n_lost;
static bool pending, ended;
static PyObject *handler;

static bool next(struct entry *ret)
{
    bool found = true;

    pthread_mutex_lock(&lock);
    if (n > 0) {
        *ret = ring[first];
        first = (first + 1) % RING;
        n--;
    } else if (n_lost > 0) {
        ret->level = KVC_LOG_WARNING;
        snprintf(ret->sentence, sizeof(ret->sentence), "%u more messages were lost", n_lost);
        n_lost = 0;
    } else {
        pending = found = false;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

/* An error of the handler is nobody's here. What is none, as a KeyboardInterrupt, is the main thread's. */
static int judge_exception(PyObject *to)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    PyErr_WriteUnraisable(to);
    return 0;
}

static int tell(const struct entry *entry)
{
    PyObject *to = handler, *text, *answer;
    int r = 0;

    if (!to)
        return 0;
    Py_INCREF(to);
    text = text_of(entry->sentence);
    answer = text ? PyObject_CallFunction(to, "iO", (int)entry->level, text) : NULL;
    if (!answer)
        r = judge_exception(to);
    Py_XDECREF(answer);
    Py_XDECREF(text);
    Py_DECREF(to);
    return r;
}

static int pass_on(void *data)
{
    struct entry entry;

    while (next(&entry)) {
        if (tell(&entry) == 0)
            continue;
        pthread_mutex_lock(&lock);
        pending = Py_AddPendingCall(pass_on, NULL) == 0;
        pthread_mutex_unlock(&lock);
        return -1;
    }
    return 0;
}

static void put(enum kvc_log_level level, const char *sentence)
{
    if (n < RING) {
        struct entry *entry = &ring[(first + n++) % RING];

        entry->level = level;
        snprintf(entry->sentence, sizeof(entry->sentence), "%s", sentence);
    } else {
        n_lost++;
    }
}

void log_receive(void *data, enum kvc_log_level level, const char *sentence)
{
    pthread_mutex_lock(&lock);
    if (!ended) {
        put(level, sentence);
        /* Where it fails, the next sentence tries again. */
        if (!pending)
            pending = Py_AddPendingCall(pass_on, NULL) == 0;
    }
    pthread_mutex_unlock(&lock);
}

void log_end(void)
{
    pthread_mutex_lock(&lock);
    ended = true;
    pthread_mutex_unlock(&lock);
}

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

/* What is queued is the parent's to pass on. */
static void after_fork_in_child(void)
{
    n = n_lost = 0;
    pending = false;
    pthread_mutex_unlock(&lock);
}

int log_init(void)
{
    if (pthread_atfork(before_fork, after_fork, after_fork_in_child) == 0)
        return 0;
    PyErr_NoMemory();
    return -1;
}

PyObject *log_set_handler(PyObject *module, PyObject *object)
{
    PyObject *old = handler;

    if (object != Py_None && !PyCallable_Check(object))
        return PyErr_Format(PyExc_TypeError, "the handler is neither callable nor None");
    handler = object == Py_None ? NULL : object;
    Py_XINCREF(handler);
    Py_XDECREF(old);
    Py_RETURN_NONE;
}
