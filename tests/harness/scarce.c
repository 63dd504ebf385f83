/* SPDX-License-Identifier: Apache-2.0 */

/*
 * To be preloaded: one allocation of the program fails, the one whose number $SCARCE_AT is, from 1. At the
 * end the number of allocations that were asked for goes to the descriptor $SCARCE_FD. What lies below is
 * the C library's own allocator, which needs no looking up: that would allocate.
 */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *memory, size_t size);

static atomic_ulong n_allocations;
static unsigned long fail_at; /* 0: none */

__attribute__((constructor)) static void begin(void)
{
    const char *at = getenv("SCARCE_AT");

    fail_at = at ? strtoul(at, NULL, 10) : 0;
    n_allocations = 0;
}

__attribute__((destructor)) static void tell(void)
{
    const char *fd = getenv("SCARCE_FD");

    if (fd)
        dprintf((int)strtol(fd, NULL, 10), "%lu", (unsigned long)n_allocations);
}

static int is_to_fail(void)
{
    if (++n_allocations != fail_at)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return is_to_fail() ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return is_to_fail() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *memory, size_t size)
{
    return is_to_fail() ? NULL : __libc_realloc(memory, size);
}
