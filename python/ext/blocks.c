/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks: what a scheduler calls all the time. On mapped pages alloc() and free() keep the interpreter's
 * lock, since giving it up may cost more than they do, and whoever gets it may keep it for milliseconds; it
 * is given up only when the daemon has to be asked, or pages given back.
 */

#include <stdlib.h>

#include "native.h"

struct blocks_object {
    PyObject_HEAD
    PyObject *regions;            /* a tuple */
    struct region_object **known; /* its items; NULL: never opened */
    Py_ssize_t n_known;
    struct kvc_blocks *blocks;
    uint64_t n_most; /* no less than there are blocks */
    unsigned n_users;
    bool closed;
};

static struct blocks_object *self_of(PyObject *object)
{
    return (struct blocks_object *)object;
}

/* ---- Using and closing ---- */

static void leave_regions(struct blocks_object *self, Py_ssize_t n)
{
    while (n-- > 0)
        py_region_leave(self->known[n]);
}

static bool enter_regions(struct blocks_object *self)
{
    for (Py_ssize_t i = 0; i < self->n_known; i++) {
        if (!py_region_enter(self->known[i])) {
            leave_regions(self, i);
            return false;
        }
    }
    return true;
}

/* With one of its regions, or of their clients, it is gone at the library. */
static bool is_gone(const struct blocks_object *self)
{
    for (Py_ssize_t i = 0; i < self->n_known; i++)
        if (py_region_is_gone(self->known[i]))
            return true;
    return !self->blocks;
}

static void close_now(struct blocks_object *self)
{
    struct kvc_blocks *blocks = self->blocks;
    bool gone = is_gone(self);
    struct wait wait;

    self->blocks = NULL;
    if (gone)
        return;
    for (Py_ssize_t i = 0; i < self->n_known; i++) {
        struct region_object *region = self->known[i];

        region->client->n_users++;
        region->n_users++;
        Py_INCREF(region->client);
        Py_INCREF(region);
    }
    wait_begin(&wait);
    kvc_blocks_close(blocks);
    wait_end(&wait, 0);
    leave_regions(self, self->n_known);
}

/* Enough for a call that keeps the interpreter's lock: nobody can close anything meanwhile. */
static bool is_open(const struct blocks_object *self)
{
    bool open = self->blocks && !self->closed;

    for (Py_ssize_t i = 0; open && i < self->n_known; i++)
        open = !self->known[i]->closed && !self->known[i]->client->closed;
    return open;
}

static bool enter(struct blocks_object *self)
{
    if (self->closed || !self->blocks) {
        errors_raise_closed("set of blocks");
        return false;
    }
    if (!enter_regions(self))
        return false;
    self->n_users++;
    Py_INCREF(self);
    return true;
}

static void leave(struct blocks_object *self)
{
    leave_regions(self, self->n_known);
    if (--self->n_users == 0 && self->closed)
        close_now(self);
    Py_DECREF(self);
}

/* ---- Opening ---- */

static int check_regions(PyObject *regions)
{
    for (Py_ssize_t i = 0; i < PyTuple_Size(regions); i++) {
        /* Not PyObject_IsInstance(), which believes objects that only say so. */
        if (PyObject_TypeCheck(PyTuple_GetItem(regions, i), py_region_type))
            continue;
        PyErr_SetString(PyExc_TypeError, "regions is not a sequence of Region");
        return -1;
    }
    return 0;
}

static int remember(struct blocks_object *self)
{
    Py_ssize_t n = PyTuple_Size(self->regions);

    self->known = PyMem_Malloc((size_t)(n + 1) * sizeof(struct region_object *));
    if (!self->known) {
        PyErr_NoMemory();
        return -1;
    }
    for (; self->n_known < n; self->n_known++)
        self->known[self->n_known] = (struct region_object *)PyTuple_GetItem(self->regions, self->n_known);
    return 0;
}

static uint64_t count_most(const struct kvc_region *region, uint64_t block_bytes)
{
    return kvc_region_pages(region) * (kvc_region_page_bytes(region) / kvc_region_segments(region)) /
           block_bytes;
}

