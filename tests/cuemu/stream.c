/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Streams and events, as far as a memory program can tell.
 *
 * Work is done when it is submitted, in the order of submission over all streams: that is one of the orders
 * that a GPU may choose whatever streams and events say, so every result that a correct program can see is
 * right. What is modelled beside that is time: with a cost table, memset keeps its stream busy, and until
 * then queries say "not ready", events wait, and synchronising takes as long; what is unmapped before that
 * breaks the context. A program that unmaps what a stream still copies is not caught.
 */

#include "internal.h"

#include <stdlib.h>

#include "base/list.h"

#define STREAM_FLAGS ((unsigned)CU_STREAM_NON_BLOCKING)
#define EVENT_FLAGS ((unsigned)(CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS))

struct CUstream_st {
    struct list link;
    CUcontext context;
    unsigned flags;
    int priority;
    uint64_t busy_until_ns;
};

struct CUevent_st {
    struct list link;
    unsigned flags;
    bool recorded;
    uint64_t done_ns;
};

static struct list streams = LIST_INIT(streams), events = LIST_INIT(events);

static unsigned count(const struct list *head)
{
    unsigned n = 0;

    list_for_each (it, head)
        n++;
    return n;
}

unsigned streams_count(void)
{
    return count(&streams);
}

unsigned events_count(void)
{
    return count(&events);
}

static struct CUstream_st *find_stream(CUstream stream)
{
    list_for_each (it, &streams)
        if (container_of(it, struct CUstream_st, link) == stream)
            return stream;
    return NULL;
}

static struct CUevent_st *find_event(CUevent event)
{
    list_for_each (it, &events)
        if (container_of(it, struct CUevent_st, link) == event)
            return event;
    return NULL;
}

uint64_t *stream_busy(CUstream stream)
{
    struct CUstream_st *own;

    if (!stream || stream == CU_STREAM_LEGACY)
        return &context_current()->busy_until_ns[0];
    if (stream == CU_STREAM_PER_THREAD)
        return &context_current()->busy_until_ns[1];
    own = find_stream(stream);
    return own ? &own->busy_until_ns : NULL;
}

uint64_t streams_busy_until(CUcontext context)
{
    uint64_t until = u64_max(context->busy_until_ns[0], context->busy_until_ns[1]);

    list_for_each (it, &streams) {
        const struct CUstream_st *stream = container_of(it, struct CUstream_st, link);

        if (stream->context == context)
            until = u64_max(until, stream->busy_until_ns);
    }
    return until;
}

void streams_extend(CUstream stream, uint64_t ns)
{
    uint64_t *busy = stream_busy(stream);

    if (busy && ns > 0)
        *busy = u64_max(*busy, now_ns()) + ns;
}

static CUresult create(CUstream *ret_stream, unsigned flags, int priority)
{
    struct CUstream_st *stream;

    if (!ret_stream || (flags & ~STREAM_FLAGS))
        return CUDA_ERROR_INVALID_VALUE;
    stream = calloc(1, sizeof(*stream));
    if (!stream)
        return CUDA_ERROR_OUT_OF_MEMORY;
    stream->context = context_current();
    stream->flags = flags;
    stream->priority = priority;
    list_append(&streams, &stream->link);
    *ret_stream = stream;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
    return CALL(cuStreamCreate, NEEDS_CONTEXT, create(stream, flags, 0));
}

EXPORT CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
    return CALL(cuStreamCreateWithPriority, NEEDS_CONTEXT,
                create(stream, flags,
                       priority > 0    ? 0
                       : priority < -5 ? -5
                                       : priority));
}

