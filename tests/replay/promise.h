/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a report of available blocks has promised, and whether a refusal breaks it. Pure: the time is an
 * argument, in seconds of any steady clock.
 */

#include <stdbool.h>
#include <stdint.h>

/* Zero-initialised it promises nothing. */
struct promise {
    uint64_t blocks; /* that are left of it */
    double until_s;
};

/* The report was asked for not before `now_s`, and holds for so long. It replaces the one before. */
void promise_make(struct promise *promise, uint64_t blocks, double now_s, double holds_s);
/* So many blocks were granted. What comes free later was not promised. */
void promise_spend(struct promise *promise, uint64_t blocks);
/* So many were refused, which was known at `now_s`. */
bool promise_is_broken(const struct promise *promise, uint64_t blocks, double now_s);
