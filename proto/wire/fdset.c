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

/* How many entries from one on follow on each other, upwards or downwards. */
static unsigned run_length(const struct fdset *set, unsigned begin)
{
    const int *fds = set->fds + begin;
    unsigned n_max = set->n - begin, n = 1;
    int step = n_max > 1 && fds[1] < fds[0] ? -1 : 1;

    while (n < n_max && fds[0] >= 0 && fds[n] >= 0 && fds[n] == fds[0] + step * (int)n)
        n++;
    return n;
}

static void close_run(const int *fds, unsigned n)
{
    int low = fds[0] < fds[n - 1] ? fds[0] : fds[n - 1];

    if (n > 1 && close_range((unsigned)low, (unsigned)low + n - 1, 0) == 0)
        return;
    for (unsigned i = 0; i < n; i++)
        close_fd(fds[i]);
}

/* Those of one packet mostly follow on each other, and go in one system call then. */
void fdset_deinit(struct fdset *set)
{
    unsigned n;

    for (unsigned i = 0; i < set->n; i += n) {
        n = run_length(set, i);
        close_run(set->fds + i, n);
    }
    set->n = 0;
}
