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

/* A command-line argument that is a number up to `max`. */
unsigned parse_number(const char *text, const char *option, unsigned max);

/* Everything that was printed has been written. */
void end_output(void);
