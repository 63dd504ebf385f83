/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Discovery: finds the daemon's socket, connects, and makes sure that a daemon is behind it.
 */

#include "options.h"

/* A connected SOCK_SEQPACKET socket, the caller's. 0, KVC_E_CONNECT, KVC_E_TIMEOUT, KVC_E_NOFILE. */
int discovery_connect(const struct settings *settings, int *ret_fd);
