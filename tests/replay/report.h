/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The result of a replay, for people and for programs.
 */

#include "board.h"

/* On stdout. 0 or a negative errno. */
int report_table(const struct board *board);

/*
 * One object: what was run, "engines" (an array) and "all". Sizes are bytes, times seconds; a percentile
 * that does not exist is null; "error" is a sentence, or null.
 */
int report_json(const struct board *board);
