/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Client: a connection to the daemon of one GPU. Its library thread calls the engine's reclaim function; that
 * thread waits for the interpreter's lock, so whoever closes the client, which waits for the thread, gives
 * the lock up first. The thread itself cannot close the client: another one does, when the function has
 * closed it, or the last reference goes there. At the interpreter's end all clients are closed before it is
 * gone, those aside that a thread is in, which may never come back: the process' end closes them.
 */

#include "native.h"

PyTypeObject *py_client_type;

static struct client_object *open_clients;

/* Whose `reclaim` this thread is in. */
struct reclaiming {
    struct client_object *client;
    struct reclaiming *outer;
};
static _Thread_local struct reclaiming *reclaiming;

static struct client_object *self_of(PyObject *object)
{
    return (struct client_object *)object;
}

/* ---- Using and closing ---- */

static void enlist(struct client_object *self)
{
    self->next = open_clients;
    self->at = &open_clients;
    if (self->next)
        self->next->at = &self->next;
    open_clients = self;
}

/* Once or twice. */
static void delist(struct client_object *self)
{
    *self->at = self->next;
    if (self->next)
        self->next->at = self->at;
    self->at = &self->next;
    self->next = NULL;
}

static bool is_reclaiming(const struct client_object *self)
{
    for (const struct reclaiming *r = reclaiming; r; r = r->outer)
        if (r->client == self)
            return true;
    return false;
}

static void client_close(struct client_object *self);

static void close_apart(PyObject *object)
{
    client_close(self_of(object));
}

static void close_now(struct client_object *self)
{
    struct kvc_client *client = self->client;
    struct wait wait;

    if (!client)
        return;
    if (is_reclaiming(self)) {
        self->closed = true;
        if (!threads_run_apart(close_apart, (PyObject *)self))
            Py_INCREF(self); /* the interpreter's end closes it */
        return;
    }
    self->closing = true;
    self->client = NULL;
    delist(self);
    wait_begin(&wait);
    kvc_close(client);
    wait_end(&wait, 0);
}

bool py_client_enter(struct client_object *self)
{
    if (self->closed || !self->client) {
        errors_raise_closed("client");
        return false;
    }
    self->n_users++;
    Py_INCREF(self);
    return true;
}

void py_client_leave(struct client_object *self)
{
    if (--self->n_users == 0 && self->closed)
        close_now(self);
    Py_DECREF(self);
}

static void client_close(struct client_object *self)
{
    self->closed = true;
    if (self->n_users == 0)
        close_now(self);
}

void py_client_close_all(void)
{
    while (open_clients) {
        struct client_object *self = open_clients;

        Py_INCREF(self);
        if (self->n_users == 0 && self->n_reclaiming == 0) {
            client_close(self);
        } else {
            self->closed = true;
            delist(self);
        }
        Py_DECREF(self);
    }
    log_end();
    threads_end();
}

/* ---- Reclaim ---- */

static void call_reclaim(struct client_object *self, uint64_t bytes, unsigned deadline_ms)
{
    struct reclaiming here = {self, reclaiming};
    PyObject *answer;

    Py_INCREF(self);
    reclaiming = &here;
    self->n_reclaiming++;
    answer = PyObject_CallFunction(self->reclaim, "KI", (unsigned long long)bytes, deadline_ms);
    if (!answer)
        PyErr_WriteUnraisable(self->reclaim);
    Py_XDECREF(answer);
    if (Py_REFCNT(self) == 1)
        close_now(self); /* which keeps it for the other thread */
    self->n_reclaiming--;
    reclaiming = here.outer;
    Py_DECREF(self);
}

/* Who closes the client has perhaps begun to take the object apart. */
static void on_reclaim(void *data, struct kvc_client *client, uint64_t bytes, unsigned deadline_ms)
{
    struct client_object *self = data;
    PyGILState_STATE state;

    if (!threads_enter(&state))
        return;
    if (!self->closing)
        call_reclaim(self, bytes, deadline_ms);
    threads_leave(state);
}

/* ---- Opening ---- */

static int check_reclaim(struct client_object *self, PyObject *reclaim)
{
    if (reclaim == Py_None)
        return 0;
    if (!PyCallable_Check(reclaim)) {
        PyErr_SetString(PyExc_TypeError, "reclaim is neither callable nor None");
        return -1;
    }
    Py_INCREF(reclaim);
    self->reclaim = reclaim;
    self->listener = (struct kvc_listener){.size = sizeof(self->listener), .reclaim = on_reclaim};
    return 0;
}

/* Counts as a call on it, in case that somebody closes it meanwhile. */
static int open_client(struct client_object *self, const struct kvc_options *options)
{
    struct kvc_client *client;
    struct wait wait;
    int r;

    self->opened = true;
    self->n_users++;
    Py_INCREF(self);
    wait_begin(&wait);
    r = wait_end(&wait, kvc_open(options, &client));
    if (r == 0) {
        self->client = client;
        enlist(self);
    } else {
        self->closed = true;
        errors_raise(r);
    }
    py_client_leave(self);
    return r == 0 ? 0 : -1;
}

