/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvcached._native: libkvclient for Python, object by object and call by call. What an engine's integration
 * makes of it is Python (kvcached/). Built for the stable ABI, so one file serves every CPython from 3.9 on.
 *
 * There is one module in a process, the main interpreter's: what belongs to the library, its log and its
 * threads, is there once, and signals come to the main interpreter only.
 */

#include "native.h"

static PyObject *close_all(PyObject *module, PyObject *ignored)
{
    py_client_close_all();
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"set_log_handler", log_set_handler, METH_O,
     "set_log_handler(handler)\n\nhandler(level, sentence) is called for what the library has to say, on the "
     "main thread; level 0 to 3: debug, info, warning, error. None: nobody."},
    {"_on_exit", close_all, METH_NOARGS, "Closes all clients; called at the interpreter's end."},
    {NULL, NULL, 0, NULL},
};

static int add_constants(PyObject *module)
{
    static const struct {
        const char *name;
        int value;
    } constants[] = {
        {"ROLE_ENGINE", KVC_ROLE_ENGINE},
        {"ROLE_WORKER", KVC_ROLE_WORKER},
        {"ROLE_SCHEDULER", KVC_ROLE_SCHEDULER},
        {"ROLE_CONTROLLER", KVC_ROLE_CONTROLLER},
        {"ZERO_ON_MAP", KVC_REGION_ZERO_ON_MAP},
        {"HOLES_ZERO", KVC_REGION_HOLES_ZERO},
        {"ORDERED", KVC_REGION_ORDERED},
        {"E_LIMIT", KVC_E_LIMIT},
        {"E_BUDGET", KVC_E_BUDGET},
        {"E_DEVICE_MEMORY", KVC_E_DEVICE_MEMORY},
        {"E_FROZEN", KVC_E_FROZEN},
        {"E_FORKED", KVC_E_FORKED},
        {"E_NO_BLOCKS", KVC_E_NO_BLOCKS},
        {"E_NOT_ALLOCATED", KVC_E_NOT_ALLOCATED},
        {"E_WORKER", KVC_E_WORKER},
        {"E_WORKER_GONE", KVC_E_WORKER_GONE},
        {"E_IN_DOUBT", KVC_E_IN_DOUBT},
    };

    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    return PyModule_AddStringConstant(module, "version", kvc_version());
}

static int register_exit(PyObject *module)
{
    PyObject *atexit = PyImport_ImportModule("atexit");
    PyObject *function = PyObject_GetAttrString(module, "_on_exit");
    PyObject *answer = atexit && function ? PyObject_CallMethod(atexit, "register", "O", function) : NULL;

    Py_XDECREF(atexit);
    Py_XDECREF(function);
    Py_XDECREF(answer);
    return answer ? 0 : -1;
}

static PyObject *only;

static PyObject *create(PyObject *spec, PyModuleDef *definition)
{
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0)
        return PyErr_Format(PyExc_ImportError,
                            "kvcached works in the main interpreter only, and this is a sub-interpreter");
    Py_XINCREF(only);
    return only ? only : PyModule_New("kvcached._native");
}

/* Once, also where it is imported anew. */
static int fill(PyObject *module)
{
    if (module == only)
        return 0;
    if (threads_init() < 0 || log_init() < 0 || errors_add_to(module) < 0 || py_client_add_to(module) < 0 ||
        py_region_add_to(module) < 0 || py_blocks_add_to(module) < 0 || add_constants(module) < 0 ||
        register_exit(module) < 0)
        return -1;
    Py_INCREF(module);
    only = module;
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_create, create},
    {Py_mod_exec, fill},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kvcached._native",
    .m_doc = "libkvclient: borrow GPU memory from kvcachedd, page by page. See kvclient.h.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
