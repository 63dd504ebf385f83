/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Sockets: which sockets the daemon listens on, where they are and who may use them.
 */

#include "server.h"

/* Fills server->listeners and server->links. 0, or negative with one sentence in `error`. */
int sockets_open(struct server *server, char error[static SERVER_ERROR_MAX]);

/* Starts accepting on all of them. 0 or negative. */
int sockets_start(struct server *server);

/* Closes them and removes their names. */
void sockets_close(struct server *server);

/* The group that a name or number means. 0 or -ENOENT. */
int sockets_find_group(const char *name, gid_t *ret);
