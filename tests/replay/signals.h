/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * SIGINT, SIGTERM and SIGCHLD as something to read and to wait for. Engine processes inherit the
 * descriptor; each reads its own signals from it.
 */

/* Blocks the signals, in threads started later, too. A descriptor or a negative errno. */
int signals_open(void);

/* The next pending signal, 0 when there is none. */
int signals_read(int fd);

/* The latest SIGINT or SIGTERM that is pending, 0 when there is none. */
int signals_read_end(int fd);

/* Sleeps until a signal is pending or progress_clock() reaches `until_s`. */
void signals_wait(int fd, double until_s);
