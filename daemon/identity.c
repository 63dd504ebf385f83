/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Who is there. SO_PEERCRED tells pid and uid as of connect(); a pid is only a number, so it is tied to a
 * process by a pidfd. Linux 6.5 gives that directly (SO_PEERPIDFD). Before, a pidfd is opened by number and
 * is believed once a nonce, sent after that, comes back in a packet of that pid while the pidfd is still
 * alive: then the number cannot have changed hands in between.
 *
 * What /proc says about a pid is read while the process may be dying and the number be given to another one,
 * so the pidfd is asked afterwards whether all of that was about the right process.
 *
 * The namespace checks use what everybody may read (NSpid, uid_map), since the links in /proc/PID/ns are
 * closed to a daemon that isn't root.
 *
 * $KVCACHED_TEST_NO_PEERPIDFD makes the daemon take the old way on a new kernel, for tests of that way.
 */

#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/parse.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define PROC_FILE_MAX 8192

/* ---- Reading /proc ---- */

/* The whole file as a string; NULL where it cannot be read or is too large to be believed. */
static char *read_proc(pid_t pid, const char *name)
{
    _cleanup_close_ int fd = -1;
    _cleanup_free_ char *text = NULL;
    char path[64];
    size_t size = 0;
    ssize_t n;

    if (pid)
        snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
    else
        snprintf(path, sizeof(path), "/proc/self/%s", name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    text = malloc(PROC_FILE_MAX);
    if (fd < 0 || !text)
        return NULL;
    while ((n = read(fd, text + size, PROC_FILE_MAX - size)) > 0)
        size += (size_t)n;
    if (n < 0 || size == PROC_FILE_MAX)
        return NULL;
    text[size] = '\0';
    return steal_pointer(text);
}

static uid_t overflow_uid(void)
{
    FILE *file = fopen("/proc/sys/kernel/overflowuid", "re");
    unsigned uid;
    bool read;

    if (!file)
        return 65534;
    read = fscanf(file, "%u", &uid) == 1;
    fclose(file);
    return read ? uid : 65534;
}

/* One number per pid namespace from ours down to the process's. */
static bool read_is_nested(const char *status, bool *ret)
{
    const char *line = strstr(status, "\nNSpid:");

    if (!line)
        return false;
    line += strlen("\nNSpid:");
    line += strspn(line, "\t ");
    line += strspn(line, "0123456789");
    *ret = *line == '\t' || *line == ' ';
    return true;
}

static bool list_has(const char *list, const char *path)
{
    size_t length = strlen(path);

    for (const char *p = list; (p = strstr(p, path)); p++) {
        if ((p == list || p[-1] == ',') && (p[length] == '\0' || p[length] == ','))
            return true;
    }
    return false;
}

/* Lines are "ID:CONTROLLERS:PATH"; a path may hold any character but the line's end. */
static char *read_cgroup(char *text)
{
    char *list = calloc(1, strlen(text) + 2), *end = list, *line, *rest = text;

    if (!list)
        return NULL;
    while ((line = strsep(&rest, "\n"))) {
        char *path = strchr(line, ':');

        path = path ? strchr(path + 1, ':') : NULL;
        if (!path || strcmp(++path, "/") == 0 || list_has(list, path))
            continue;
        if (end != list)
            *end++ = ',';
        end = stpcpy(end, path);
    }
    if (end == list)
        stpcpy(list, "/");
    return list;
}

static void read_place(struct identity *identity)
{
    _cleanup_free_ char *status = NULL, *cgroup = NULL, *theirs = NULL, *ours = NULL;

    if (identity->pid == 0)
        return;
    status = read_proc(identity->pid, "status");
    cgroup = read_proc(identity->pid, "cgroup");
    theirs = read_proc(identity->pid, "uid_map");
    ours = read_proc(0, "uid_map");
    if (!status || !cgroup || !theirs || !ours || !read_is_nested(status, &identity->in_container))
        return;
    identity->cgroup = read_cgroup(cgroup);
    identity->in_our_userns = strcmp(theirs, ours) == 0;
    identity->is_placed = identity->cgroup != NULL;
}

/* ---- The process ---- */

static int pidfd_by_number(pid_t pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);

    return fd < 0 ? -errno : fd;
}

static int pidfd_of_peer(int fd)
{
    socklen_t size = sizeof(int);
    int pidfd;

    if (getenv("KVCACHED_TEST_NO_PEERPIDFD"))
        return -ENOPROTOOPT;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) < 0)
        return -errno;
    return pidfd;
}

