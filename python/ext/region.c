/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Region: address space, its pages mapped and unmapped one by one, or a worker's region as its scheduler has
 * it. It keeps its client alive. When the client is closed, the region is gone at the library, too.
 */

#include "native.h"

PyTypeObject *py_region_type;

static struct region_object *self_of(PyObject *object)
{
    return (struct region_object *)object;
}

/* ---- Using and closing ---- */

bool py_region_is_gone(const struct region_object *self)
{
    return !self->region || !self->client->client;
}

static void close_now(struct region_object *self)
{
    struct kvc_region *region = self->region;
    bool gone = py_region_is_gone(self);
    struct wait wait;

    self->region = NULL;
    if (gone)
        return;
    self->client->n_users++;
    Py_INCREF(self->client);
    wait_begin(&wait);
    kvc_region_close(region);
    wait_end(&wait, 0);
    py_client_leave(self->client);
}

bool py_region_enter(struct region_object *self)
{
    if (self->closed) {
        errors_raise_closed("region");
        return false;
    }
    if (!py_client_enter(self->client))
        return false;
    self->n_users++;
    Py_INCREF(self);
    return true;
}

void py_region_leave(struct region_object *self)
{
    struct client_object *client = self->client;

    Py_INCREF(client);
    if (--self->n_users == 0 && self->closed)
        close_now(self);
    Py_DECREF(self);
    py_client_leave(client);
    Py_DECREF(client);
}

PyObject *py_region_new(struct client_object *client, struct kvc_region *region)
{
    PyObject *object = PyType_GenericAlloc(py_region_type, 0);
    struct region_object *self = self_of(object);
    struct wait wait;

    if (!object) {
        wait_begin(&wait);
        kvc_region_close(region);
        wait_end(&wait, 0);
        return NULL;
    }
    Py_INCREF(client);
    self->client = client;
    self->region = region;
    self->segments = kvc_region_segments(region);
    if (kvc_region_address(region))
        self->span_bytes = (self->segments - 1) * kvc_region_stride(region) +
                           kvc_region_page_bytes(region) / self->segments * kvc_region_pages(region);
    return object;
}

static PyObject *refuse_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return PyErr_Format(PyExc_TypeError, "regions come of Client.open_region() and Client.attach()");
}

static void region_dealloc(PyObject *object)
{
    struct region_object *self = self_of(object);
    PyTypeObject *type = Py_TYPE(object);

    PyObject_GC_UnTrack(object);
    close_now(self);
    Py_CLEAR(self->client);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int region_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(self_of(object)->client);
    Py_VISIT(Py_TYPE(object));
    return 0;
}

/* ---- Methods ---- */

typedef int (*pages_fn)(struct kvc_region *region, const uint64_t *pages, size_t n);

static PyObject *change_pages(PyObject *object, PyObject *pages, pages_fn change)
{
    struct region_object *self = self_of(object);
    struct numbers numbers;
    PyObject *done;
    struct wait wait;
    int r;

    if (numbers_init(&numbers, pages) < 0)
        return NULL;
    if (!py_region_enter(self)) {
        numbers_deinit(&numbers);
        return NULL;
    }
    wait_begin(&wait);
    r = wait_end(&wait, change(self->region, numbers.all, numbers.n));
    done = errors_check(r);
    py_region_leave(self);
    numbers_deinit(&numbers);
    return done;
}

static PyObject *region_map(PyObject *object, PyObject *pages)
{
    return change_pages(object, pages, kvc_region_map);
}

static PyObject *region_unmap(PyObject *object, PyObject *pages)
{
    return change_pages(object, pages, kvc_region_unmap);
}

typedef int (*range_fn)(struct kvc_region *region, uint64_t first, uint64_t n);

static PyObject *change_range(PyObject *object, PyObject *args, range_fn change)
{
    struct region_object *self = self_of(object);
    uint64_t first, n;
    PyObject *done;
    struct wait wait;
    int r;

    if (!PyArg_ParseTuple(args, "O&O&", arg_u64, &first, arg_u64, &n) || !py_region_enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, change(self->region, first, n));
    done = errors_check(r);
    py_region_leave(self);
    return done;
}

static PyObject *region_pin(PyObject *object, PyObject *args)
{
    return change_range(object, args, kvc_region_pin);
}

static PyObject *region_unpin(PyObject *object, PyObject *args)
{
    return change_range(object, args, kvc_region_unpin);
}

