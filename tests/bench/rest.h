/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A daemon at rest: what it does after a return, and would do while others measure, is over.
 */

#include <stdint.h>

#include "control.h"

#define PATIENCE_NS (10 * NSEC_PER_SEC)

/* The control socket of the daemon at `path`. */
struct control *open_control(const char *path);

/* Returns how many bytes are warm then. With `pause_ns` it sleeps so long between two looks. */
uint64_t wait_for_rest(struct control *control, uint64_t pause_ns);
