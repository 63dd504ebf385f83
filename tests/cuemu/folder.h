/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The device folder as a set of files: making it, entering it alone, probing its locks, removing it. */

#include <stdbool.h>

#include "registry.h"

#define FOLDER_REGISTRY "registry"
#define FOLDER_MEMORY "memory.%u"    /* device */
#define FOLDER_SLOT "slot.%u"        /* process slot */
#define FOLDER_EXTENT "extent.%u.%u" /* device, extent */
#define FOLDER_NAME_MAX 40

/*
 * Opens the folder, making it if need be, and enters its gate: nobody else joins or leaves until
 * folder_open_gate(). Negative errno with a sentence in `error`.
 */
int folder_enter(const char *path, int *ret_dir, char error[static EMU_ERROR_MAX]);
void folder_close_gate(int dir);
void folder_open_gate(int dir);

/* A file of the folder, readable and writable by everybody whatever the umask. Negative errno. */
int folder_open_file(int dir, const char *name, int flags, int *ret_fd);

/* Locks the file through this open file description; 0 or negative errno. */
int folder_lock_exclusive(int fd);
int folder_lock_shared(int fd);

/* Does any living descriptor hold a lock on the file? True too where that cannot be found out. */
bool folder_is_locked(int dir, const char *name);

/* Does anything live in the folder, whichever version made it? True too where that cannot be found out. */
bool folder_in_use(int dir);

/* Removes our files, and nothing else. */
void folder_wipe(int dir);
