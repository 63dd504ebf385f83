/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Places: where sockets, locks and state live when nobody says. Root, and whoever may write there, uses the
 * system's folders; other people use their own.
 */

#include <limits.h>

/* The folder of sockets: $RUNTIME_DIRECTORY, /run/kvcached, $XDG_RUNTIME_DIR/kvcached. 0 or -ENOENT. */
int places_runtime_dir(char ret[static PATH_MAX]);

/* The folder of state: $STATE_DIRECTORY, /var/lib/kvcached, $XDG_STATE_HOME/kvcached. 0 or -ENOENT. */
int places_state_dir(char ret[static PATH_MAX]);

/* Makes a folder and those above it, mode 0755 whatever the umask. 0 (also when it exists) or negative. */
int places_make_dir(const char *path);
