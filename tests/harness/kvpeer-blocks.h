/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * kvpeer's commands about blocks.
 */

#include "kvpeer.h"

#define N_BLOCKS_COMMANDS 9

extern const struct command blocks_commands[N_BLOCKS_COMMANDS];

/* Gives back all blocks of the regions that are to yield. */
void blocks_yield(void);
