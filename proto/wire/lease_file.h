/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Lease file: the shared memory of one peer's lease lines (wire/lease.h). Both sides write it, so neither
 * believes it; its size is sealed, so neither can be killed with it.
 */

#include "wire/lease.h"

#define LEASE_LINES 256 /* region number n has line n - 1 */
#define LEASE_FILE_SIZE (LEASE_LINES * sizeof(struct lease_line))

/* Daemon: a new file, all zero. The descriptor is for the peer; 0 or negative. */
int lease_file_new(struct lease_line **ret_lines, int *ret_fd);

/* Client: maps a received file after checking its size and seals (-EBADMSG). The descriptor is borrowed. */
int lease_file_map(int fd, struct lease_line **ret_lines);

struct lease_line *lease_file_unmap(struct lease_line *lines);
