/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Calls that may wait, and signals. Python runs a signal's handler where its main thread next runs Python,
 * which may be long after: so the library asks now and then whether it should go on, and then handlers run.
 * An exception of theirs ends the call, as a time limit would. It is kept aside until the call has returned,
 * which may use Python meanwhile; a call that has succeeded all the same returns first, and the exception
 * comes behind it, as if the signal had. What is closed on the way of such an exception takes no more time
 * either.
 */

#include "native.h"

static _Thread_local struct wait *innermost;

void wait_begin(struct wait *wait)
{
    wait->outer = innermost;
    wait->raised = NULL;
    wait->over = PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception);
    PyErr_Fetch(&wait->before[0], &wait->before[1], &wait->before[2]);
    innermost = wait;
    wait->thread = PyEval_SaveThread();
}

/* The exception as an object, which knows its traceback. */
static PyObject *take_exception(void)
{
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

int wait_is_over(void *data)
{
    struct wait *wait = innermost;

    if (!wait)
        return 0;
    if (wait->over)
        return 1;
    PyEval_RestoreThread(wait->thread);
    if (PyErr_CheckSignals() < 0)
        wait->raised = take_exception();
    wait->over = wait->raised != NULL;
    wait->thread = PyEval_SaveThread();
    return wait->over;
}

static int raise_now(void *data)
{
    PyObject *exception = data;

    PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_DECREF(exception);
    return -1;
}

/* Takes it over. Signals come to the main thread, and so do these calls. */
static void raise_later(PyObject *exception)
{
    if (Py_AddPendingCall(raise_now, exception) == 0)
        return;
    Py_DECREF(exception);
    PyErr_SetInterrupt(); /* too many are on their way: at least the program hears of one */
}

int wait_end(struct wait *wait, int r)
{
    PyEval_RestoreThread(wait->thread);
    innermost = wait->outer;
    if (wait->raised && r < 0 && !wait->before[0]) {
        raise_now(wait->raised);
        return KVC_E_INTERRUPTED;
    }
    if (wait->raised)
        raise_later(wait->raised);
    PyErr_Restore(wait->before[0], wait->before[1], wait->before[2]);
    return r;
}
