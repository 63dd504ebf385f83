/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Memory: what the broker wants of the driver, extent by extent, and what the driver answers.
 */

#include "server.h"

void memory_create(struct server *server, uint64_t extent, unsigned class_index);
void memory_export(struct server *server, uint64_t extent);
void memory_release(struct server *server, uint64_t extent);

/* An export that a cold grant asks for, and the broker doesn't know of; grant_exported() answers. */
void memory_export_granted(struct server *server, struct slot *slot);

/* The driver has answered one of these. */
void memory_done(struct server *server, struct slot *slot);
