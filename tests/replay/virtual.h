/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Virtual time: engines that share one GPU, in one thread, without a clock. Pure, apart from what the
 * engines' memory does.
 */

#include <stdbool.h>
#include <stddef.h>

#include "engine.h"

enum {
    VIRTUAL_E_STOPPED = 1, /* by `go_on` */
    VIRTUAL_E_STUCK,       /* nothing more will happen, but not all requests are through */
};

/* Asked before every event, with the time that it happens at. */
typedef bool (*virtual_go_on_fn)(void *data, double now);

/* Until all requests of all engines are gone. 0, VIRTUAL_E_*, or a negative errno, as a memory returned it.
 */
int virtual_run(struct engine **engines, size_t n, virtual_go_on_fn go_on, void *data);
