/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How far a replay is, on stderr: one line that changes where that is a terminal, else a line every few
 * seconds.
 */

#include "board.h"

struct progress {
    double next_s; /* wall time of the next line */
    bool terminal;
    bool drawn; /* there is a line to be wiped */
};

void progress_init(struct progress *progress);

/* Seconds of a steady clock. */
double progress_clock(void);

/* Shows the board when it is time to; `replayed_s` is the time in the traces. */
void progress_show(struct progress *progress, const struct board *board, double replayed_s);

/* Wall time until progress_show() wants to be called again. */
double progress_wait_s(const struct progress *progress);

/* Wipes the line. */
void progress_end(struct progress *progress);
