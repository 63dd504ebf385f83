/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Contexts: the primary one of each device, created ones, and each thread's stack of current ones. A context
 * costs no device memory here (a real one costs hundreds of MiB), so that accounts come out exactly.
 *
 * A fault (writing where the device has no access) breaks the context for good, as on hardware: every later
 * call that needs it reports the same error.
 */

#include "internal.h"

#include <stdlib.h>

#define STACK_MAX 32
#define CREATED_MAX 64
#define API_VERSION 13000

static struct CUctx_st primary[EMU_MAX_DEVICES];
static struct CUctx_st *created[CREATED_MAX];
static uint64_t last_id;

static _Thread_local struct CUctx_st *stack[STACK_MAX];
static _Thread_local unsigned depth;

CUcontext context_current(void)
{
    return depth ? stack[depth - 1] : NULL;
}

void context_break(CUresult why)
{
    context_current()->broken = why;
}

unsigned contexts_count(void)
{
    unsigned n = 0;

    for (unsigned i = 0; i < EMU_MAX_DEVICES; i++)
        n += primary[i].alive;
    for (unsigned i = 0; i < CREATED_MAX; i++)
        n += created[i] && created[i]->alive;
    return n;
}

static bool known(CUcontext context)
{
    for (unsigned i = 0; i < EMU_MAX_DEVICES; i++)
        if (context == &primary[i])
            return context->alive;
    for (unsigned i = 0; i < CREATED_MAX; i++)
        if (context == created[i])
            return context && context->alive;
    return false;
}

static CUresult primary_retain(CUcontext *ret_context, CUdevice device)
{
    struct CUctx_st *context;

    if (!ret_context)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    context = &primary[device];
    if (context->refs++ == 0) {
        context->device = device;
        context->primary = true;
        context->alive = true;
        context->id = ++last_id;
        context->broken = CUDA_SUCCESS;
    }
    *ret_context = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    return CALL(cuDevicePrimaryCtxRetain, NEEDS_INIT, primary_retain(context, device));
}

