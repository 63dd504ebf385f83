/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * History: what the GPU's memory was used for over the last minutes, a sample for each second in which that
 * changed. Nothing is written while nothing happens: between two samples it was as the first of them says.
 * Pure.
 */

#include <stdint.h>

#define HISTORY_MAX 900
#define HISTORY_STEP_NS UINT64_C(1000000000)

struct history_sample {
    uint64_t ns; /* CLOCK_MONOTONIC: the second that it stands for begins here */
    uint64_t granted_bytes, leased_bytes, pool_bytes, leaving_bytes, foreign_bytes, budget_bytes;
};

struct history {
    struct history_sample ring[HISTORY_MAX];
    uint64_t n; /* that were ever begun; the newest is ring[(n - 1) % HISTORY_MAX] */
};

/* What is so now: the last value of a second is what stays of it. */
void history_note(struct history *history, const struct history_sample *sample);

/* The kept ones, oldest first; returns how many. */
unsigned history_copy(const struct history *history, struct history_sample ret[static HISTORY_MAX]);
