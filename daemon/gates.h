/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Gates: how much is said in a while of what peers can cause at will. Each trust domain has one, so that
 * nobody's noise drowns what others are to be told. Pure.
 */

#include <stdint.h>

#define GATES_N 64
#define GATES_PERIOD_NS UINT64_C(10000000000)

struct gates {
    struct {
        uint64_t since_ns;
        unsigned n;
    } of[GATES_N];
};

enum gate_verdict {
    GATE_OPEN,
    GATE_CLOSES, /* the first one in this period that is too much */
    GATE_CLOSED,
};

/* Which gate `domain` has, below GATES_N. Some share one where there are many. */
unsigned gates_index(const char *domain);

/* Lets `max` (1 or more) through in GATES_PERIOD_NS. */
enum gate_verdict gates_pass(struct gates *gates, const char *domain, unsigned max, uint64_t now_ns);
