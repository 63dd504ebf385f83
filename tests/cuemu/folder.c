/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The device folder as a set of files.
 *
 * Life is told by locks on open file descriptions: the kernel drops such a lock exactly when the last copy of
 * the descriptor goes, be it in a killed process, a forked child or a socket's queue. Probing is F_OFD_GETLK,
 * which disturbs nobody (flock can only probe by locking, which other probers see).
 *
 * Joining and leaving are serialised by flock on the folder itself, the gate. It protects the existence of
 * the files, not their contents; the registry's own mutex does that.
 *
 * Any user may join: the folder is 0777 without the sticky bit, so that whoever sweeps can unlink what
 * another user's process left, and files are 0666.
 */

#include "folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"

static int fail(char *error, int r, const char *path, const char *what)
{
    snprintf(error, EMU_ERROR_MAX, "Emulated devices in %s: %s", path, what);
    return r;
}

void folder_close_gate(int dir)
{
    while (flock(dir, LOCK_EX) < 0 && errno == EINTR)
        ;
}

void folder_open_gate(int dir)
{
    flock(dir, LOCK_UN);
}

static bool is_tmpfs(int dir)
{
    struct statfs fs;

    return fstatfs(dir, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
}

int folder_enter(const char *path, int *ret_dir, char error[static EMU_ERROR_MAX])
{
    for (;;) {
        _cleanup_close_ int dir = -1;
        struct stat st;

        if (mkdir(path, 0777) == 0)
            chmod(path, 0777);
        else if (errno != EEXIST)
            return fail(error, -errno, path, strerror(errno));
        dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dir < 0 && errno == ENOENT)
            continue;
        if (dir < 0)
            return fail(error, -errno, path, strerror(errno));
        if (!is_tmpfs(dir))
            return fail(error, -ENOTSUP, path, "not on tmpfs, which alone can hold such large sparse files");
        folder_close_gate(dir);
        if (fstat(dir, &st) == 0 && st.st_nlink > 0) {
            *ret_dir = steal_fd(&dir);
            return 0;
        }
        /* Removed by the last one out while we waited at the gate. */
    }
}

int folder_open_file(int dir, const char *name, int flags, int *ret_fd)
{
    _cleanup_close_ int fd = openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW, 0666);

    if (fd < 0)
        return -errno;
    if (flags & O_CREAT)
        fchmod(fd, 0666);
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int set_lock(int fd, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET};

    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

int folder_lock_exclusive(int fd)
{
    return set_lock(fd, F_WRLCK);
}

int folder_lock_shared(int fd)
{
    return set_lock(fd, F_RDLCK);
}

bool folder_is_locked(int dir, const char *name)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    _cleanup_close_ int fd = -1;
    int r;

    r = folder_open_file(dir, name, O_RDWR, &fd);
    if (r < 0)
        return r != -ENOENT;
    return fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type != F_UNLCK;
}

static bool has_prefix(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

/* Calls visit() for each entry until it returns true. 1 then, 0 after the last, or negative errno. */
static int any_entry(int dir, bool (*visit)(int dir, const char *name))
{
    int copy = openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool found = false;
    struct dirent *entry;
    DIR *stream;

    if (copy < 0)
        return -errno;
    stream = fdopendir(copy);
    if (!stream) {
        close_fd(copy);
        return -ENOMEM;
    }
    while (!found && (entry = readdir(stream)))
        found = visit(dir, entry->d_name);
    closedir(stream);
    return found;
}

static bool entry_lives(int dir, const char *name)
{
    return (has_prefix(name, "slot.") || has_prefix(name, "extent.")) && folder_is_locked(dir, name);
}

bool folder_in_use(int dir)
{
    return any_entry(dir, entry_lives) != 0;
}

static bool entry_unlink(int dir, const char *name)
{
    if (strcmp(name, FOLDER_REGISTRY) == 0 || has_prefix(name, "memory.") || has_prefix(name, "slot.") ||
        has_prefix(name, "extent."))
        unlinkat(dir, name, 0);
    return false;
}

void folder_wipe(int dir)
{
    any_entry(dir, entry_unlink);
}