static PyObject *region_tensor(PyObject *object, PyObject *args)
{
    struct region_object *self = self_of(object);
    uint64_t offset, n_bytes;
    PyObject *made;

    if (!PyArg_ParseTuple(args, "O&O&:tensor", arg_u64, &offset, arg_u64, &n_bytes) || !py_region_enter(self))
        return NULL;
    if (offset > self->span_bytes || n_bytes > self->span_bytes - offset)
        made = PyErr_Format(PyExc_ValueError, "%llu bytes from byte %llu on are not all of the region's %llu",
                            (unsigned long long)n_bytes, (unsigned long long)offset,
                            (unsigned long long)self->span_bytes);
    else
        made = py_tensor_new(self, offset, n_bytes);
    py_region_leave(self);
    return made;
}

static PyObject *region_close(PyObject *object, PyObject *ignored)
{
    struct region_object *self = self_of(object);

    self->closed = true;
    if (self->n_users == 0)
        close_now(self);
    Py_RETURN_NONE;
}

typedef uint64_t (*get_fn)(const struct kvc_region *region);

static PyObject *get(PyObject *object, get_fn read)
{
    struct region_object *self = self_of(object);
    uint64_t value;

    if (!py_region_enter(self))
        return NULL;
    value = read(self->region);
    py_region_leave(self);
    return PyLong_FromUnsignedLongLong(value);
}

static PyObject *get_address(PyObject *object, void *closure)
{
    return get(object, kvc_region_address);
}

static PyObject *get_stride(PyObject *object, void *closure)
{
    return get(object, kvc_region_stride);
}

static PyObject *get_pages(PyObject *object, void *closure)
{
    return get(object, kvc_region_pages);
}

static PyObject *get_page_bytes(PyObject *object, void *closure)
{
    return get(object, kvc_region_page_bytes);
}

static PyObject *get_segments(PyObject *object, void *closure)
{
    return PyLong_FromUnsignedLongLong(self_of(object)->segments);
}

static PyObject *get_span(PyObject *object, void *closure)
{
    return PyLong_FromUnsignedLongLong(self_of(object)->span_bytes);
}

static PyObject *get_closed(PyObject *object, void *closure)
{
    return PyBool_FromLong(self_of(object)->closed || self_of(object)->client->closed);
}

static PyMethodDef methods[] = {
    {"map", region_map, METH_O, "map(pages)\n\nBacks pages, all or none: kvc_region_map()."},
    {"unmap", region_unmap, METH_O, "unmap(pages)\n\nTakes their memory away: kvc_region_unmap()."},
    {"pin", region_pin, METH_VARARGS, "pin(first, n)\n\nMapped pages that stay: kvc_region_pin()."},
    {"unpin", region_unpin, METH_VARARGS, "unpin(first, n)\n\nkvc_region_unpin()."},
    {"tensor", region_tensor, METH_VARARGS,
     "tensor(offset, n_bytes) -> capsule\n\n"
     "The region's bytes from `offset` on as a DLPack capsule, one dimension of unsigned bytes: on the GPU, "
     "or, when that is emulated, on the CPU. What is not mapped faults (or reads zero, with HOLES_ZERO). The "
     "addresses stay reserved as long as a tensor lives, also when the region is closed."},
    {"close", region_close, METH_NOARGS,
     "close()\n\nReturns its memory, once no other thread is in a call on it."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"address", get_address, NULL, "Of page 0 in segment 0; 0 for a worker's.", NULL},
    {"stride_bytes", get_stride, NULL, "From one segment to the next.", NULL},
    {"pages", get_pages, NULL, "Capacity.", NULL},
    {"segments", get_segments, NULL, "Parts in which every page has its share.", NULL},
    {"page_bytes", get_page_bytes, NULL, "Of one page over all segments.", NULL},
    {"span_bytes", get_span, NULL, "From its first address to its last.", NULL},
    {"closed", get_closed, NULL, "Whether it, or its client, was closed.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Address space for pages; of Client.open_region() or Client.attach()."},
    {Py_tp_new, refuse_new},
    {Py_tp_dealloc, region_dealloc},
    {Py_tp_traverse, region_traverse},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvcached._native.Region",
    .basicsize = sizeof(struct region_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

int py_region_add_to(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);

    if (!type)
        return -1;
    py_region_type = (PyTypeObject *)type;
    Py_INCREF(type);
    return PyModule_AddObject(module, "Region", type);
}
