/* SPDX-License-Identifier: Apache-2.0 */

#include "bench.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "base/parse.h"

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

unsigned parse_number(const char *text, const char *option, unsigned max)
{
    uint64_t value;

    if (parse_u64(text, &value) < 0 || value > max)
        die("%s: %s is not a number up to %u", option, text, max);
    return (unsigned)value;
}

void end_output(void)
{
    if (fflush(stdout) != 0 || ferror(stdout))
        die("the measurements could not be written");
}
