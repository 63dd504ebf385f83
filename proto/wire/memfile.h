/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Memory files: memory that two processes share through a descriptor, of a size that nobody can change.
 */

#include <stddef.h>

/* A new file of `size` bytes, mapped for reading and writing, then sealed: with F_SEAL_SHRINK, F_SEAL_GROW,
 * F_SEAL_SEAL and `more_seals`. 0 or negative. */
int memfile_new(const char *name, size_t size, int more_seals, void **ret_memory, int *ret_fd);

/* 0 where the file has that size, and at least the seals; -EBADMSG, or what the kernel said. */
int memfile_check(int fd, size_t size, int seals);
