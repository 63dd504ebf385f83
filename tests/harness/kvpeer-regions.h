/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * kvpeer's commands about regions.
 */

#include "kvpeer.h"

#define N_REGIONS_COMMANDS 8

extern const struct command regions_commands[N_REGIONS_COMMANDS];
