/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One engine of a live replay, in its own process.
 */

#include "board.h"

/* All engines begin together: each says that it is ready, and waits until the gate is opened for all. */
struct live_gate {
    int ready_read, ready_write; /* a byte from each engine */
    int open_read, open_write;   /* end-of-file when the last writer, which is the parent, closes it */
};

#define LIVE_GATE_INIT                                                                                       \
    {                                                                                                        \
        -1, -1, -1, -1                                                                                       \
    }

int live_gate_open(struct live_gate *gate);
void live_gate_close(struct live_gate *gate);

/* Runs engine i to its end, or to SIGINT or SIGTERM on `signals`. The process' exit status. */
int live_engine_run(struct board *board, size_t i, const struct live_gate *gate, int signals);
