/* SPDX-License-Identifier: Apache-2.0 */

#include "bench.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "base/parse.h"

#define OPTIONS_MAX 16

void die(const char *format, ...)
{
    va_list args;

    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

void pin_to(int processor)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        die("processor %d: %s", processor, strerror(errno));
}

static unsigned parse_number(const char *text, const char *option, unsigned max)
{
    uint64_t value;

    if (parse_u64(text, &value) < 0 || value > max)
        die("--%s: %s is not a number up to %u", option, text, max);
    return (unsigned)value;
}

static void take_option(const struct bench_option *option, const char *value)
{
    if (option->text && option->number) {
        if (*option->number == option->max)
            die("--%s: there are at most %u", option->name, option->max);
        option->text[(*option->number)++] = value;
    } else if (option->text) {
        *option->text = value;
    } else if (option->number) {
        *option->number = parse_number(value, option->name, option->max);
    } else {
        *option->processor = (int)parse_number(value, option->name, CPU_SETSIZE - 1);
    }
}

void parse_options(int argc, char **argv, const struct bench_option *options)
{
    struct option known[OPTIONS_MAX + 1] = {0};
    int c, index;

    for (unsigned i = 0; i < OPTIONS_MAX && options[i].name; i++)
        known[i] = (struct option){.name = options[i].name, .has_arg = required_argument};
    while ((c = getopt_long(argc, argv, "", known, &index)) == 0)
        take_option(&options[index], optarg);
    if (c != -1)
        exit(2);
}

void end_output(void)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        die("the measurements could not be written");
}