static CUresult destroy(CUstream stream)
{
    struct CUstream_st *own = find_stream(stream);

    if (!own)
        return CUDA_ERROR_INVALID_HANDLE;
    list_unlink(&own->link);
    free(own);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamDestroy_v2(CUstream stream)
{
    return CALL(cuStreamDestroy_v2, NEEDS_CONTEXT, destroy(stream));
}

static CUresult query(CUstream stream)
{
    const uint64_t *busy = stream_busy(stream);

    if (!busy)
        return CUDA_ERROR_INVALID_HANDLE;
    return *busy > 0 && now_ns() < *busy ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

EXPORT CUresult cuStreamQuery(CUstream stream)
{
    return CALL(cuStreamQuery, NEEDS_CONTEXT, query(stream));
}

static CUresult synchronize(CUstream stream)
{
    const uint64_t *busy = stream_busy(stream);

    if (!busy)
        return CUDA_ERROR_INVALID_HANDLE;
    call_wait_until(*busy);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream)
{
    return CALL(cuStreamSynchronize, NEEDS_CONTEXT, synchronize(stream));
}

static CUresult get_flags(CUstream stream, unsigned *flags)
{
    const struct CUstream_st *own = find_stream(stream);

    if (!flags || !stream_busy(stream))
        return flags ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *flags = own ? own->flags : CU_STREAM_DEFAULT;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetFlags(CUstream stream, unsigned int *flags)
{
    return CALL(cuStreamGetFlags, NEEDS_CONTEXT, get_flags(stream, flags));
}

static CUresult get_priority(CUstream stream, int *priority)
{
    const struct CUstream_st *own = find_stream(stream);

    if (!priority || !stream_busy(stream))
        return priority ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *priority = own ? own->priority : 0;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetPriority(CUstream stream, int *priority)
{
    return CALL(cuStreamGetPriority, NEEDS_CONTEXT, get_priority(stream, priority));
}

static CUresult get_context(CUstream stream, CUcontext *context)
{
    const struct CUstream_st *own = find_stream(stream);

    if (!context || !stream_busy(stream))
        return context ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_VALUE;
    *context = own ? own->context : context_current();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *context)
{
    return CALL(cuStreamGetCtx, NEEDS_CONTEXT, get_context(stream, context));
}

/* Waiting for an event that was never recorded is no wait. */
static CUresult wait_event(CUstream stream, CUevent event, unsigned flags)
{
    const struct CUevent_st *own = find_event(event);
    uint64_t *busy = stream_busy(stream);

    if (flags & ~1u)
        return CUDA_ERROR_INVALID_VALUE;
    if (!own || !busy)
        return CUDA_ERROR_INVALID_HANDLE;
    *busy = u64_max(*busy, own->done_ns);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags)
{
    return CALL(cuStreamWaitEvent, NEEDS_CONTEXT, wait_event(stream, event, flags));
}

static CUresult event_create(CUevent *ret_event, unsigned flags)
{
    struct CUevent_st *event;

    if (!ret_event || (flags & ~EVENT_FLAGS) ||
        ((flags & CU_EVENT_INTERPROCESS) && !(flags & CU_EVENT_DISABLE_TIMING)))
        return CUDA_ERROR_INVALID_VALUE;
    event = calloc(1, sizeof(*event));
    if (!event)
        return CUDA_ERROR_OUT_OF_MEMORY;
    event->flags = flags;
    list_append(&events, &event->link);
    *ret_event = event;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
    return CALL(cuEventCreate, NEEDS_CONTEXT, event_create(event, flags));
}

static CUresult event_destroy(CUevent event)
{
    struct CUevent_st *own = find_event(event);

    if (!own)
        return CUDA_ERROR_INVALID_HANDLE;
    list_unlink(&own->link);
    free(own);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventDestroy_v2(CUevent event)
{
    return CALL(cuEventDestroy_v2, NEEDS_CONTEXT, event_destroy(event));
}

static CUresult event_record(CUevent event, CUstream stream, unsigned flags)
{
    struct CUevent_st *own = find_event(event);
    const uint64_t *busy = stream_busy(stream);

    if (flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (!own || !busy)
        return CUDA_ERROR_INVALID_HANDLE;
    own->recorded = true;
    own->done_ns = u64_max(*busy, now_ns());
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventRecord(CUevent event, CUstream stream)
{
    return CALL(cuEventRecord, NEEDS_CONTEXT, event_record(event, stream, 0));
}

EXPORT CUresult cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned int flags)
{
    return CALL(cuEventRecordWithFlags, NEEDS_CONTEXT, event_record(event, stream, flags));
}

static CUresult event_query(CUevent event)
{
    const struct CUevent_st *own = find_event(event);

    if (!own)
        return CUDA_ERROR_INVALID_HANDLE;
    return own->recorded && now_ns() < own->done_ns ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

EXPORT CUresult cuEventQuery(CUevent event)
{
    return CALL(cuEventQuery, NEEDS_CONTEXT, event_query(event));
}

static CUresult event_synchronize(CUevent event)
{
    const struct CUevent_st *own = find_event(event);

    if (!own)
        return CUDA_ERROR_INVALID_HANDLE;
    if (own->recorded)
        call_wait_until(own->done_ns);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventSynchronize(CUevent event)
{
    return CALL(cuEventSynchronize, NEEDS_CONTEXT, event_synchronize(event));
}

static CUresult elapsed(float *ms, CUevent start, CUevent end)
{
    const struct CUevent_st *from = find_event(start), *to = find_event(end);

    if (!ms)
        return CUDA_ERROR_INVALID_VALUE;
    if (!from || !to || !from->recorded || !to->recorded ||
        ((from->flags | to->flags) & CU_EVENT_DISABLE_TIMING))
        return CUDA_ERROR_INVALID_HANDLE;
    if (now_ns() < u64_max(from->done_ns, to->done_ns))
        return CUDA_ERROR_NOT_READY;
    *ms = (float)((double)(int64_t)(to->done_ns - from->done_ns) / 1e6);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end)
{
    return CALL(cuEventElapsedTime, NEEDS_CONTEXT, elapsed(ms, start, end));
}

EXPORT CUresult cuEventElapsedTime_v2(float *ms, CUevent start, CUevent end)
{
    return CALL(cuEventElapsedTime_v2, NEEDS_CONTEXT, elapsed(ms, start, end));
}
