/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Gates: how much is said in a while of what peers can cause at will. Each trust domain has one, as far as
 * there are enough: which ones share one depends on a secret, so nobody can choose whose he closes. Pure.
 */

#include <stdint.h>

#define GATES_N 1024
#define GATES_PERIOD_NS UINT64_C(10000000000)

struct gate {
    uint64_t since_ns;
    unsigned n;
};

struct gates {
    uint64_t secret;
    struct gate of[GATES_N];
};

enum gate_verdict {
    GATE_OPEN,
    GATE_CLOSES, /* the first one in this period that is too much */
    GATE_CLOSED,
};

/* Lets `max` (1 or more) through in GATES_PERIOD_NS. */
enum gate_verdict gate_pass(struct gate *gate, unsigned max, uint64_t now_ns);
enum gate_verdict gates_pass(struct gates *gates, const char *domain, unsigned max, uint64_t now_ns);

/* Which of GATES_N it is. */
unsigned gates_index(uint64_t secret, const char *domain);
