/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The sentence is kept per thread, so that two threads that fail at once each read their own. It is a fixed
 * buffer: an error about memory must not need any, and a thread that ends leaves nothing to free.
 */

#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"

static _Thread_local char last_sentence[ERROR_SENTENCE_MAX];
static _Thread_local unsigned holds;

static const char *const sentences[] = {
    [-KVC_OK] = "no error",
    [-KVC_E_INVALID] = "invalid argument",
    [-KVC_E_NOMEM] = "out of host memory",
    [-KVC_E_NOFILE] = "too many open files in this process",
    [-KVC_E_CONNECT] = "no kvcachedd to be trusted at that socket",
    [-KVC_E_VERSION] = "kvcachedd and libkvclient have no protocol version in common",
    [-KVC_E_PROTOCOL] = "kvcachedd broke the protocol",
    [-KVC_E_REFUSED] = "kvcachedd refused this process, instance name or GPU",
    [-KVC_E_LIMIT] = "the instance's limit cannot hold it",
    [-KVC_E_BUDGET] = "the daemon's budget cannot hold it",
    [-KVC_E_DEVICE_MEMORY] = "out of device memory",
    [-KVC_E_DRIVER] = "the CUDA driver failed",
    [-KVC_E_DISCONNECTED] = "the connection to kvcachedd has ended",
    [-KVC_E_TIMEOUT] = "kvcachedd did not answer in time",
    [-KVC_E_FORKED] = "the handle belongs to the parent process",
    [-KVC_E_FROZEN] = "an administrator froze the instance",
    [-KVC_E_ENVIRONMENT] = "an environment variable has a value that cannot be used",
    [-KVC_E_MAPPED] = "the page is mapped already",
    [-KVC_E_NOT_MAPPED] = "the page is not mapped",
    [-KVC_E_NOSPACE] = "out of device address space",
    [-KVC_E_WORKER] = "the worker did not do it",
    [-KVC_E_IN_DOUBT] = "a worker has not answered about the page",
    [-KVC_E_PINNED] = "the page is pinned",
    [-KVC_E_NO_BLOCKS] = "there are not so many blocks",
    [-KVC_E_NOT_ALLOCATED] = "the block is not allocated",
    [-KVC_E_RESOURCES] = "kvcachedd is short of descriptors or host memory",
    [-KVC_E_INTERRUPTED] = "the call was interrupted",
    [-KVC_E_WORKER_GONE] = "the worker is gone",
};

KVC_API const char *kvc_strerror(int error)
{
    if (error > 0 || error <= -(int)ARRAY_SIZE(sentences))
        return "unknown error";
    return sentences[-error];
}

KVC_API const char *kvc_last_error(void)
{
    return last_sentence;
}

int error_set(int error, const char *format, ...)
{
    va_list args;

    if (holds > 0)
        return error;
    va_start(args, format);
    vsnprintf(last_sentence, sizeof(last_sentence), format, args);
    va_end(args);
    return error;
}

int error_nomem(void)
{
    return error_set(KVC_E_NOMEM, "Out of host memory");
}

bool error_is_unanswered(int error)
{
    return error == KVC_E_TIMEOUT || error == KVC_E_INTERRUPTED;
}

void error_hold(void)
{
    holds++;
}

void error_release(void)
{
    holds--;
}

void error_set_aside(struct error_state *ret)
{
    memcpy(ret->sentence, last_sentence, sizeof(ret->sentence));
    ret->holds = holds;
    holds = 0;
}

void error_restore(const struct error_state *state)
{
    memcpy(last_sentence, state->sentence, sizeof(last_sentence));
    holds = state->holds;
}
