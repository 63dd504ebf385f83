/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* States for tests that put them into words. */

#include "state.h"

/* As it was at a moment at which not much was going on: no instance, sample, or event. */
struct state *stateworld_new(size_t n_instances);
