/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A controller's reservation: memory that the daemon promises to an instance before its engines ask.
 */

#include <stdbool.h>

/* Of a client. Touched with its lock held. */
struct reservation_state {
    bool asking; /* a thread waits for the answer */
    bool held;
};