static int open_blocks(struct blocks_object *self, const struct kvc_blocks_options *options)
{
    Py_ssize_t n = self->n_known;
    struct kvc_region **regions = PyMem_Malloc((size_t)(n + 1) * sizeof(struct kvc_region *));
    struct kvc_blocks *blocks;
    struct wait wait;
    int r;

    if (!regions) {
        PyErr_NoMemory();
        return -1;
    }
    if (!enter_regions(self)) {
        PyMem_Free(regions);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        regions[i] = self->known[i]->region;
    self->n_users++;
    Py_INCREF(self);
    wait_begin(&wait);
    r = wait_end(&wait, kvc_blocks_open(regions, (size_t)n, options, &blocks));
    PyMem_Free(regions);
    if (r == 0) {
        self->blocks = blocks;
        self->n_most = count_most(self->known[0]->region, options->block_bytes);
    } else {
        errors_raise(r);
    }
    leave(self);
    return r == 0 ? 0 : -1;
}

static int blocks_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"regions", "block_bytes", "null_block", "max_pages", "max_blocks", NULL};
    struct kvc_blocks_options options = {.size = sizeof(options)};
    struct blocks_object *self = self_of(object);
    PyObject *regions;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&|$pO&O&:Blocks", names, &regions, arg_u64,
                                     &options.block_bytes, &options.null_block, arg_u64, &options.max_pages,
                                     arg_u64, &options.max_blocks))
        return -1;
    regions = PySequence_Tuple(regions);
    if (!regions)
        return -1;
    if (check_regions(regions) < 0) {
        Py_DECREF(regions);
        return -1;
    }
    if (self->regions) {
        Py_DECREF(regions);
        PyErr_SetString(PyExc_RuntimeError, "a set of blocks is opened once");
        return -1;
    }
    self->regions = regions;
    return remember(self) < 0 ? -1 : open_blocks(self, &options);
}

static void blocks_dealloc(PyObject *object)
{
    struct blocks_object *self = self_of(object);
    PyTypeObject *type = Py_TYPE(object);

    PyObject_GC_UnTrack(object);
    close_now(self);
    PyMem_Free(self->known);
    Py_CLEAR(self->regions);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static int blocks_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(self_of(object)->regions);
    Py_VISIT(Py_TYPE(object));
    return 0;
}

/* ---- Allocating and freeing ---- */

/* For a call that keeps the interpreter's lock. False: it is closed, and an exception set. */
static bool check_open(struct blocks_object *self)
{
    if (is_open(self))
        return true;
    /* It fails, and says what of all is closed. */
    if (enter(self))
        leave(self);
    return false;
}

static int alloc_slowly(struct blocks_object *self, struct ids *ids)
{
    struct wait wait;
    int r;

    if (!enter(self))
        return -1;
    wait_begin(&wait);
    r = kvc_blocks_alloc(self->blocks, ids->n, ids->all);
    /* The exception would come before the list is anybody's. */
    if (r == 0 && wait.raised) {
        kvc_blocks_free(self->blocks, ids->all, ids->n, 0);
        r = KVC_E_INTERRUPTED;
    }
    r = wait_end(&wait, r);
    if (r < 0)
        errors_raise(r);
    leave(self);
    return r;
}

/* 0, or an error, and an exception. */
static int alloc(struct blocks_object *self, struct ids *ids)
{
    int r;

    if (!check_open(self))
        return -1;
    r = kvc_blocks_try_alloc(self->blocks, ids->n, ids->all);
    if (r == KVC_E_NO_BLOCKS)
        return alloc_slowly(self, ids);
    if (r < 0)
        errors_raise(r);
    return r;
}

static PyObject *blocks_alloc(PyObject *object, PyObject *number)
{
    struct blocks_object *self = self_of(object);
    PyObject *list = NULL;
    struct ids ids;
    int untidy = 0;
    uint64_t n;

    /* The library says it best that there are not so many, and needs no room for that. */
    if (number_to_u64(number, &n) < 0 || ids_reserve(&ids, n <= self->n_most ? n : 0) < 0)
        return NULL;
    ids.n = n;
    if (alloc(self, &ids) == 0) {
        list = ids_to_list(&ids);
        /* Without a list nobody would ever free them; their pages are looked at with the next free. */
        if (!list && is_open(self))
            kvc_blocks_try_free(self->blocks, ids.all, ids.n, 0, &untidy);
    }
    ids_deinit(&ids);
    return list;
}

/* Nobody's fault here where it is closed by now: then all is unmapped. */
static void tidy(struct blocks_object *self)
{
    struct wait wait;

    if (!is_open(self) || !enter(self))
        return;
    wait_begin(&wait);
    kvc_blocks_tidy(self->blocks);
    wait_end(&wait, 0);
    leave(self);
}

static PyObject *do_free(struct blocks_object *self, PyObject *list, uint64_t epoch)
{
    int r, untidy = 0;
    struct ids ids;

    if (ids_init(&ids, list) < 0)
        return NULL;
    if (!check_open(self)) {
        ids_deinit(&ids);
        return NULL;
    }
    r = kvc_blocks_try_free(self->blocks, ids.all, ids.n, epoch, &untidy);
    ids_deinit(&ids);
    if (r == 0 && untidy)
        tidy(self);
    return errors_check(r);
}

static PyObject *blocks_free(PyObject *object, PyObject *list)
{
    return do_free(self_of(object), list, 0);
}

