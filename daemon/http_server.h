/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * HTTP server: a thread of its own with a loop of its own, so that whatever clients do, or don't, costs the
 * broker's loop one copy of its state every HTTP_STATE_MS at most.
 */

#include <stdbool.h>

#include "state_share.h"

#define HTTP_CLIENTS_MAX 64   /* connections at once; others wait */
#define HTTP_STATE_MS 100     /* requests share a state that is no older */
#define HTTP_REQUEST_MS 10000 /* in which a client says all that it wants, its next request, too */
#define HTTP_ANSWER_MS 15000  /* in which it reads the answer */
#define HTTP_PATIENCE_MS 2000 /* in which the loop must have answered */

struct http_server;

/* `listen_fd`: nonblocking, taken over when all goes well. `share` is borrowed. `local`: only this machine
 * can reach it, so that whoever means another name is sent away, and one address may have all connections.
 * 0 or negative. */
int http_server_new(int listen_fd, bool local, struct state_share *share, struct http_server **ret);

/* Ends the thread, connections and all. Stops the share. */
struct http_server *http_server_free(struct http_server *server);
