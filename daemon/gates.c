/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A gate costs nothing while it is not used: its period begins with the first that comes after the last
 * period's end. Their number is fixed, so that whoever makes domains without end makes no gates.
 */

#include "gates.h"

/* FNV-1a. */
unsigned gates_index(const char *domain)
{
    uint32_t hash = 2166136261u;

    for (; *domain; domain++)
        hash = (hash ^ (unsigned char)*domain) * 16777619u;
    return (hash ^ hash >> 16) % GATES_N;
}

enum gate_verdict gates_pass(struct gates *gates, const char *domain, unsigned max, uint64_t now_ns)
{
    unsigned index = gates_index(domain);
    unsigned *n = &gates->of[index].n;

    if (*n == 0 || now_ns - gates->of[index].since_ns > GATES_PERIOD_NS) {
        gates->of[index].since_ns = now_ns;
        *n = 0;
    }
    if (*n > max)
        return GATE_CLOSED;
    return ++*n > max ? GATE_CLOSES : GATE_OPEN;
}
