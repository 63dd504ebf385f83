/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Signals without handlers: they stay blocked, and are read where the program has time for them.
 */

#include "signals.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "progress.h"

int signals_open(void)
{
    sigset_t set;
    int fd;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGCHLD);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return -errno;
    fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int signals_read(int fd)
{
    struct signalfd_siginfo info;

    return read(fd, &info, sizeof(info)) == sizeof(info) ? (int)info.ssi_signo : 0;
}

int signals_read_end(int fd)
{
    int signo, end = 0;

    while ((signo = signals_read(fd)))
        if (signo != SIGCHLD)
            end = signo;
    return end;
}

void signals_wait(int fd, double until_s)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    double wait = until_s - progress_clock();
    struct timespec ts;

    if (wait <= 0)
        return;
    if (wait > 3600)
        wait = 3600;
    ts.tv_sec = (time_t)wait;
    ts.tv_nsec = (long)((wait - (double)ts.tv_sec) * (double)NSEC_PER_SEC);
    ppoll(&poll_fd, 1, &ts, NULL);
}
