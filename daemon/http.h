/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* HTTP: metrics and status page of this daemon. */

struct http;
struct server;

/* As configuration and options say; server->http stays NULL where it is off, or where nobody has asked for it
 * and it cannot be had, which is said in the log. 0, or negative with one sentence in `error`, which has room
 * for SERVER_ERROR_MAX. */
int http_open(struct server *server, char *error);

/* The loop still has to run, once. */
void http_close(struct server *server);

/* host:port; empty: there is none. */
const char *http_address(const struct server *server);
