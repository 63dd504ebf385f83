/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The generator of request traces. Arrivals are a Poisson process whose rate changes between quiet and burst:
 * gaps are drawn from the exponential distribution, and a gap that would reach beyond its phase is drawn
 * again from where the next phase begins, which is the same process, since the distribution has no memory.
 *
 * Arrivals are whole milliseconds and the first is at 0, so that a trace that is written to a file and read
 * again is the same trace.
 */

#include "generate.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/arith.h"

struct profile {
    const char *name;
    double quiet_s, burst_s;       /* how long each phase takes */
    double quiet_rate, burst_rate; /* requests a second */
    double context_min, context_max;
    double output_min, output_max;
};

/*
 * Lengths are about those of the Azure traces, where code has 2,048 tokens in and 28 out on average,
 * conversation 1,155 and 211. Rates are such that a GPU can serve three engines with time to spare, but not
 * three bursts in a third of its memory each.
 */
static const struct profile profiles[] = {
    {.name = "code",
     .quiet_s = 45,
     .burst_s = 15,
     .quiet_rate = 0.5,
     .burst_rate = 3,
     .context_min = 200,
     .context_max = 7000,
     .output_min = 5,
     .output_max = 100},
    {.name = "chat",
     .quiet_s = 45,
     .burst_s = 15,
     .quiet_rate = 0.5,
     .burst_rate = 5,
     .context_min = 100,
     .context_max = 4000,
     .output_min = 50,
     .output_max = 500},
};

const struct profile *profile_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(profiles); i++)
        if (strcmp(profiles[i].name, name) == 0)
            return &profiles[i];
    return NULL;
}

/* splitmix64: any seed will do, also 0. */
static uint64_t random_u64(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Above 0, at most 1. */
static double random_unit(uint64_t *state)
{
    return (double)((random_u64(state) >> 11) + 1) / (double)(UINT64_C(1) << 53);
}

static uint32_t random_length(uint64_t *state, double min, double max)
{
    return (uint32_t)(min * exp(log(max / min) * random_unit(state)));
}

static double next_arrival(const struct profile *p, uint64_t *state, double now)
{
    for (;;) {
        double cycle = p->quiet_s + p->burst_s, into = fmod(now, cycle), start = now - into;
        int burst = into >= p->quiet_s;
        double end = start + (burst ? cycle : p->quiet_s);
        double when = now - log(random_unit(state)) / (burst ? p->burst_rate : p->quiet_rate);

        if (when < end)
            return when;
        now = end;
    }
}

int trace_generate(const struct profile *p, const struct generate_options *options, struct trace **ret_trace)
{
    _cleanup_(trace_freep) struct trace *trace = trace_new();
    double origin = options->phase * (p->quiet_s + p->burst_s), now = origin;
    size_t n = options->trace->limit ? options->trace->limit : GENERATE_DEFAULT_REQUESTS;
    uint64_t state = options->seed;
    int r;

    if (!trace)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        double ms = floor((now - origin) * 1000);
        struct trace_request request = {
            .arrival_s = ms / 1000 * options->trace->slow + options->shift_s,
            .context = random_length(&state, p->context_min, p->context_max),
            .output = random_length(&state, p->output_min, p->output_max),
        };

        r = trace_append(trace, &request);
        if (r < 0)
            return r;
        now = next_arrival(p, &state, now);
    }
    *ret_trace = steal_pointer(trace);
    return 0;
}

uint64_t generate_seed(uint64_t seed, size_t i)
{
    return seed + i * UINT64_C(0xd1342543de82ef95);
}

double generate_phase(size_t i, size_t n)
{
    return (double)i / (double)n;
}
