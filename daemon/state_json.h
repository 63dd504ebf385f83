/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The daemon's state as JSON, for the status page and for programs: docs/STATE-JSON.md. Pure. */

#include <stddef.h>

struct state;

/* 0 or -ENOMEM. The text is the caller's, to be freed. */
int state_json(const struct state *state, char **ret, size_t *ret_length);
