/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Backing: the thread that calls the driver, so that no slow call ever holds up a socket. The loop's thread
 * submits jobs and takes the finished ones back, in the order in which the driver carried them out. A failed
 * call is an answer, never an exit.
 *
 * A job lives inside what it is about (an extent's record), so submitting needs no memory and cannot fail.
 * While a job is under way it is the thread's: nobody else looks into it.
 */

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "counters.h"
#include "device.h"

struct backing_job {
    struct list link;
    union {
        CUmemGenericAllocationHandle handle; /* CREATE: out; EXPORT, RELEASE: in */
        uint64_t bytes; /* CREATE: in; LOOK: out, what is free; RELEASE: out, what was seen to be freed */
    };
    int fd;          /* EXPORT: out; RELEASE: closed when it isn't -1 */
    int16_t r;       /* out: 0, -ENOMEM, -EIO */
    uint8_t type;    /* enum backing_type */
    bool busy;       /* submitted, and not yet taken back */
    const char *why; /* out, of a failure: the driver's name for it */
};

struct backing;

/* `on_done` runs in the loop's thread when jobs may be taken back. The device is borrowed. */
int backing_new(uv_loop_t *loop, struct device *device, void (*on_done)(void *userdata), void *userdata,
                struct backing **ret);

/* Ends the thread once it has nothing more to do; waits for it until `deadline_ns` (CLOCK_MONOTONIC). 0, or
 * -ETIMEDOUT where the driver does not return: then the thread and the device live until the process ends. On
 * 0 jobs may still have to be taken back. */
int backing_stop(struct backing *backing, uint64_t deadline_ns);

/* After a successful stop, and after the loop has run the close callbacks. */
struct backing *backing_free(struct backing *backing);

/* Jobs begin with the next flush. */
void backing_submit(struct backing *backing, struct backing_job *job, enum backing_type type);
void backing_flush(struct backing *backing);

void backing_stats(struct backing *backing, struct backing_stats *ret);

/* The next finished job, or NULL. */
struct backing_job *backing_next_done(struct backing *backing);
