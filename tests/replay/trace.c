/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Reading request traces. A line is understood or refused, with its number: a trace that is silently
 * shortened would make any comparison worthless.
 *
 * A time stamp becomes whole seconds plus a fraction, as one double, and the first request's is subtracted
 * from it: the rounding that this brings is part of the result, since everybody who compares must have the
 * same. Dates are taken as UTC.
 */

#include "trace.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/parse.h"

#define TOKENS_MAX 100000000 /* of one request; more is a broken line */

static int fail(char error[static TRACE_ERROR_MAX], int r, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(char error[static TRACE_ERROR_MAX], int r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, TRACE_ERROR_MAX, format, args);
    va_end(args);
    return r;
}

struct trace *trace_new(void)
{
    return calloc(1, sizeof(struct trace));
}

struct trace *trace_free(struct trace *trace)
{
    if (trace) {
        free(trace->requests);
        free(trace);
    }
    return NULL;
}

int trace_append(struct trace *trace, const struct trace_request *request)
{
    struct trace_request *requests = trace->requests;

    /* Grows whenever the number is a power of two. */
    if ((trace->n & (trace->n - 1)) == 0) {
        requests = reallocarray(requests, trace->n ? trace->n * 2 : 1, sizeof(*requests));
        if (!requests)
            return -ENOMEM;
        trace->requests = requests;
    }
    requests[trace->n++] = *request;
    return 0;
}

static int parse_shift(const char *text, double *ret)
{
    bool minus = *text == '-';
    double shift;
    int r;

    r = parse_decimal(text + minus, &shift);
    if (r < 0)
        return r;
    *ret = minus ? -shift : shift;
    return 0;
}

int trace_split(const char *spec, char **ret_name, double *ret_shift_s)
{
    const char *at = strrchr(spec, '@');
    double shift = 0;
    char *name;

    if (at && parse_shift(at + 1, &shift) < 0)
        return -EINVAL;
    name = at ? strndup(spec, (size_t)(at - spec)) : strdup(spec);
    if (!name)
        return -ENOMEM;
    *ret_name = name;
    *ret_shift_s = shift;
    return 0;
}

/* The exact double of "123.456"; strtod() alone would accept signs, blanks and infinities. */
static int parse_exact(const char *text, double *ret)
{
    const char *p = text;

    if (!isdigit((unsigned char)*p))
        return -EINVAL;
    while (isdigit((unsigned char)*p))
        p++;
    if (*p == '.')
        for (p++; isdigit((unsigned char)*p);)
            p++;
    if (*p)
        return -EINVAL;
    *ret = strtod(text, NULL);
    return isfinite(*ret) ? 0 : -ERANGE;
}

static int parse_date(const char *text, double *ret_s)
{
    struct tm tm = {};
    const char *rest = strptime(text, "%Y-%m-%d %H:%M:%S", &tm);
    char fraction[32];
    double part = 0;
    int r;

    if (!rest || (*rest && *rest != '.'))
        return -EINVAL;
    if (*rest) {
        if ((size_t)snprintf(fraction, sizeof(fraction), "0%s", rest) >= sizeof(fraction))
            return -EINVAL;
        r = parse_exact(fraction, &part);
        if (r < 0)
            return r;
    }
    *ret_s = (double)timegm(&tm) + part;
    return 0;
}

static int parse_time(const char *text, double *ret_s)
{
    double ms;
    int r;

    if (strchr(text, ' '))
        return parse_date(text, ret_s);
    r = parse_exact(text, &ms);
    if (r < 0)
        return r;
    *ret_s = ms / 1000;
    return 0;
}

static int parse_tokens(const char *text, uint32_t *ret)
{
    uint64_t tokens;
    int r;

    r = parse_u64(text, &tokens);
    if (r < 0)
        return r;
    if (tokens > TOKENS_MAX)
        return -ERANGE;
    *ret = (uint32_t)tokens;
    return 0;
}

/* Cuts the line at its commas. */
static const char *parse_line(char *line, struct trace_request *ret)
{
    char *context = strchr(line, ','), *output = context ? strchr(context + 1, ',') : NULL;
    struct trace_request request;

    if (!output || strchr(output + 1, ','))
        return "not three fields with commas between them";
    *context++ = *output++ = '\0';
    if (parse_time(line, &request.arrival_s) < 0)
        return "the first field is neither a date with time nor milliseconds";
    if (parse_tokens(context, &request.context) < 0)
        return "the second field is not a number of tokens";
    if (parse_tokens(output, &request.output) < 0)
        return "the third field is not a number of tokens";
    if (request.output == 0)
        request.output = 1;
    *ret = request;
    return NULL;
}

static bool is_header(const char *line)
{
    return strcasecmp(line, "TIMESTAMP,ContextTokens,GeneratedTokens") == 0 ||
           strcasecmp(line, "milliseconds,input,output") == 0;
}

static void chomp(char *line)
{
    line[strcspn(line, "\r\n")] = '\0';
}

struct reader {
    const char *name;
    FILE *file;
    const struct trace_options *options;
    double shift_s;
};

static int read_lines(const struct reader *in, struct trace *trace, char error[static TRACE_ERROR_MAX])
{
    _cleanup_free_ char *line = NULL;
    double start = 0;
    size_t size = 0;
    int r;

    for (unsigned number = 1; getline(&line, &size, in->file) >= 0; number++) {
        struct trace_request request;
        const char *complaint;

        chomp(line);
        if (*line == '\0' || (number == 1 && is_header(line)))
            continue;
        complaint = parse_line(line, &request);
        if (complaint)
            return fail(error, -EINVAL, "%s:%u: %s", in->name, number, complaint);
        if (trace->n == 0)
            start = request.arrival_s;
        request.arrival_s = (request.arrival_s - start) * in->options->slow + in->shift_s;
        r = trace_append(trace, &request);
        if (r < 0)
            return fail(error, r, "%s: out of memory", in->name);
        if (trace->n == in->options->limit)
            return 0;
    }
    if (ferror(in->file))
        return fail(error, -EIO, "%s: %s", in->name, strerror(errno));
    if (trace->n == 0)
        return fail(error, -EINVAL, "%s: no requests in it", in->name);
    return 0;
}

int trace_read(const char *spec, const struct trace_options *options, struct trace **ret_trace,
               char error[static TRACE_ERROR_MAX])
{
    _cleanup_(trace_freep) struct trace *trace = trace_new();
    struct reader in = {.options = options};
    _cleanup_free_ char *name = NULL;
    int r;

    if (!trace)
        return fail(error, -ENOMEM, "%s: out of memory", spec);
    r = trace_split(spec, &name, &in.shift_s);
    if (r < 0)
        return fail(error, r, "%s: what follows @ is not a number of seconds", spec);
    in.name = name;
    in.file = fopen(name, "re");
    if (!in.file)
        return fail(error, -errno, "%s: %s", name, strerror(errno));
    r = read_lines(&in, trace, error);
    fclose(in.file);
    if (r < 0)
        return r;
    *ret_trace = steal_pointer(trace);
    return 0;
}
