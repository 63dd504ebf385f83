/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Whoever maps memory of somebody else's making looks at size and seals before: reading beyond the end of a
 * file that was shortened is SIGBUS, and would kill an engine, or the daemon.
 */

#include "wire/memfile.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

/* Systems can demand that memory files are not executable; kernels before 6.3 don't know the flag. */
static int create(const char *name, int *ret_fd)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL)
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

int memfile_new(const char *name, size_t size, int more_seals, void **ret_memory, int *ret_fd)
{
    _cleanup_close_ int fd = -1;
    void *memory;
    int r;

    r = create(name, &fd);
    if (r < 0)
        return r;
    if (ftruncate(fd, (off_t)size) < 0)
        return -errno;
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | more_seals) < 0) {
        r = -errno;
        munmap(memory, size);
        return r;
    }
    *ret_memory = memory;
    *ret_fd = steal_fd(&fd);
    return 0;
}

int memfile_check(int fd, size_t size, int seals)
{
    struct stat st;
    int has;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size != (off_t)size)
        return -EBADMSG;
    has = fcntl(fd, F_GET_SEALS);
    if (has < 0 || (has & seals) != seals)
        return -EBADMSG;
    return 0;
}
