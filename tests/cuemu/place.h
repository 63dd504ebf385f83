/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Where a process's devices are, and whether this is still the process that joined them. */

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "registry.h"

struct place {
    char folder[PATH_MAX]; /* as told by the program; "" as the environment has it */
    char sizes[256];
    uint32_t *here; /* in a page that the kernel clears in forked children: 1 in the process that joined */
};

/* NULL as the environment has it. */
void place_set(struct place *place, const char *folder, const char *sizes);

/* Are those the devices that have been joined? NULL matches anything. */
bool place_matches(const struct registry *registry, const char *folder, const char *sizes);

/* Joins the folder. Negative errno with a sentence in `error`. */
int place_join(struct place *place, struct registry **ret_registry, char error[static EMU_ERROR_MAX]);

bool place_has_joined(const struct place *place);

/* Is this a forked child of the process that joined? */
bool place_is_forked(const struct place *place);
