/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Numbers in and out of Python's lists.
 */

#include <string.h>

#include "native.h"

/* A new reference to a list, which may be the same one. */
static PyObject *as_list(PyObject *object)
{
    if (!PyList_Check(object))
        return PySequence_List(object);
    Py_INCREF(object);
    return object;
}

static int to_id(PyObject *object, uint32_t *ret)
{
    unsigned long value = PyLong_AsUnsignedLong(object);

    if (value == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    if (value > UINT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "%lu is no number of a block", value);
        return -1;
    }
    *ret = (uint32_t)value;
    return 0;
}

int ids_reserve(struct ids *ids, size_t n)
{
    ids->n = n;
    ids->all = n <= NUMBERS_FEW ? ids->few : NULL;
    if (!ids->all && n <= PY_SSIZE_T_MAX / sizeof(*ids->all))
        ids->all = PyMem_Malloc(n * sizeof(*ids->all));
    if (ids->all)
        return 0;
    PyErr_NoMemory();
    return -1;
}

int ids_init(struct ids *ids, PyObject *object)
{
    PyObject *list = as_list(object);
    Py_ssize_t n = list ? PyList_Size(list) : -1;
    int r = -1;

    ids->all = NULL;
    if (n >= 0)
        r = ids_reserve(ids, (size_t)n);
    for (Py_ssize_t i = 0; r == 0 && i < n; i++) {
        PyObject *item = PyList_GetItem(list, i); /* an __index__ may have shortened it */

        r = item ? to_id(item, &ids->all[i]) : -1;
    }
    if (r < 0)
        ids_deinit(ids);
    Py_XDECREF(list);
    return r;
}

PyObject *ids_to_list(const struct ids *ids)
{
    PyObject *list = PyList_New((Py_ssize_t)ids->n);

    for (size_t i = 0; list && i < ids->n; i++) {
        PyObject *item = PyLong_FromUnsignedLong(ids->all[i]);

        if (!item)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, (Py_ssize_t)i, item);
    }
    return list;
}

void ids_deinit(struct ids *ids)
{
    if (ids->all != ids->few)
        PyMem_Free(ids->all);
    ids->all = NULL;
}

int numbers_init(struct numbers *numbers, PyObject *object)
{
    PyObject *list = as_list(object);
    Py_ssize_t n = list ? PyList_Size(list) : -1;

    numbers->n = n < 0 ? 0 : (size_t)n;
    numbers->all = list ? PyMem_Malloc((numbers->n + 1) * sizeof(*numbers->all)) : NULL;
    if (list && !numbers->all)
        PyErr_NoMemory();
    for (size_t i = 0; numbers->all && i < numbers->n; i++) {
        PyObject *item = PyList_GetItem(list, (Py_ssize_t)i);

        numbers->all[i] = item ? PyLong_AsUnsignedLongLong(item) : 0;
        if (!item || (numbers->all[i] == (unsigned long long)-1 && PyErr_Occurred()))
            numbers_deinit(numbers);
    }
    Py_XDECREF(list);
    return numbers->all ? 0 : -1;
}

void numbers_deinit(struct numbers *numbers)
{
    PyMem_Free(numbers->all);
    numbers->all = NULL;
}

int dict_put(PyObject *dict, const char *name, PyObject *value)
{
    int r = value ? PyDict_SetItemString(dict, name, value) : -1;

    Py_XDECREF(value);
    return r;
}
