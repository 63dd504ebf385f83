/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the programs of the benchmark share. All of it ends the process when something fails: a benchmark that
 * goes on measures something else.
 */

#include <stdint.h>

_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* CLOCK_MONOTONIC. */
uint64_t now_ns(void);

/* This thread, and those that it starts. */
void pin_to(int processor);

#define ROUNDS_MAX 1000000

/* A command-line option, and where its value goes: a text, a number up to `max`, a processor; or with `text`
 * and `number` both one of at most `max` texts, which are counted. */
struct bench_option {
    const char *name;
    const char **text;
    unsigned *number;
    unsigned max;
    int *processor;
};

/* Ends with the usage status for what is no option of that list, which ends with one that has no name. */
void parse_options(int argc, char **argv, const struct bench_option *options);

/* Everything that was printed has been written. */
void end_output(void);
