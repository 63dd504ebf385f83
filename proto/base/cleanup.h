/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Scoped cleanup. Every destructor in this project accepts NULL and returns NULL, so that
 *     _cleanup_(pool_freep) struct pool *pool = NULL;
 * is always right, whatever path leaves the scope.
 */

#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

/* Defines NAMEp(), which the cleanup attribute wants, from the destructor NAME(). */
#define DEFINE_CLEANUP(type, name)                                                                           \
    static inline void name##p(type *p)                                                                      \
    {                                                                                                        \
        if (*p)                                                                                              \
            *p = name(*p);                                                                                   \
    }                                                                                                        \
    struct cleanup_needs_a_semicolon

static inline void cleanup_freep(void *p)
{
    free(*(void **)p);
}

static inline int close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
    return -1;
}

static inline void cleanup_closep(int *fd)
{
    *fd = close_fd(*fd);
}

#define _cleanup_free_ _cleanup_(cleanup_freep)
#define _cleanup_close_ _cleanup_(cleanup_closep)

/* Takes the value out of a variable that is cleaned up, so that the caller owns it. */
#define steal_pointer(p)                                                                                     \
    ({                                                                                                       \
        __typeof__(p) *steal_p = &(p);                                                                       \
        __typeof__(p) steal_value = *steal_p;                                                                \
        *steal_p = NULL;                                                                                     \
        steal_value;                                                                                         \
    })

static inline int steal_fd(int *fd)
{
    int value = *fd;

    *fd = -1;
    return value;
}