static PyObject *blocks_free_after(PyObject *object, PyObject *args)
{
    uint64_t epoch;
    PyObject *list;

    if (!PyArg_ParseTuple(args, "OO&:free_after", &list, arg_u64, &epoch))
        return NULL;
    return do_free(self_of(object), list, epoch);
}

/* ---- The other calls ---- */

static PyObject *blocks_available(PyObject *object, PyObject *ignored)
{
    struct blocks_object *self = self_of(object);

    return check_open(self) ? PyLong_FromUnsignedLongLong(kvc_blocks_available(self->blocks)) : NULL;
}

static PyObject *blocks_want(PyObject *object, PyObject *args)
{
    struct blocks_object *self = self_of(object);
    uint64_t n, available;
    int timeout_ms = 0, r;
    PyObject *answer;
    struct wait wait;

    if (!PyArg_ParseTuple(args, "O&|O&:want", arg_u64, &n, arg_int, &timeout_ms) || !enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, kvc_blocks_want(self->blocks, n, timeout_ms, &available));
    answer = r < 0 ? errors_raise(r) : PyLong_FromUnsignedLongLong(available);
    leave(self);
    return answer;
}

typedef int (*number_fn)(struct kvc_blocks *blocks, uint64_t n);

static PyObject *call_with_number(PyObject *object, PyObject *number, number_fn call)
{
    struct blocks_object *self = self_of(object);
    PyObject *done;
    uint64_t n;
    struct wait wait;
    int r;

    if (number_to_u64(number, &n) < 0 || !enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, call(self->blocks, n));
    done = errors_check(r);
    leave(self);
    return done;
}

static PyObject *blocks_reserve(PyObject *object, PyObject *number)
{
    return call_with_number(object, number, kvc_blocks_reserve);
}

static PyObject *blocks_resize(PyObject *object, PyObject *number)
{
    return call_with_number(object, number, kvc_blocks_resize);
}

static PyObject *blocks_complete(PyObject *object, PyObject *number)
{
    return call_with_number(object, number, kvc_blocks_complete);
}

typedef int (*plain_fn)(struct kvc_blocks *blocks);

static PyObject *call_plainly(PyObject *object, plain_fn call)
{
    struct blocks_object *self = self_of(object);
    PyObject *done;
    struct wait wait;
    int r;

    if (!enter(self))
        return NULL;
    wait_begin(&wait);
    r = wait_end(&wait, call(self->blocks));
    done = errors_check(r);
    leave(self);
    return done;
}

static PyObject *blocks_release(PyObject *object, PyObject *ignored)
{
    return call_plainly(object, kvc_blocks_release);
}

static PyObject *blocks_trim(PyObject *object, PyObject *ignored)
{
    return call_plainly(object, kvc_blocks_trim);
}

static PyObject *blocks_clear(PyObject *object, PyObject *ignored)
{
    return call_plainly(object, kvc_blocks_clear);
}

static PyObject *blocks_occupancy(PyObject *object, PyObject *pages)
{
    struct blocks_object *self = self_of(object);
    struct numbers numbers;
    PyObject *list = NULL;
    struct ids used;
    int r;

    if (numbers_init(&numbers, pages) < 0)
        return NULL;
    if (ids_reserve(&used, numbers.n) == 0 && enter(self)) {
        r = kvc_blocks_occupancy(self->blocks, numbers.all, numbers.n, used.all);
        list = r < 0 ? errors_raise(r) : ids_to_list(&used);
        leave(self);
    }
    ids_deinit(&used);
    numbers_deinit(&numbers);
    return list;
}

