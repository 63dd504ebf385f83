/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A test that has a folder and a child, and doesn't end by itself: test_test.py looks at what the runner
 * leaves when it is ended from outside.
 */

#include "test.h"

#include <stdio.h>
#include <unistd.h>

TEST(endless)
{
    int fds[2];
    pid_t child;
    char byte;

    check_eq(pipe(fds), 0);
    child = fork();
    check(child >= 0);
    if (child > 0) {
        printf("%s %d\n", test_folder(), (int)child);
        fflush(stdout);
    }
    /* Both hold the other end, so nothing comes. */
    check_eq(read(fds[0], &byte, 1), 1);
}