static int client_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"socket",
                            "instance",
                            "gpu",
                            "role",
                            "timeout_ms",
                            "own_thread",
                            "min_reserved_pages",
                            "max_reserved_pages",
                            "max_reserved_bytes",
                            "gpu_utilization",
                            "report_ms",
                            "reclaim",
                            NULL};
    struct client_object *self = self_of(object);
    struct kvc_options options = {
        .size = sizeof(options),
        .own_thread = 1,
        .min_reserved_pages = -1,
        .max_reserved_pages = -1,
        .log = log_receive,
        .interrupted = wait_is_over,
        .listener_data = self,
    };
    PyObject *reclaim = Py_None;
    uint32_t report_ms = 0;
    int role = 0;

    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "|$zzzO&O&pO&O&O&dO&O:Client", names, &options.socket, &options.instance,
            &options.gpu, arg_int, &role, arg_int, &options.timeout_ms, &options.own_thread, arg_int,
            &options.min_reserved_pages, arg_int, &options.max_reserved_pages, arg_u64,
            &options.max_reserved_bytes, &options.gpu_utilization, arg_u32, &report_ms, &reclaim))
        return -1;
    if (self->opened) {
        PyErr_SetString(PyExc_RuntimeError, "a client is opened once");
        return -1;
    }
    if (check_reclaim(self, reclaim) < 0)
        return -1;
    options.report_ms = report_ms;
    options.role = (enum kvc_role)role;
    options.listener = self->reclaim ? &self->listener : NULL;
    return open_client(self, &options);
}

static void client_dealloc(PyObject *object)
{
    struct client_object *self = self_of(object);
    PyTypeObject *type = Py_TYPE(object);

    PyObject_GC_UnTrack(object);
    close_now(self);
    Py_CLEAR(self->reclaim);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int client_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(self_of(object)->reclaim);
    Py_VISIT(Py_TYPE(object));
    return 0;
}

/* The library's thread may be about to call what breaks the cycle. */
static int client_clear(PyObject *object)
{
    client_close(self_of(object));
    if (!self_of(object)->client)
        Py_CLEAR(self_of(object)->reclaim);
    return 0;
}

/* ---- Methods ---- */

static PyObject *client_status(PyObject *object, PyObject *ignored)
{
    struct kvc_status status = {.size = sizeof(status)};
    struct client_object *self = self_of(object);
    PyObject *dict;
    int r;

    if (!py_client_enter(self))
        return NULL;
    r = kvc_status(self->client, &status);
    dict = r < 0 ? errors_raise(r) : PyDict_New();
    py_client_leave(self);
    DICT_PUT_U64(dict, status, limit_bytes);
    DICT_PUT_U64(dict, status, used_bytes);
    DICT_PUT_U64(dict, status, budget_bytes);
    DICT_PUT_U64(dict, status, mapped_bytes);
    DICT_PUT_U64(dict, status, cached_bytes);
    DICT_PUT_BOOL(dict, status, over_limit);
    DICT_PUT_BOOL(dict, status, frozen);
    DICT_PUT_BOOL(dict, status, connected);
    return dict;
}

static PyObject *list_classes(const struct kvc_device *device)
{
    PyObject *list = PyList_New(0);

    for (uint32_t i = 0; list && i < device->n_classes; i++) {
        PyObject *bytes = PyLong_FromUnsignedLongLong(device->class_bytes[i]);

        if (!bytes || PyList_Append(list, bytes) < 0)
            Py_CLEAR(list);
        Py_XDECREF(bytes);
    }
    return list;
}

static PyObject *client_device(PyObject *object, PyObject *ignored)
{
    struct kvc_device device = {.size = sizeof(device)};
    struct client_object *self = self_of(object);
    PyObject *dict;
    int r;

    if (!py_client_enter(self))
        return NULL;
    r = kvc_device(self->client, &device);
    dict = r < 0 ? errors_raise(r) : PyDict_New();
    py_client_leave(self);
    dict_put(&dict, "uuid", PyUnicode_FromString(device.uuid));
    DICT_PUT_U64(dict, device, total_bytes);
    DICT_PUT_U64(dict, device, granularity_bytes);
    dict_put(&dict, "class_bytes", list_classes(&device));
    DICT_PUT_BOOL(dict, device, emulated);
    dict_put(&dict, "ordinal", PyLong_FromLong(device.ordinal));
    return dict;
}

static PyObject *client_trim(PyObject *object, PyObject *ignored)
{
    struct client_object *self = self_of(object);
    PyObject *done;
    struct wait wait;
    int r;

    if (!py_client_enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, kvc_trim(self->client));
    done = errors_check(r);
    py_client_leave(self);
    return done;
}

static PyObject *client_dispatch(PyObject *object, PyObject *ignored)
{
    struct client_object *self = self_of(object);
    PyObject *done;
    struct wait wait;
    int r;

    if (!py_client_enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, kvc_dispatch(self->client));
    done = errors_check(r);
    py_client_leave(self);
    return done;
}

