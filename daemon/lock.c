/* SPDX-License-Identifier: Apache-2.0 */

/*
 * flock() on a named file. The name goes away with the holder, so whoever gets the lock makes sure that the
 * name still means the file that was locked; otherwise two could hold "the" lock on two files.
 */

#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

struct lock {
    int fd;
    char path[];
};

static bool is_named(int fd, const char *path)
{
    struct stat ours, named;

    return fstat(fd, &ours) == 0 && lstat(path, &named) == 0 && ours.st_dev == named.st_dev &&
           ours.st_ino == named.st_ino;
}

int lock_take(const char *path, struct lock **ret)
{
    struct lock *lock;
    int fd;

    for (;;) {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return -errno;
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            int r = errno == EWOULDBLOCK ? LOCK_E_HELD : -errno;

            close_fd(fd);
            return r;
        }
        if (is_named(fd, path))
            break;
        close_fd(fd);
    }
    lock = malloc(sizeof(*lock) + strlen(path) + 1);
    if (!lock) {
        unlink(path);
        close_fd(fd);
        return -ENOMEM;
    }
    lock->fd = fd;
    strcpy(lock->path, path);
    *ret = lock;
    return 0;
}

struct lock *lock_release(struct lock *lock)
{
    if (!lock)
        return NULL;
    unlink(lock->path);
    close_fd(lock->fd);
    free(lock);
    return NULL;
}
