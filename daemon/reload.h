/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Reload: the configuration takes effect, at start and when it is read again.
 */

#include "server.h"

/* Applies what needs nothing but the configuration: the log's level, the admin group. */
void reload_apply(struct server *server);

/* Reads the file again. 0; positive: some of it needs a restart, as `sentence` says; negative: the old
 * configuration stays, and `sentence` says why. It is logged and noted either way. */
int reload(struct server *server, char sentence[static CONFIG_ERROR_MAX]);