static CUresult primary_release(CUdevice device)
{
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (primary[device].refs == 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    if (--primary[device].refs == 0)
        primary[device].alive = false;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
    return CALL(cuDevicePrimaryCtxRelease_v2, NEEDS_INIT, primary_release(device));
}

static CUresult primary_reset(CUdevice device)
{
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    primary[device].alive = primary[device].refs > 0;
    primary[device].broken = CUDA_SUCCESS;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
    return CALL(cuDevicePrimaryCtxReset_v2, NEEDS_INIT, primary_reset(device));
}

static CUresult primary_state(CUdevice device, unsigned *flags, int *active)
{
    if (!flags || !active)
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    *flags = primary[device].flags;
    *active = primary[device].alive;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
    return CALL(cuDevicePrimaryCtxGetState, NEEDS_INIT, primary_state(device, flags, active));
}

static bool valid_flags(unsigned flags)
{
    return (flags & ~(unsigned)CU_CTX_FLAGS_MASK) == 0 &&
           (flags & CU_CTX_SCHED_MASK) <= CU_CTX_SCHED_BLOCKING_SYNC;
}

static CUresult primary_set_flags(CUdevice device, unsigned flags)
{
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    if (!valid_flags(flags))
        return CUDA_ERROR_INVALID_VALUE;
    primary[device].flags = flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags)
{
    return CALL(cuDevicePrimaryCtxSetFlags_v2, NEEDS_INIT, primary_set_flags(device, flags));
}

static CUresult push(CUcontext context)
{
    if (!context)
        return CUDA_ERROR_INVALID_VALUE;
    if (!known(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == STACK_MAX)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stack[depth++] = context;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context)
{
    return CALL(cuCtxPushCurrent_v2, NEEDS_INIT, push(context));
}

static CUresult pop(CUcontext *ret_context)
{
    if (depth == 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (ret_context)
        *ret_context = stack[depth];
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
    return CALL(cuCtxPopCurrent_v2, NEEDS_INIT, pop(context));
}

/* Replaces the top of the stack; nothing there means push, and NULL means pop. */
static CUresult set_current(CUcontext context)
{
    if (context && !known(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (depth > 0)
        depth--;
    return context ? push(context) : CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSetCurrent(CUcontext context)
{
    return CALL(cuCtxSetCurrent, NEEDS_INIT, set_current(context));
}

static CUresult get_current(CUcontext *ret_context)
{
    if (!ret_context)
        return CUDA_ERROR_INVALID_VALUE;
    *ret_context = context_current();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context)
{
    return CALL(cuCtxGetCurrent, NEEDS_INIT, get_current(context));
}

static CUresult get_device(CUdevice *device, CUcontext context)
{
    if (!device)
        return CUDA_ERROR_INVALID_VALUE;
    if (!known(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    *device = context->device;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device)
{
    return CALL(cuCtxGetDevice, NEEDS_CONTEXT, get_device(device, context_current()));
}

EXPORT CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext context)
{
    return CALL(cuCtxGetDevice_v2, NEEDS_INIT, get_device(device, context ? context : context_current()));
}

static CUresult create(CUcontext *ret_context, unsigned flags, CUdevice device)
{
    unsigned at = 0;

    if (!ret_context || !valid_flags(flags))
        return CUDA_ERROR_INVALID_VALUE;
    if (!valid_device(device))
        return CUDA_ERROR_INVALID_DEVICE;
    while (at < CREATED_MAX && created[at] && created[at]->alive)
        at++;
    if (at == CREATED_MAX || depth == STACK_MAX)
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (!created[at])
        created[at] = calloc(1, sizeof(*created[at]));
    if (!created[at])
        return CUDA_ERROR_OUT_OF_MEMORY;
    *created[at] = (struct CUctx_st){.device = device, .alive = true, .flags = flags, .id = ++last_id};
    *ret_context = created[at];
    return push(created[at]);
}

EXPORT CUresult cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device)
{
    return CALL(cuCtxCreate_v2, NEEDS_INIT, create(context, flags, device));
}

/* Affinity and graphics interoperation are what the parameters ask for; there is neither. */
static CUresult create_with(CUcontext *context, const void *parameters, unsigned flags, CUdevice device)
{
    return parameters ? CUDA_ERROR_NOT_SUPPORTED : create(context, flags, device);
}

EXPORT CUresult cuCtxCreate_v4(CUcontext *context, void *parameters, unsigned int flags, CUdevice device)
{
    return CALL(cuCtxCreate_v4, NEEDS_INIT, create_with(context, parameters, flags, device));
}

/* Memory of the virtual memory calls survives its context. */
static CUresult destroy(CUcontext context)
{
    if (!context || !known(context) || context->primary)
        return CUDA_ERROR_INVALID_CONTEXT;
    context->alive = false;
    if (context_current() == context)
        depth--;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxDestroy_v2(CUcontext context)
{
    return CALL(cuCtxDestroy_v2, NEEDS_INIT, destroy(context));
}

static CUresult get_flags(unsigned *flags)
{
    if (!flags)
        return CUDA_ERROR_INVALID_VALUE;
    *flags = context_current()->flags;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetFlags(unsigned int *flags)
{
    return CALL(cuCtxGetFlags, NEEDS_CONTEXT, get_flags(flags));
}

static CUresult get_api_version(CUcontext context, unsigned *version)
{
    if (!version)
        return CUDA_ERROR_INVALID_VALUE;
    if (context && !known(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    *version = API_VERSION;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetApiVersion(CUcontext context, unsigned int *version)
{
    return CALL(cuCtxGetApiVersion, NEEDS_INIT, get_api_version(context, version));
}

static CUresult get_id(CUcontext context, unsigned long long *id)
{
    if (!id)
        return CUDA_ERROR_INVALID_VALUE;
    context = context ? context : context_current();
    if (!known(context))
        return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    *id = context->id;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetId(CUcontext context, unsigned long long *id)
{
    return CALL(cuCtxGetId, NEEDS_INIT, get_id(context, id));
}

static CUresult priority_range(int *least, int *greatest)
{
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    return CALL(cuCtxGetStreamPriorityRange, NEEDS_CONTEXT, priority_range(least, greatest));
}

static CUresult synchronize(CUcontext context)
{
    if (!known(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    call_wait_until(streams_busy_until(context));
    return context->broken;
}

EXPORT CUresult cuCtxSynchronize(void)
{
    return CALL(cuCtxSynchronize, NEEDS_CONTEXT, synchronize(context_current()));
}

EXPORT CUresult cuCtxSynchronize_v2(CUcontext context)
{
    return CALL(cuCtxSynchronize_v2, NEEDS_INIT, synchronize(context ? context : context_current()));
}

/* Peers reach each other anyway; the calls keep the books that a program expects to be kept. */
static bool peers[EMU_MAX_DEVICES][EMU_MAX_DEVICES];

static CUresult set_peer(CUcontext peer, unsigned flags, bool enable)
{
    CUdevice own = context_current()->device;

    if (flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!known(peer))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (peer->device == own)
        return CUDA_ERROR_INVALID_DEVICE;
    if (peers[own][peer->device] == enable)
        return enable ? CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED : CUDA_ERROR_PEER_ACCESS_NOT_ENABLED;
    peers[own][peer->device] = enable;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags)
{
    return CALL(cuCtxEnablePeerAccess, NEEDS_CONTEXT, set_peer(peer, flags, true));
}

EXPORT CUresult cuCtxDisablePeerAccess(CUcontext peer)
{
    return CALL(cuCtxDisablePeerAccess, NEEDS_CONTEXT, set_peer(peer, 0, false));
}