static int find_process(int fd, struct identity *identity, const char **ret_reason)
{
    int pidfd = pidfd_of_peer(fd);

    identity->proven = pidfd >= 0;
    if (pidfd == -ENOPROTOOPT && identity->pid == 0) {
        *ret_reason =
            "this kernel cannot identify a process of another pid namespace: share the host's pid namespace "
            "with the daemon, or run Linux 6.5 or newer";
        return IDENTITY_E_REFUSED;
    }
    if (pidfd == -ENOPROTOOPT)
        pidfd = pidfd_by_number(identity->pid);
    if (pidfd == -ESRCH || pidfd == -EINVAL || pidfd == -ENODATA) /* differs by kernel version */
        return IDENTITY_E_GONE;
    if (pidfd < 0)
        return pidfd;
    identity->pidfd = pidfd;
    return 0;
}

bool identity_is_alive(const struct identity *identity)
{
    struct pollfd pollfd = {.fd = identity->pidfd, .events = POLLIN};

    return poll(&pollfd, 1, 0) == 0;
}

int identity_read(int fd, struct identity *ret, const char **ret_reason)
{
    struct identity identity = {.pidfd = -1};
    struct ucred cred;
    socklen_t size = sizeof(cred);
    int r;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
        return -errno;
    if (cred.uid == overflow_uid() || cred.uid == (uid_t)-1) {
        *ret_reason = "your uid is not mapped into the daemon's user namespace";
        return IDENTITY_E_REFUSED;
    }
    identity.pid = cred.pid;
    identity.uid = cred.uid;
    identity.gid = cred.gid;
    r = find_process(fd, &identity, ret_reason);
    if (r != 0)
        return r;
    read_place(&identity);
    if (!identity_is_alive(&identity)) {
        identity_deinit(&identity);
        return IDENTITY_E_GONE;
    }
    *ret = identity;
    return 0;
}

void identity_deinit(struct identity *identity)
{
    identity->pidfd = close_fd(identity->pidfd);
    free(identity->cgroup);
    identity->cgroup = NULL;
}

int identity_prove(struct identity *identity, pid_t sender_pid, uid_t sender_uid)
{
    if (sender_pid != identity->pid || sender_uid != identity->uid || !identity_is_alive(identity))
        return IDENTITY_E_REFUSED;
    identity->proven = true;
    return 0;
}

/* ---- What follows from it ---- */

int identity_domain(const struct identity *identity, char ret[static BROKER_DOMAIN_MAX + 1],
                    const char **ret_reason)
{
    int n;

    if (!identity->is_placed) {
        *ret_reason = "the daemon cannot see where you run: connect to the socket of a configured domain";
        return IDENTITY_E_REFUSED;
    }
    if (identity->in_container)
        n = snprintf(ret, BROKER_DOMAIN_MAX + 1, "uid:%u@%s", (unsigned)identity->uid, identity->cgroup);
    else
        n = snprintf(ret, BROKER_DOMAIN_MAX + 1, "uid:%u", (unsigned)identity->uid);
    if (n > BROKER_DOMAIN_MAX) { /* half a name could be another container's */
        *ret_reason = "your control group has too long a name: connect to the socket of a configured domain";
        return IDENTITY_E_REFUSED;
    }
    return 0;
}

/* FNV-1a from a secret start. */
uint64_t identity_key(const struct identity *identity)
{
    static uint64_t secret;
    const char *container = identity->is_placed && identity->in_container ? identity->cgroup : "";
    uint64_t hash;

    while (secret == 0) {
        if (getrandom(&secret, sizeof(secret), 0) != sizeof(secret))
            secret = UINT64_C(0xcbf29ce484222325);
    }
    hash = (secret ^ identity->uid) * UINT64_C(0x100000001b3);
    for (const char *p = container; *p; p++)
        hash = (hash ^ (unsigned char)*p) * UINT64_C(0x100000001b3);
    return hash;
}

bool identity_is_local(const struct identity *identity)
{
    return identity->is_placed && !identity->in_container && identity->in_our_userns;
}

static bool is_member(int fd, gid_t gid)
{
    gid_t groups[1024];
    socklen_t size = sizeof(groups);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &size) < 0)
        return false;
    for (size_t i = 0; i < size / sizeof(groups[0]); i++) {
        if (groups[i] == gid)
            return true;
    }
    return false;
}

bool identity_is_admin(const struct identity *identity, int fd, gid_t admin_gid)
{
    if (identity->uid == 0 || identity->uid == geteuid())
        return true;
    return admin_gid != (gid_t)-1 && (identity->gid == admin_gid || is_member(fd, admin_gid));
}
