/* SPDX-License-Identifier: Apache-2.0 */

/*
 * DLPack: a framework makes a tensor of a capsule, without asking the driver about the pointer, so that it
 * may lie where nothing is mapped. The tensor has its own hold on the addresses, and what releases it is C:
 * frameworks call it from any thread, without the interpreter's lock, and after the interpreter's end.
 *
 * The structures are those of dlpack.h 0.8, which every framework takes.
 */

#include <stdlib.h>

#include "native.h"

enum { DL_CPU = 1, DL_CUDA = 2 };
enum { DL_UINT = 1 };

struct dl_tensor {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

struct dl_managed_tensor {
    struct dl_tensor tensor;
    void *manager_ctx;
    void (*deleter)(struct dl_managed_tensor *self);
};

struct tensor {
    struct dl_managed_tensor managed;
    int64_t shape;
    struct kvc_hold *hold;
};

#define CAPSULE_NAME "dltensor" /* a consumer gives it another one, and calls the deleter in time */

static void tensor_free(struct dl_managed_tensor *managed)
{
    struct tensor *tensor = managed->manager_ctx;

    kvc_hold_release(tensor->hold);
    free(tensor);
}

static void on_unused(PyObject *capsule)
{
    struct dl_managed_tensor *managed;

    if (!PyCapsule_IsValid(capsule, CAPSULE_NAME))
        return;
    managed = PyCapsule_GetPointer(capsule, CAPSULE_NAME);
    managed->deleter(managed);
}

static int find_device(struct client_object *client, struct dl_tensor *tensor)
{
    struct kvc_device device = {.size = sizeof(device)};
    int r = kvc_device(client->client, &device);

    if (r < 0)
        return r;
    tensor->device.type = device.emulated ? DL_CPU : DL_CUDA;
    tensor->device.id = device.emulated ? 0 : device.ordinal;
    return 0;
}

static int fill(struct tensor *tensor, struct region_object *region, uint64_t offset, uint64_t n_bytes)
{
    struct dl_tensor *dl = &tensor->managed.tensor;
    struct wait wait;
    int r;

    r = find_device(region->client, dl);
    if (r < 0)
        return r;
    tensor->shape = (int64_t)n_bytes;
    dl->data = (void *)(uintptr_t)(kvc_region_address(region->region) + offset);
    dl->ndim = 1;
    dl->dtype.code = DL_UINT;
    dl->dtype.bits = 8;
    dl->dtype.lanes = 1;
    dl->shape = &tensor->shape;
    tensor->managed.manager_ctx = tensor;
    tensor->managed.deleter = tensor_free;
    wait_begin(&wait);
    r = wait_end(&wait, kvc_region_hold(region->region, &tensor->hold));
    return r;
}

PyObject *py_tensor_new(struct region_object *region, uint64_t offset, uint64_t n_bytes)
{
    struct tensor *tensor = calloc(1, sizeof(*tensor));
    PyObject *capsule;
    int r;

    if (!tensor)
        return PyErr_NoMemory();
    r = fill(tensor, region, offset, n_bytes);
    if (r < 0) {
        free(tensor);
        return errors_raise(r);
    }
    capsule = PyCapsule_New(&tensor->managed, CAPSULE_NAME, on_unused);
    if (!capsule)
        tensor_free(&tensor->managed);
    return capsule;
}