static PyObject *list_census(const struct kvc_page_census *census, size_t n)
{
    PyObject *list = PyList_New(0);

    for (size_t i = 0; list && i < n; i++) {
        PyObject *pair = Py_BuildValue("KI", (unsigned long long)census[i].page, census[i].used);

        if (!pair || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *blocks_census(PyObject *object, PyObject *number)
{
    struct blocks_object *self = self_of(object);
    struct kvc_page_census *census = NULL;
    PyObject *list = NULL;
    uint64_t max;
    size_t n = 0;
    int r;

    if (number_to_u64(number, &max) < 0 || !enter(self))
        return NULL;
    if (max > kvc_region_pages(self->known[0]->region))
        max = kvc_region_pages(self->known[0]->region);
    census = PyMem_Malloc((max + 1) * sizeof(*census));
    r = census ? kvc_blocks_census(self->blocks, census, max, &n) : KVC_E_NOMEM;
    list = r < 0 ? errors_raise(r) : list_census(census, n);
    leave(self);
    PyMem_Free(census);
    return list;
}

static PyObject *blocks_page_of(PyObject *object, PyObject *number)
{
    struct blocks_object *self = self_of(object);
    uint64_t id, page;

    if (number_to_u64(number, &id) < 0 || !enter(self))
        return NULL;
    page = id > UINT32_MAX ? UINT64_MAX : kvc_blocks_page_of(self->blocks, (uint32_t)id);
    if (page >= kvc_region_pages(self->known[0]->region))
        PyErr_Format(PyExc_ValueError, "%llu is no block of the region", (unsigned long long)id);
    leave(self);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(page);
}

static PyObject *blocks_status(PyObject *object, PyObject *ignored)
{
    struct kvc_blocks_status status = {.size = sizeof(status)};
    struct blocks_object *self = self_of(object);
    PyObject *dict;
    int r;

    if (!enter(self))
        return NULL;
    r = kvc_blocks_status(self->blocks, &status);
    dict = r < 0 ? errors_raise(r) : PyDict_New();
    leave(self);
    DICT_PUT_U64(dict, status, total_blocks);
    DICT_PUT_U64(dict, status, used_blocks);
    DICT_PUT_U64(dict, status, free_blocks);
    DICT_PUT_U64(dict, status, reserved_blocks);
    DICT_PUT_U64(dict, status, claimed_pages);
    DICT_PUT_U64(dict, status, offered_pages);
    DICT_PUT_U64(dict, status, mapped_pages);
    DICT_PUT_U64(dict, status, free_pages);
    DICT_PUT_U64(dict, status, partly_pages);
    DICT_PUT_U64(dict, status, full_pages);
    DICT_PUT_U64(dict, status, waiting_pages);
    DICT_PUT_U64(dict, status, pinned_pages);
    DICT_PUT_U64(dict, status, empty_pages);
    DICT_PUT_U64(dict, status, doubt_pages);
    DICT_PUT_U64(dict, status, broken_pages);
    DICT_PUT_U64(dict, status, page_blocks);
    DICT_PUT_U64(dict, status, mapped_total);
    DICT_PUT_U64(dict, status, ready_total);
    DICT_PUT_U64(dict, status, unmapped_total);
    DICT_PUT_U64(dict, status, waited_total);
    DICT_PUT_U64(dict, status, refused_total);
    return dict;
}

static PyObject *blocks_close(PyObject *object, PyObject *ignored)
{
    struct blocks_object *self = self_of(object);

    self->closed = true;
    if (self->n_users == 0)
        close_now(self);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"alloc", blocks_alloc, METH_O,
     "alloc(n) -> list of block numbers\n\nAll or none; maps pages if needed: kvc_blocks_alloc()."},
    {"free", blocks_free, METH_O, "free(ids)\n\nAll or none, in any order: kvc_blocks_free()."},
    {"free_after", blocks_free_after, METH_VARARGS,
     "free_after(ids, epoch)\n\nPages stay mapped until complete(epoch)."},
    {"complete", blocks_complete, METH_O,
     "complete(epoch)\n\nThe GPU is done with it: kvc_blocks_complete()."},
    {"available", blocks_available, METH_NOARGS,
     "available() -> int\n\nHow many blocks alloc() can have now, as a promise: kvc_blocks_available()."},
    {"want", blocks_want, METH_VARARGS,
     "want(n, timeout_ms=0) -> available\n\nSees to it that n blocks are available: kvc_blocks_want()."},
    {"reserve", blocks_reserve, METH_O, "reserve(n)\n\nSets free blocks aside: kvc_blocks_reserve()."},
    {"release", blocks_release, METH_NOARGS, "release()\n\nGives up what is reserved."},
    {"trim", blocks_trim, METH_NOARGS, "trim()\n\nUnmaps all free pages: kvc_blocks_trim()."},
    {"resize", blocks_resize, METH_O,
     "resize(pages)\n\nOnly the first ones may be used: kvc_blocks_resize()."},
    {"clear", blocks_clear, METH_NOARGS, "clear()\n\nFrees all blocks, and what is reserved."},
    {"occupancy", blocks_occupancy, METH_O, "occupancy(pages) -> list of allocated blocks of each"},
    {"census", blocks_census, METH_O,
     "census(max) -> list of (page, allocated blocks)\n\nThose with the fewest first: kvc_blocks_census()."},
    {"page_of", blocks_page_of, METH_O, "page_of(id) -> the page in which a block begins"},
    {"status", blocks_status, METH_NOARGS, "status() -> dict\n\nCounters: kvc_blocks_status()."},
    {"close", blocks_close, METH_NOARGS,
     "close()\n\nUnmaps all pages, once no other thread is in a call on it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Blocks(regions, block_bytes, *, null_block=False, max_pages=0, max_blocks=0)\n\n"
                "The KV blocks of one or several regions: kvc_blocks_open()."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_init, blocks_init},
    {Py_tp_dealloc, blocks_dealloc},
    {Py_tp_traverse, blocks_traverse},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "kvcached._native.Blocks",
    .basicsize = sizeof(struct blocks_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

int py_blocks_add_to(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&spec);

    return type ? PyModule_AddObject(module, "Blocks", type) : -1;
}
