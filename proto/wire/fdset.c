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

/* How many of them, from the first one on, follow on each other, upwards or downwards. */
static unsigned run_length(const int *fds, unsigned n_max)
{
    int step = n_max > 1 && fds[1] < fds[0] ? -1 : 1;
    unsigned n = 1;

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
void fds_close(const int *fds, unsigned n)
{
    unsigned n_run;

    for (; n > 0; fds += n_run, n -= n_run) {
        n_run = run_length(fds, n);
        close_run(fds, n_run);
    }
}

void fdset_deinit(struct fdset *set)
{
    fds_close(set->fds, set->n);
    set->n = 0;
}
