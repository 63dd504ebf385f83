/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where nobody names a socket, the usual folders are tried in the order in which daemons choose them. A
 * folder without a live socket is passed over; a socket behind which somebody untrusted sits is an error,
 * since going on would hide it.
 *
 * Who is behind the socket is the kernel's word: the credentials of the process that listened. The library
 * maps memory and loads an emulator on that peer's say-so, so it must be root, this user, the service's user,
 * or the one that the environment names (a daemon in another container's user namespace).
 */

#include "discovery.h"

#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "conn.h"

#define SERVICE_USER "kvcached"

/* A full backlog makes connect() wait as a send would. */
static void limit_wait(int fd, uint64_t until_ns)
{
    /* Zero would be no limit. */
    uint64_t timeout_ns = u64_sub_floor(until_ns, conn_now_ns()) + NSEC_PER_USEC;
    struct timeval timeout = {
        .tv_sec = (time_t)(timeout_ns / NSEC_PER_SEC),
        .tv_usec = (suseconds_t)(timeout_ns % NSEC_PER_SEC / NSEC_PER_USEC),
    };

    if (until_ns != UINT64_MAX)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
}

/* 0 or -errno; -EINTR: the host wants the call to end, and the sentence is set. */
static int connect_until(int fd, const struct sockaddr_un *address, uint64_t deadline_ns,
                         const struct interrupt *interrupt)
{
    for (;;) {
        uint64_t ask_ns = interrupt_due_ns(interrupt);

        limit_wait(fd, u64_min(deadline_ns, ask_ns));
        if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0)
            return 0;
        if (errno != EINTR && errno != EAGAIN)
            return -errno;
        if (conn_now_ns() >= deadline_ns)
            return -EAGAIN;
        if (conn_now_ns() >= ask_ns && interrupt_ask(interrupt) < 0)
            return -EINTR;
    }
}

/* 0 or -errno. */
static int connect_to(const char *path, const struct settings *settings, int *ret_fd)
{
    _cleanup_close_ int fd = -1;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int r;

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    r = connect_until(fd, &address, conn_deadline(settings->timeout_ns), &settings->interrupt);
    if (r == 0)
        *ret_fd = steal_fd(&fd);
    return r;
}

static bool is_service_user(uid_t uid)
{
    struct passwd entry, *found = NULL;
    char buf[4096];

    return getpwnam_r(SERVICE_USER, &entry, buf, sizeof(buf), &found) == 0 && found && found->pw_uid == uid;
}

static int check_trust(int fd, const char *path, const struct settings *settings)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return error_set(KVC_E_CONNECT, "Cannot tell who is behind %s: %s", path, strerror(errno));
    if (peer.uid == 0 || peer.uid == geteuid() || is_service_user(peer.uid))
        return 0;
    if (settings->has_daemon_uid && peer.uid == settings->daemon_uid)
        return 0;
    return error_set(
        KVC_E_CONNECT,
        "The process behind %s belongs to user %u, who is neither root, nor this user, nor " SERVICE_USER
        ", nor named by KVCACHED_DAEMON_UID",
        path, peer.uid);
}

static int explain(const char *path, int error)
{
    switch (-error) {
    case EMFILE:
    case ENFILE:
        return error_set(KVC_E_NOFILE, "No descriptor is left for a connection to kvcachedd");
    case EINTR:
        return KVC_E_INTERRUPTED;
    case EAGAIN:
        return error_set(KVC_E_TIMEOUT, "kvcachedd does not accept connections at %s", path);
    case ENOENT:
        return error_set(KVC_E_CONNECT, "There is no kvcachedd: %s does not exist", path);
    case ECONNREFUSED:
        return error_set(KVC_E_CONNECT, "No kvcachedd listens at %s", path);
    case EPROTOTYPE:
        return error_set(KVC_E_CONNECT, "%s is a socket of another kind than kvcachedd's", path);
    default:
        return error_set(KVC_E_CONNECT, "Cannot connect to %s: %s", path, strerror(-error));
    }
}

/* "FOLDER/gpu0.sock" or "FOLDER/GPU-<uuid>.sock"; false where there is no such folder, or too long a one. */
static bool candidate(const struct settings *settings, const char *folder, const char *suffix, char *path,
                      size_t size)
{
    int n;

    if (!folder || !*folder)
        return false;
    if (settings->gpu_uuid)
        n = snprintf(path, size, "%s%s/%s.sock", folder, suffix, settings->gpu_uuid);
    else
        n = snprintf(path, size, "%s%s/gpu%u.sock", folder, suffix, settings->gpu_index);
    return n > 0 && (size_t)n < size;
}

static bool nobody_there(int error)
{
    return error == -ENOENT || error == -ENOTDIR || error == -ECONNREFUSED;
}

/* Tries the usual places; `path` is the last one tried. */
static int search(const struct settings *settings, char *path, size_t size, int *ret_fd)
{
    const struct {
        const char *folder, *suffix;
    } places[] = {
        {secure_getenv("RUNTIME_DIRECTORY"), ""},
        {"/run/kvcached", ""},
        {secure_getenv("XDG_RUNTIME_DIR"), "/kvcached"},
    };
    int r = -ENOENT;

    for (size_t i = 0; i < ARRAY_SIZE(places) && nobody_there(r); i++)
        if (candidate(settings, places[i].folder, places[i].suffix, path, size))
            r = connect_to(path, settings, ret_fd);
    return r;
}

static int not_found(const struct settings *settings)
{
    if (settings->gpu_uuid)
        return error_set(KVC_E_CONNECT, "Found no kvcachedd for %.48s: start one, or set KVCACHED_SOCKET",
                         settings->gpu_uuid);
    return error_set(KVC_E_CONNECT, "Found no kvcachedd for GPU %u: start one, or set KVCACHED_SOCKET",
                     settings->gpu_index);
}

int discovery_connect(const struct settings *settings, int *ret_fd)
{
    _cleanup_close_ int fd = -1;
    char found[sizeof(((struct sockaddr_un *)NULL)->sun_path)] = "";
    const char *path = settings->socket ? settings->socket : found;
    int r;

    if (settings->socket)
        r = connect_to(path, settings, &fd);
    else
        r = search(settings, found, sizeof(found), &fd);
    if (nobody_there(r) && !settings->socket)
        return not_found(settings);
    if (r < 0)
        return explain(path, r);
    r = check_trust(fd, path, settings);
    if (r < 0)
        return r;
    *ret_fd = steal_fd(&fd);
    return 0;
}