static PyObject *client_open_region(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"pages", "page_bytes", "segments", "stride_bytes",
                            "flags", "group",      "rank",     NULL};
    struct client_object *self = self_of(object);
    struct kvc_region_options options = {.size = sizeof(options)};
    struct kvc_region *region;
    PyObject *made = NULL;
    struct wait wait;
    int r;

    options.segments = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&|$O&O&O&O&O&:open_region", names, arg_u64,
                                     &options.pages, arg_u64, &options.page_bytes, arg_u32, &options.segments,
                                     arg_u64, &options.stride_bytes, arg_u32, &options.flags, arg_u32,
                                     &options.group, arg_u32, &options.rank) ||
        !py_client_enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, kvc_region_open(self->client, &options, &region));
    made = r < 0 ? errors_raise(r) : py_region_new(self, region);
    py_client_leave(self);
    return made;
}

static PyObject *client_attach(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"group", "rank", "timeout_ms", NULL};
    struct client_object *self = self_of(object);
    struct kvc_region *region;
    int timeout_ms = 0, r;
    uint32_t group, rank;
    PyObject *made;
    struct wait wait;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&|$O&:attach", names, arg_u32, &group, arg_u32, &rank,
                                     arg_int, &timeout_ms) ||
        !py_client_enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, kvc_region_attach(self->client, group, rank, timeout_ms, &region));
    made = r < 0 ? errors_raise(r) : py_region_new(self, region);
    py_client_leave(self);
    return made;
}

static PyObject *client_reserve(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"bytes", "foreign_bytes", "timeout_ms", NULL};
    struct client_object *self = self_of(object);
    uint64_t bytes = 0, foreign_bytes = 0;
    int timeout_ms = 0, r;
    PyObject *done;
    struct wait wait;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|O&$O&:reserve", names, arg_u64, &bytes, arg_u64,
                                     &foreign_bytes, arg_int, &timeout_ms) ||
        !py_client_enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, kvc_reserve(self->client, bytes, foreign_bytes, timeout_ms));
    done = errors_check(r);
    py_client_leave(self);
    return done;
}

static PyObject *client_release(PyObject *object, PyObject *ignored)
{
    struct client_object *self = self_of(object);
    PyObject *done;
    struct wait wait;
    int r;

    if (!py_client_enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, kvc_release(self->client));
    done = errors_check(r);
    py_client_leave(self);
    return done;
}

static PyObject *client_close_method(PyObject *object, PyObject *ignored)
{
    client_close(self_of(object));
    Py_RETURN_NONE;
}

static PyObject *client_get_closed(PyObject *object, void *closure)
{
    return PyBool_FromLong(self_of(object)->closed);
}

static PyMethodDef methods[] = {
    {"open_region", (PyCFunction)(void (*)(void))client_open_region, METH_VARARGS | METH_KEYWORDS,
     "open_region(pages, page_bytes, *, segments=1, stride_bytes=0, flags=0, group=0, rank=0) -> Region\n\n"
     "Reserves address space: kvc_region_open()."},
    {"attach", (PyCFunction)(void (*)(void))client_attach, METH_VARARGS | METH_KEYWORDS,
     "attach(group, rank, *, timeout_ms=0) -> Region\n\nA worker's region: kvc_region_attach()."},
    {"reserve", (PyCFunction)(void (*)(void))client_reserve, METH_VARARGS | METH_KEYWORDS,
     "reserve(bytes, foreign_bytes=0, *, timeout_ms=0)\n\nMemory for the instance's engines: "
     "kvc_reserve()."},
    {"release", client_release, METH_NOARGS, "release()\n\nWhat is left of that: kvc_release()."},
    {"status", client_status, METH_NOARGS, "status() -> dict\n\nBytes and flags: kvc_status()."},
    {"device", client_device, METH_NOARGS, "device() -> dict\n\nThe GPU: kvc_device()."},
    {"trim", client_trim, METH_NOARGS, "trim()\n\nGives back what is kept without need: kvc_trim()."},
    {"dispatch", client_dispatch, METH_NOARGS, "dispatch()\n\nFor clients without a thread: kvc_dispatch()."},
    {"close", client_close_method, METH_NOARGS,
     "close()\n\nReturns all memory and disconnects, once no other thread is in a call on it."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"closed", client_get_closed, NULL, "Whether close() was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Client(*, socket=None, instance=None, gpu=None, role=0, timeout_ms=0, own_thread=True, "
                "min_reserved_pages=-1, max_reserved_pages=-1, max_reserved_bytes=0, gpu_utilization=0.0, "
                "report_ms=0, reclaim=None)\n\n"
                "A connection to the daemon of one GPU: kvc_open(). `reclaim(bytes, deadline_ms)` is called "
                "on a thread of the library."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, client_init},
    {Py_tp_dealloc, client_dealloc},
    {Py_tp_traverse, client_traverse},
    {Py_tp_clear, client_clear},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvcached._native.Client",
    .basicsize = sizeof(struct client_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

int py_client_add_to(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);

    if (!type)
        return -1;
    py_client_type = (PyTypeObject *)type;
    Py_INCREF(type);
    return PyModule_AddObject(module, "Client", type);
}
