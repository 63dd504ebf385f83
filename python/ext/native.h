/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the parts of the extension share: errors, the lives of handles, lists of numbers.
 *
 * Handles. A call that may wait gives up the interpreter's lock, and another thread may close its handle
 * meanwhile. So each call enters the handle and all that it stands on, and closing takes effect at once for
 * new calls, but at the library only when the last call has left. All of this is under the interpreter's
 * lock.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x03090000
#include <Python.h>

#include <stdbool.h>

#include "kvclient.h"

/* ---- Threads ---- */

int threads_init(void);

/* Takes the interpreter's lock on a thread that may not be Python's. False: the interpreter is ending. */
bool threads_enter(PyGILState_STATE *ret);
void threads_leave(PyGILState_STATE state);

/* Has another thread call run(object), under the lock, with a reference of its own. False: there is none. */
bool threads_run_apart(void (*run)(PyObject *object), PyObject *object);

/* From now on threads_enter() refuses. */
void threads_end(void);

/* ---- Waiting ---- */

/* A call of the library that may wait. Between the two the thread has not the interpreter's lock, and signals
 * are handled. */
struct wait {
    struct wait *outer; /* this one is of a signal's handler there */
    PyThreadState *thread;
    PyObject *before[3]; /* an exception that is on its way already */
    PyObject *raised;    /* by a signal's handler */
    bool over;           /* one of the two is to end the program, or so */
};
void wait_begin(struct wait *wait);

/* Takes the call's result, and returns it. Where a handler's exception has ended the call that is set, and
 * KVC_E_INTERRUPTED returned. Who has no use for an exception gives 0: it comes later. */
int wait_end(struct wait *wait, int r);

/* For kvc_options. */
int wait_is_over(void *data);

/* ---- Errors ---- */

int errors_add_to(PyObject *module);

/* Sets the exception that fits, with the library's sentence and its number in `code`; one that has ended the
 * call stays. Returns NULL. */
PyObject *errors_raise(int error);
PyObject *errors_raise_closed(const char *what);

/* None, or as errors_raise() where there is an error. The library's sentence lasts until its next call on
 * this thread: so this comes before a handle is left, which may close it. */
PyObject *errors_check(int r);

/* ---- Clients ---- */

struct client_object {
    PyObject_HEAD
    struct kvc_client *client;        /* NULL: closed, or never opened */
    struct client_object *next, **at; /* of all that are open */
    PyObject *reclaim;                /* NULL: none */
    struct kvc_listener listener;
    unsigned n_users, n_reclaiming; /* calls by Python; calls of `reclaim` */
    bool opened, closed, closing;
};

extern PyTypeObject *py_client_type;
int py_client_add_to(PyObject *module);

/* False: it is closed, and an exception set. */
bool py_client_enter(struct client_object *self);
void py_client_leave(struct client_object *self);

/* At the interpreter's end: closes all clients, and keeps the library's threads out of it from then on. */
void py_client_close_all(void);

/* ---- Regions ---- */

struct region_object {
    PyObject_HEAD
    struct client_object *client;
    struct kvc_region *region;
    uint64_t segments, span_bytes; /* 0 where it has no addresses */
    unsigned n_users;
    bool closed;
};

extern PyTypeObject *py_region_type;
int py_region_add_to(PyObject *module);

/* Takes the region over, also when it fails. */
PyObject *py_region_new(struct client_object *client, struct kvc_region *region);
bool py_region_enter(struct region_object *self);
void py_region_leave(struct region_object *self);

/* At the library, with its client. */
bool py_region_is_gone(const struct region_object *self);

/* Memory of a region as a DLPack capsule. */
PyObject *py_tensor_new(struct region_object *region, uint64_t offset, uint64_t n_bytes);

/* ---- Blocks ---- */

int py_blocks_add_to(PyObject *module);

/* ---- The library's words ---- */

int log_init(void);
void log_end(void); /* what comes later is dropped */
void log_receive(void *data, enum kvc_log_level level, const char *sentence);
PyObject *log_set_handler(PyObject *module, PyObject *handler);

/* ---- Numbers ---- */

/* Of an int, or what is one by __index__. -1: TypeError, or a ValueError that names it. Those that take an
 * address are converters of PyArg_Parse ("O&"). */
int number_to_u64(PyObject *object, uint64_t *ret);
int arg_u64(PyObject *object, void *ret); /* uint64_t */
int arg_u32(PyObject *object, void *ret); /* uint32_t */
int arg_int(PyObject *object, void *ret); /* int */

/* The library's sentence, which may quote anything. */
PyObject *text_of(const char *sentence);

/* ---- Lists of numbers ---- */

#define NUMBERS_FEW 256

/* Of a list or any other sequence or iterable. The first few need no memory of their own. */
struct ids {
    uint32_t few[NUMBERS_FEW], *all;
    size_t n;
};
int ids_init(struct ids *ids, PyObject *list);
int ids_reserve(struct ids *ids, size_t n); /* for an answer */
PyObject *ids_to_list(const struct ids *ids);
void ids_deinit(struct ids *ids);

struct numbers {
    uint64_t *all;
    size_t n;
};
int numbers_init(struct numbers *numbers, PyObject *list);
void numbers_deinit(struct numbers *numbers);

/* ---- Dictionaries ---- */

/* Adds `value`, and drops it. After an exception, perhaps that of a value that is NULL, there is no
 * dictionary any more, and nothing is added. */
void dict_put(PyObject **dict, const char *name, PyObject *value);

/* A field of a struct, by its name there. */
#define DICT_PUT_U64(dict, from, field) dict_put(&(dict), #field, PyLong_FromUnsignedLongLong((from).field))
#define DICT_PUT_BOOL(dict, from, field) dict_put(&(dict), #field, PyBool_FromLong((from).field))
