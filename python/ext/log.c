/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the library has to say comes from any thread, with locks of its own held, so it must not wait for the
 * interpreter's. It is put into a ring, and the interpreter's main thread passes it on to the handler when it
 * next gets to it. What doesn't fit is counted.
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
static bool pending;
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

/* An exception of the handler is nobody's here. */
static int pass_on(void *data)
{
    struct entry entry;

    while (next(&entry)) {
        PyObject *to = handler, *answer;

        if (!to)
            continue;
        Py_INCREF(to);
        answer = PyObject_CallFunction(to, "is", (int)entry.level, entry.sentence);
        if (!answer)
            PyErr_WriteUnraisable(to);
        Py_XDECREF(answer);
        Py_DECREF(to);
    }
    return 0;
}

void log_receive(void *data, enum kvc_log_level level, const char *sentence)
{
    bool call;

    pthread_mutex_lock(&lock);
    if (n < RING) {
        struct entry *entry = &ring[(first + n++) % RING];

        entry->level = level;
        snprintf(entry->sentence, sizeof(entry->sentence), "%s", sentence);
    } else {
        n_lost++;
    }
    call = !pending;
    pending = true;
    pthread_mutex_unlock(&lock);
    if (!call || Py_AddPendingCall(pass_on, NULL) == 0)
        return;
    pthread_mutex_lock(&lock);
    pending = false; /* the next sentence tries again */
    pthread_mutex_unlock(&lock);
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
