/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Numbers in and out of Python's lists.
 */

#include <limits.h>
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

PyObject *text_of(const char *sentence)
{
    return PyUnicode_DecodeUTF8(sentence, (Py_ssize_t)strlen(sentence), "replace");
}

/* ---- Single numbers ---- */

static int refuse(PyObject *number, long long least, unsigned long long most)
{
    PyErr_Format(PyExc_ValueError, "%S is not a number from %lld to %llu", number, least, most);
    return -1;
}

/* Python says it is an OverflowError, but not which number. */
static bool is_out_of_range(void)
{
    if (!PyErr_Occurred() || !PyErr_ExceptionMatches(PyExc_OverflowError))
        return false;
    PyErr_Clear();
    return true;
}

static int long_to_u64(PyObject *number, uint64_t *ret)
{
    unsigned long long value = PyLong_AsUnsignedLongLong(number);

    if (value == (unsigned long long)-1 && is_out_of_range())
        return refuse(number, 0, UINT64_MAX);
    *ret = value;
    return value == (unsigned long long)-1 && PyErr_Occurred() ? -1 : 0;
}

int number_to_u64(PyObject *object, uint64_t *ret)
{
    PyObject *number;
    int r;

    if (PyLong_Check(object))
        return long_to_u64(object, ret);
    number = PyNumber_Index(object);
    r = number ? long_to_u64(number, ret) : -1;
    Py_XDECREF(number);
    return r;
}

static int number_to_u32(PyObject *object, uint32_t *ret)
{
    uint64_t value = 0;

    if (number_to_u64(object, &value) < 0)
        return -1;
    if (value > UINT32_MAX)
        return refuse(object, 0, UINT32_MAX);
    *ret = (uint32_t)value;
    return 0;
}

static int number_to_int(PyObject *object, int *ret)
{
    PyObject *number = PyNumber_Index(object);
    long value = number ? PyLong_AsLong(number) : 0;
    int r = number ? 0 : -1;

    if (number && ((value == -1 && is_out_of_range()) || value < INT_MIN || value > INT_MAX))
        r = refuse(number, INT_MIN, INT_MAX);
    Py_XDECREF(number);
    *ret = (int)value;
    return r;
}

int arg_u64(PyObject *object, void *ret)
{
    return number_to_u64(object, ret) == 0;
}

int arg_u32(PyObject *object, void *ret)
{
    return number_to_u32(object, ret) == 0;
}

int arg_int(PyObject *object, void *ret)
{
    return number_to_int(object, ret) == 0;
}

/* ---- Lists ---- */

/* An __index__ may have shortened the list, or thrown out the very item. A new reference. */
static PyObject *item_at(PyObject *list, Py_ssize_t i)
{
    PyObject *item = PyList_GetItem(list, i);

    Py_XINCREF(item);
    return item;
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
        PyObject *item = item_at(list, i);

        r = item ? number_to_u32(item, &ids->all[i]) : -1;
        Py_XDECREF(item);
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
        PyObject *item = item_at(list, (Py_ssize_t)i);

        if (!item || number_to_u64(item, &numbers->all[i]) < 0)
            numbers_deinit(numbers);
        Py_XDECREF(item);
    }
    Py_XDECREF(list);
    return numbers->all ? 0 : -1;
}

void numbers_deinit(struct numbers *numbers)
{
    PyMem_Free(numbers->all);
    numbers->all = NULL;
}

void dict_put(PyObject **dict, const char *name, PyObject *value)
{
    if (*dict && (!value || PyDict_SetItemString(*dict, name, value) < 0))
        Py_CLEAR(*dict);
    Py_XDECREF(value);
}
