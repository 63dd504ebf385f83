/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks of libkvclient as a Python extension: the shortest way from Python to the library, to measure what
 * calling it from there costs. A Blocks object is a client, a region and its blocks, of which every page is
 * mapped.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kvclient.h"

#define PAGE_BYTES (UINT64_C(2) << 20)
#define BLOCK_BYTES (UINT64_C(16) << 10)
#define PAGES 16
#define BLOCKS_MAX 256 /* in one call */

struct blocks_object {
    PyObject_HEAD struct kvc_client *client;
    struct kvc_region *region;
    struct kvc_blocks *blocks;
};

static PyObject *fail(int error)
{
    const char *details = kvc_last_error();

    return PyErr_Format(PyExc_RuntimeError, "%s", *details ? details : kvc_strerror(error));
}

static int open_blocks(struct blocks_object *self, const char *socket)
{
    const struct kvc_options options = {
        .size = sizeof(options),
        .socket = socket,
        .instance = "python",
        .min_reserved_pages = 0,
        .max_reserved_pages = PAGES,
    };
    const struct kvc_region_options region = {
        .size = sizeof(region), .page_bytes = PAGE_BYTES, .pages = PAGES};
    const struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = BLOCK_BYTES};
    int r;

    r = kvc_open(&options, &self->client);
    if (r == 0)
        r = kvc_region_open(self->client, &region, &self->region);
    if (r == 0)
        r = kvc_blocks_open(&self->region, 1, &blocks, &self->blocks);
    return r;
}

/* So that every later call finds mapped pages. */
static int touch_all(struct kvc_blocks *blocks)
{
    static uint32_t ids[PAGES * PAGE_BYTES / BLOCK_BYTES];
    const size_t n = sizeof(ids) / sizeof(ids[0]);
    int r;

    r = kvc_blocks_alloc(blocks, n, ids);
    return r < 0 ? r : kvc_blocks_free(blocks, ids, n, 0);
}

static int blocks_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    struct blocks_object *self = (struct blocks_object *)object;
    const char *socket;
    int r;

    if (!PyArg_ParseTuple(args, "s", &socket))
        return -1;
    r = open_blocks(self, socket);
    if (r == 0)
        r = touch_all(self->blocks);
    if (r == 0)
        return 0;
    fail(r);
    return -1;
}

static void blocks_dealloc(PyObject *object)
{
    struct blocks_object *self = (struct blocks_object *)object;

    kvc_blocks_close(self->blocks);
    kvc_close(self->client);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *list_of(const uint32_t *ids, size_t n)
{
    PyObject *list = PyList_New((Py_ssize_t)n);

    for (size_t i = 0; list && i < n; i++) {
        PyObject *id = PyLong_FromUnsignedLong(ids[i]);

        if (!id)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, id);
    }
    return list;
}

static PyObject *blocks_alloc(PyObject *object, PyObject *arg)
{
    struct blocks_object *self = (struct blocks_object *)object;
    size_t n = PyLong_AsSize_t(arg);
    uint32_t ids[BLOCKS_MAX];
    int r;

    if (n > BLOCKS_MAX)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "at most %d blocks", BLOCKS_MAX);
    r = kvc_blocks_alloc(self->blocks, n, ids);
    return r < 0 ? fail(r) : list_of(ids, n);
}

static PyObject *blocks_free(PyObject *object, PyObject *list)
{
    struct blocks_object *self = (struct blocks_object *)object;
    uint32_t ids[BLOCKS_MAX];
    Py_ssize_t n;
    int r;

    if (!PyList_Check(list) || (n = PyList_GET_SIZE(list)) > BLOCKS_MAX)
        return PyErr_Format(PyExc_ValueError, "a list of at most %d blocks", BLOCKS_MAX);
    for (Py_ssize_t i = 0; i < n; i++)
        ids[i] = (uint32_t)PyLong_AsUnsignedLong(PyList_GET_ITEM(list, i));
    if (PyErr_Occurred())
        return NULL;
    r = kvc_blocks_free(self->blocks, ids, (size_t)n, 0);
    if (r < 0)
        return fail(r);
    Py_RETURN_NONE;
}

static PyObject *blocks_available(PyObject *object, PyObject *unused)
{
    return PyLong_FromUnsignedLongLong(kvc_blocks_available(((struct blocks_object *)object)->blocks));
}

static PyMethodDef methods[] = {
    {"alloc", blocks_alloc, METH_O, "A list of so many blocks."},
    {"free", blocks_free, METH_O, "Gives a list of blocks back."},
    {"available", blocks_available, METH_NOARGS, "How many blocks there are."},
    {0},
};

static PyTypeObject type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pyblocks.Blocks",
    .tp_basicsize = sizeof(struct blocks_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = blocks_init,
    .tp_dealloc = blocks_dealloc,
    .tp_methods = methods,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "pyblocks", .m_size = -1};

PyMODINIT_FUNC PyInit_pyblocks(void); /* Python finds it by its name */

PyMODINIT_FUNC PyInit_pyblocks(void)
{
    PyObject *self;

    if (PyType_Ready(&type) < 0)
        return NULL;
    self = PyModule_Create(&module);
    if (self && PyModule_AddObjectRef(self, "Blocks", (PyObject *)&type) < 0)
        Py_CLEAR(self);
    return self;
}
