/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Request traces: what arrives when, and how long its prompt and its answer are.
 *
 * A file is CSV, one request a line, in order of arrival, either
 *     2023-11-16 18:17:03.9799600,4808,10      date and time, tokens of context, tokens generated
 *     1250,4808,10                             milliseconds, tokens of input, tokens of output
 * with an optional header in the first line. Time counts from the file's first request.
 */

#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

struct trace_request {
    double arrival_s;
    uint32_t context;
    uint32_t output; /* at least 1 */
};

struct trace {
    struct trace_request *requests;
    size_t n;
};

struct trace_options {
    double slow;  /* arrival times are stretched by this factor */
    size_t limit; /* only the first requests; 0: all */
};

#define TRACE_ERROR_MAX 512

/*
 * "FILE" or "FILE@S", where S seconds are added to all arrivals. 0, or a negative errno with a sentence that
 * names the file, and the line where it is a line's fault.
 */
int trace_read(const char *spec, const struct trace_options *options, struct trace **ret_trace,
               char error[static TRACE_ERROR_MAX]);
struct trace *trace_free(struct trace *trace);

DEFINE_CLEANUP(struct trace *, trace_free);

/* Appends a request; -ENOMEM. For those who make traces. */
struct trace *trace_new(void);
int trace_append(struct trace *trace, const struct trace_request *request);

/* "file" of "a/file@300", and 300: for who gives meaning to other names than files'. */
int trace_split(const char *spec, char **ret_name, double *ret_shift_s);
