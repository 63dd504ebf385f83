/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Owned descriptors in a fixed array. An entry keeps its index for the life of the set, because descriptors
 * of a packet are named by their position; a stolen one leaves -1 behind.
 */

#include "wire/fdset.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>

#include "base/cleanup.h"

int fdset_consume(struct fdset *set, int fd)
{
    if (set->n == FRAME_FDS_MAX)
        return -ENOSPC;
    set->fds[set->n++] = fd;
    return 0;
}

int fdset_dup(struct fdset *set, int fd)
{
    int copy;

    if (set->n == FRAME_FDS_MAX)
        return -ENOSPC;
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        return -errno;
    return fdset_consume(set, copy);
}

int fdset_borrow(const struct fdset *set, unsigned index)
{
    return index < set->n ? set->fds[index] : -1;
}

int fdset_steal(struct fdset *set, unsigned index)
{
    return index < set->n ? steal_fd(&set->fds[index]) : -1;
}

void fdset_move(struct fdset *to, struct fdset *from)
{
    assert(to->n == 0);
    to->n = from->n;
    for (unsigned i = 0; i < from->n; i++)
        to->fds[i] = from->fds[i];
    from->n = 0;
}

void fdset_deinit(struct fdset *set)
{
    while (set->n > 0)
        close_fd(set->fds[--set->n]);
}
