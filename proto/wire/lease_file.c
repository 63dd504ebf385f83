/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The client writes too, so the file cannot be sealed against writing, and a hole can be punched into it: the
 * words then read as zero. That says no more than was issued, so it is no scribble, only the client's loss.
 */

#include "wire/lease_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdalign.h>
#include <sys/mman.h>

#include "wire/memfile.h"

_Static_assert(sizeof(struct lease_line) == 64, "a line is a cache line");
_Static_assert(ATOMIC_LONG_LOCK_FREE == 2, "words in shared memory need no lock");

int lease_file_new(struct lease_line **ret_lines, int *ret_fd)
{
    void *memory;
    int r = memfile_new("kvcached-leases", LEASE_FILE_SIZE, 0, &memory, ret_fd);

    if (r == 0)
        *ret_lines = memory;
    return r;
}

int lease_file_map(int fd, struct lease_line **ret_lines)
{
    void *memory;
    int r = memfile_check(fd, LEASE_FILE_SIZE, F_SEAL_SHRINK | F_SEAL_GROW);

    if (r < 0)
        return r;
    memory = mmap(NULL, LEASE_FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    *ret_lines = memory;
    return 0;
}

struct lease_line *lease_file_unmap(struct lease_line *lines)
{
    if (lines)
        munmap(lines, LEASE_FILE_SIZE);
    return NULL;
}
