/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Virtual time: engines that share one GPU, in one thread, without a clock. Pure, apart from what the
 * engines' memory does.
 */

#include <stddef.h>

#include "engine.h"

/*
 * Called before every event with the time that it happens at; anything but 0 ends the run, which returns it.
 */
typedef int (*virtual_progress_fn)(void *data, double now);

/* Until all requests of all engines are gone. 0, or what a memory or `progress` returned. */
int virtual_run(struct engine **engines, size_t n, virtual_progress_fn progress, void *data);
