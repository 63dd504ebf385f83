/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

#include "base/arith.h"
#include "wire/fdset.h"

static int open_something(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    check(fd >= 0);
    return fd;
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

TEST(deinit_closes_and_leaves_a_usable_set)
{
    struct fdset set = {0};
    int fd = open_something();

    check_eq(fdset_consume(&set, fd), 0);
    check_eq(set.n, 1);
    fdset_deinit(&set);
    check(!is_open(fd));
    check_eq(set.n, 0);
    fdset_deinit(&set);
    check_eq(fdset_consume(&set, open_something()), 0);
    fdset_deinit(&set);
}

TEST(full_set_leaves_the_descriptor_to_the_caller)
{
    struct fdset set = {0};
    int fd = open_something();

    for (unsigned i = 0; i < FRAME_FDS_MAX; i++)
        check_eq(fdset_dup(&set, fd), 0);
    check_eq(fdset_consume(&set, fd), -ENOSPC);
    check_eq(fdset_dup(&set, fd), -ENOSPC);
    fdset_deinit(&set);
    check(is_open(fd));
    close(fd);
}

TEST(dup_is_another_descriptor_that_exec_closes)
{
    struct fdset set = {0};
    int fd = open_something();

    check_eq(fdset_dup(&set, fd), 0);
    check(fdset_borrow(&set, 0) != fd);
    check(fdset_borrow(&set, 0) > STDERR_FILENO);
    check_eq(fcntl(fdset_borrow(&set, 0), F_GETFD), FD_CLOEXEC);
    fdset_deinit(&set);
    check(is_open(fd));
    close(fd);
    check_eq(fdset_dup(&set, fd), -EBADF);
    check_eq(set.n, 0);
}

TEST(stolen_descriptor_survives_its_set)
{
    struct fdset set = {0};
    int a = open_something(), b = open_something();

    fdset_consume(&set, a);
    fdset_consume(&set, b);
    check_eq(fdset_steal(&set, 0), a);
    check_eq(fdset_steal(&set, 0), -1);
    check_eq(fdset_borrow(&set, 0), -1);
    check_eq(fdset_borrow(&set, 1), b);
    check_eq(fdset_borrow(&set, 2), -1);
    check_eq(fdset_steal(&set, 2), -1);
    fdset_deinit(&set);
    check(is_open(a));
    check(!is_open(b));
    close(a);
}

TEST(move_empties_the_source)
{
    struct fdset from = {0}, to = {0};
    int fd = open_something();

    fdset_consume(&from, fd);
    fdset_move(&to, &from);
    check_eq(from.n, 0);
    check_eq(fdset_borrow(&to, 0), fd);
    fdset_deinit(&from);
    check(is_open(fd));
    fdset_deinit(&to);
}

static void expect_open(const int *fds, const char *expected)
{
    for (unsigned i = 0; expected[i]; i++)
        if (is_open(fds[i]) != (expected[i] == 'o'))
            test_fail(__FILE__, __LINE__, "descriptor %u of %s", i, expected);
}

TEST(runs_are_closed_and_neighbours_are_not)
{
    static const unsigned order[] = {1, 2, 3, 6, 5, 9, 11, 10, 8};
    struct fdset set = {0};
    int fds[13];

    for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = dup2(STDERR_FILENO, 100 + (int)i);
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        check_eq(fdset_consume(&set, fds[order[i]]), 0);
    check_eq(fdset_steal(&set, 5), fds[9]);
    fdset_deinit(&set);
    expect_open(fds, "o...o..o.o..o");
    close(fds[0]);
    close(fds[4]);
    close(fds[7]);
    close(fds[9]);
    close(fds[12]);
}

TEST(runs_end_at_the_first_descriptor)
{
    struct fdset set = {0};
    int fd = open_something();

    close(0);
    close(1);
    check_eq(dup2(fd, 1), 1);
    check_eq(dup2(fd, 0), 0);
    close(fd);
    check_eq(fdset_consume(&set, 1), 0);
    check_eq(fdset_consume(&set, 0), 0);
    check_eq(fdset_consume(&set, -1), 0);
    fdset_deinit(&set);
    check(!is_open(0));
    check(!is_open(1));
    check_eq(open("/dev/null", O_RDWR), 0);
    check_eq(open("/dev/null", O_RDWR), 1);
}
