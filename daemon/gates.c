/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A gate costs nothing while it is not used: its period begins with the first that comes after the last
 * period's end. Their number is fixed, so that whoever makes domains without end makes no gates.
 */

#include "gates.h"

enum gate_verdict gate_pass(struct gate *gate, unsigned max, uint64_t now_ns)
{
    if (gate->n == 0 || now_ns - gate->since_ns > GATES_PERIOD_NS)
        *gate = (struct gate){.since_ns = now_ns};
    if (gate->n > max)
        return GATE_CLOSED;
    return ++gate->n > max ? GATE_CLOSES : GATE_OPEN;
}

enum gate_verdict gates_pass(struct gates *gates, const char *domain, unsigned max, uint64_t now_ns)
{
    return gate_pass(&gates->of[gates_index(gates->secret, domain)], max, now_ns);
}

/* FNV-1a from a secret start. */
unsigned gates_index(uint64_t secret, const char *domain)
{
    uint64_t hash = secret ^ UINT64_C(0xcbf29ce484222325);

    for (; *domain; domain++)
        hash = (hash ^ (unsigned char)*domain) * UINT64_C(0x100000001b3);
    hash ^= hash >> 32;
    return (hash ^ hash >> 16) % GATES_N;
}
