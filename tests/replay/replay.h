/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The two ways to run a replay. Both fill the board; what an engine did wrong, or what was done to it, is in
 * its slot.
 */

#include "board.h"

#define REPLAY_ERROR_MAX 768

/*
 * 0 when every engine has come to its end, or was interrupted by SIGINT or SIGTERM: *ret_signal, else 0. A
 * negative errno with a sentence for what is nobody's in particular.
 */
int replay_virtual(struct board *board, int *ret_signal, char error[static REPLAY_ERROR_MAX]);
int replay_live(struct board *board, int *ret_signal, char error[static REPLAY_ERROR_MAX]);
