/* SPDX-License-Identifier: Apache-2.0 */
#include "trace.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "generate.h"
#include "test.h"

static const struct trace_options plain = {.slow = 1};

/* A file with this text; `spec_tail` follows its name in what is read. */
static int read_text(const char *text, const char *spec_tail, const struct trace_options *options,
                     struct trace **ret_trace, char error[static TRACE_ERROR_MAX])
{
    char name[] = "/tmp/kvcached-test-trace-XXXXXX", spec[128];
    int fd = mkstemp(name), r;

    check(fd >= 0);
    check_eq(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    snprintf(spec, sizeof(spec), "%s%s", name, spec_tail);
    r = trace_read(spec, options, ret_trace, error);
    unlink(name);
    return r;
}

TEST(dates)
{
    _cleanup_(trace_freep) struct trace *trace = NULL;
    char error[TRACE_ERROR_MAX];

    check_eq(read_text("TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
                       "2023-11-16 18:17:03.9799600,4808,10\r\n"
                       "2023-11-16 18:17:04.0319600,3180,8\r\n"
                       "2023-11-16 18:18:04,110,0\r\n",
                       "", &plain, &trace, error),
             0);
    check_eq(trace->n, 3);
    check(trace->requests[0].arrival_s == 0);
    /* As doubles that count from 1970 have it. */
    check(trace->requests[1].arrival_s == 1700158624.03196 - 1700158623.97996);
    check(trace->requests[2].arrival_s == 1700158684.0 - 1700158623.97996);
    check_eq(trace->requests[1].context, 3180);
    check_eq(trace->requests[1].output, 8);
    check_eq(trace->requests[2].output, 1);
}

TEST(milliseconds_slowed_and_shifted)
{
    _cleanup_(trace_freep) struct trace *trace = NULL;
    const struct trace_options options = {.slow = 3, .limit = 2};
    char error[TRACE_ERROR_MAX];

    check_eq(read_text("100,1,2\n350.5,3,4\n999,5,6\n", "@-7.5", &options, &trace, error), 0);
    check_eq(trace->n, 2);
    check(trace->requests[0].arrival_s == -7.5);
    check(trace->requests[1].arrival_s == (350.5 / 1000 - 0.1) * 3 + -7.5);
}

static void expect_complaint(const char *text, const char *tail, const char *complaint)
{
    struct trace *trace = NULL;
    char error[TRACE_ERROR_MAX] = "";

    check_eq(read_text(text, tail, &plain, &trace, error), -EINVAL);
    check(!trace);
    if (!strstr(error, complaint))
        test_fail(__FILE__, __LINE__, "\"%s\" is not in \"%s\"", complaint, error);
}

TEST(broken_lines_are_named)
{
    expect_complaint("1,2,3\n1,2\n", "", ":2: not three fields");
    expect_complaint("1,2,3\n\n1,2,3,4\n", "", ":3: not three fields");
    expect_complaint("1,2,3\nmilliseconds,input,output\n", "", ":2: the first field");
    expect_complaint("2023-11-16 18:77:03,1,2\n", "", ":1: the first field");
    expect_complaint("-1,1,2\n", "", ":1: the first field");
    expect_complaint("1,x,2\n", "", ":1: the second field");
    expect_complaint("1,1e3,2\n", "", ":1: the second field");
    expect_complaint("1,1,100000001\n", "", ":1: the third field");
    expect_complaint("", "", "no requests");
    expect_complaint("1,2,3\n", "@soon", "not a number of seconds");
}

TEST(missing_file)
{
    struct trace *trace = NULL;
    char error[TRACE_ERROR_MAX] = "";

    check_eq(trace_read("/nonexistent/trace.csv@3", &plain, &trace, error), -ENOENT);
    check_str(error, "/nonexistent/trace.csv: No such file or directory");
}

static struct trace *generate(const char *profile, uint64_t seed, double phase)
{
    const struct trace_options some = {.slow = 1, .limit = 3000};
    const struct generate_options options = {.seed = seed, .phase = phase, .trace = &some};
    struct trace *trace = NULL;

    check_eq(trace_generate(profile_find(profile), &options, &trace), 0);
    check_eq(trace->n, 3000);
    return trace;
}

static size_t arrivals_between(const struct trace *trace, double from, double to)
{
    size_t n = 0;

    for (size_t i = 0; i < trace->n; i++)
        n += trace->requests[i].arrival_s >= from && trace->requests[i].arrival_s < to;
    return n;
}

TEST(generated_again_is_the_same)
{
    _cleanup_(trace_freep) struct trace *a = generate("code", 7, 0), *b = generate("code", 7, 0),
                                        *c = generate("code", 8, 0);

    check(memcmp(a->requests, b->requests, a->n * sizeof(*a->requests)) == 0);
    check(memcmp(a->requests, c->requests, a->n * sizeof(*a->requests)) != 0);
}

TEST(generated_bursts)
{
    _cleanup_(trace_freep) struct trace *trace = generate("chat", 1, 0), *later = generate("chat", 1, 0.75);

    /* 45 seconds at 0.5 a second, 15 at 5; the bounds are four standard deviations away. */
    check(arrivals_between(trace, 0, 45) < 42);
    check(arrivals_between(trace, 45, 60) > 40);
    check(arrivals_between(later, 0, 15) > 40);
    check(!profile_find("poetry"));
}

TEST(generated_is_in_order_and_bounded)
{
    _cleanup_(trace_freep) struct trace *trace = generate("code", 3, 0.5);

    check(trace->requests[0].arrival_s == 0);
    for (size_t i = 0; i < trace->n; i++) {
        check(i == 0 || trace->requests[i].arrival_s >= trace->requests[i - 1].arrival_s);
        check(trace->requests[i].context >= 200 && trace->requests[i].context <= 7000);
        check(trace->requests[i].output >= 5 && trace->requests[i].output <= 100);
    }
}
