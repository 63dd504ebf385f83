/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Exceptions. Each is a kvcached.Error, and also what a Python programmer would expect of its kind: a daemon
 * that isn't there is a FileNotFoundError, a call in vain a TimeoutError.
 */

#include <string.h>

#include "native.h"

enum kind { KIND_ERROR, KIND_INVALID, KIND_MEMORY, KIND_DAEMON, KIND_DISCONNECTED, KIND_TIMEOUT, N_KINDS };

static PyObject *classes[N_KINDS];

static const struct {
    const char *name, *doc;
    PyObject **base; /* beside Error */
} kinds[N_KINDS] = {
    [KIND_ERROR] = {"Error", "Something that libkvclient cannot do. `code` is its KVC_E_* number.", NULL},
    [KIND_INVALID] = {"InvalidError", "An argument, or the order of calls, makes no sense.",
                      &PyExc_ValueError},
    [KIND_MEMORY] = {"OutOfMemoryError", "Limit, budget or GPU cannot hold it, or there are no more blocks.",
                     NULL},
    [KIND_DAEMON] = {"DaemonNotFoundError", "No kvcachedd at that socket, or one that is not to be trusted.",
                     &PyExc_FileNotFoundError},
    [KIND_DISCONNECTED] = {"DisconnectedError", "The daemon, or a worker, is gone.", &PyExc_ConnectionError},
    [KIND_TIMEOUT] = {"DaemonTimeoutError", "No answer in time.", &PyExc_TimeoutError},
};

static enum kind kind_of(int error)
{
    switch (error) {
    case KVC_E_INVALID:
    case KVC_E_ENVIRONMENT:
    case KVC_E_MAPPED:
    case KVC_E_NOT_MAPPED:
    case KVC_E_PINNED:
    case KVC_E_NOT_ALLOCATED:
        return KIND_INVALID;
    case KVC_E_LIMIT:
    case KVC_E_BUDGET:
    case KVC_E_DEVICE_MEMORY:
    case KVC_E_FROZEN:
    case KVC_E_NO_BLOCKS:
    case KVC_E_IN_DOUBT:
        return KIND_MEMORY;
    case KVC_E_CONNECT:
        return KIND_DAEMON;
    case KVC_E_DISCONNECTED:
    case KVC_E_WORKER_GONE:
        return KIND_DISCONNECTED;
    case KVC_E_TIMEOUT:
        return KIND_TIMEOUT;
    default:
        return KIND_ERROR;
    }
}

static void raise_kind(enum kind kind, int error, const char *sentence)
{
    PyObject *text = text_of(sentence);
    PyObject *exception = text ? PyObject_CallFunctionObjArgs(classes[kind], text, NULL) : NULL;
    PyObject *code = exception ? PyLong_FromLong(error) : NULL;

    Py_XDECREF(text);
    if (code && PyObject_SetAttrString(exception, "code", code) == 0)
        PyErr_SetObject(classes[kind], exception);
    Py_XDECREF(code);
    Py_XDECREF(exception);
}

PyObject *errors_raise(int error)
{
    const char *details = kvc_last_error();

    if (error == KVC_E_INTERRUPTED && PyErr_Occurred())
        return NULL;
    if (error == KVC_E_NOMEM)
        return PyErr_NoMemory();
    raise_kind(kind_of(error), error, *details ? details : kvc_strerror(error));
    return NULL;
}

PyObject *errors_check(int r)
{
    if (r < 0)
        return errors_raise(r);
    Py_RETURN_NONE;
}

PyObject *errors_raise_closed(const char *what)
{
    char sentence[64];

    PyOS_snprintf(sentence, sizeof(sentence), "The %s is closed", what);
    raise_kind(KIND_INVALID, KVC_E_INVALID, sentence);
    return NULL;
}

static PyObject *make_class(enum kind kind)
{
    PyObject *bases = NULL, *made;
    char name[64];

    PyOS_snprintf(name, sizeof(name), "kvcached.%s", kinds[kind].name);
    if (kind == KIND_ERROR)
        bases = PyTuple_Pack(1, PyExc_RuntimeError);
    else
        bases = kinds[kind].base ? PyTuple_Pack(2, classes[KIND_ERROR], *kinds[kind].base)
                                 : PyTuple_Pack(1, classes[KIND_ERROR]);
    made = bases ? PyErr_NewExceptionWithDoc(name, kinds[kind].doc, bases, NULL) : NULL;
    Py_XDECREF(bases);
    return made;
}

int errors_add_to(PyObject *module)
{
    for (int kind = 0; kind < N_KINDS; kind++) {
        classes[kind] = make_class(kind);
        if (!classes[kind])
            return -1;
        Py_INCREF(classes[kind]);
        if (PyModule_AddObject(module, kinds[kind].name, classes[kind]) < 0) {
            Py_DECREF(classes[kind]);
            return -1;
        }
    }
    return 0;
}
