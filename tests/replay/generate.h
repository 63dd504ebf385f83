/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Made-up traces, for where no recorded ones are at hand. Requests come at random in two alternating
 * phases, a quiet one and a burst; lengths are spread evenly over their orders of magnitude. Of the profiles,
 * "code" has long prompts and short answers, "chat" shorter prompts and long answers, as the services of the
 * Azure traces of 2023 have.
 *
 * The same profile, seed, phase and options give the same trace.
 */

#include "trace.h"

struct profile;

/* NULL where there is no profile of that name. */
const struct profile *profile_find(const char *name);

#define GENERATE_DEFAULT_REQUESTS 400

struct generate_options {
    uint64_t seed;
    double phase; /* where in the cycle of quiet and burst the trace begins, from 0 to 1 */
    double shift_s;
    const struct trace_options *trace; /* a limit of 0 means GENERATE_DEFAULT_REQUESTS */
};

/* -ENOMEM. */
int trace_generate(const struct profile *profile, const struct generate_options *options,
                   struct trace **ret_trace);

/* What the i-th of n engines gets, so that no two have the same trace, or a burst at the same time. */
uint64_t generate_seed(uint64_t seed, size_t i);
double generate_phase(size_t i, size_t n);
