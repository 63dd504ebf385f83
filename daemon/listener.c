/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sockets that people connect to. A name belongs to one daemon: it is locked before anything is touched, and
 * a socket that still answers is never removed, whoever made it. What a dead daemon left is replaced.
 *
 * Accepting must survive everything. A full descriptor table is met with a descriptor kept in spare, so that
 * connections can be taken and dropped rather than left to wake us up for ever; where not even that works,
 * accepting pauses for a moment.
 */

#include "listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "lock.h"
#include "log.h"
#include "places.h"

#define BACKLOG 256
#define ACCEPTS_MAX 16
#define PAUSE_MS 100

static int __attribute__((format(printf, 3, 4))) fail(char *error, int r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, LISTENER_ERROR_MAX, format, args);
    va_end(args);
    return r;
}

static struct listener *listener_alloc(enum listener_kind kind, const char *path, const char *domain)
{
    struct listener *listener = calloc(1, sizeof(*listener));
    size_t path_size = strlen(path) + 1;

    if (!listener)
        return NULL;
    list_init(&listener->link);
    listener->kind = kind;
    listener->fd = -1;
    listener->spare_fd = -1;
    listener->path = malloc(path_size + (domain ? strlen(domain) + 1 : 0));
    if (!listener->path) {
        free(listener);
        return NULL;
    }
    memcpy(listener->path, path, path_size);
    if (domain)
        listener->domain = strcpy(listener->path + path_size, domain);
    return listener;
}

static void listener_free(struct listener *listener)
{
    list_unlink(&listener->link);
    if (listener->fd >= 0 && !listener->inherited)
        unlink(listener->path);
    close_fd(listener->fd);
    close_fd(listener->spare_fd);
    lock_release(listener->lock);
    free(listener->path);
    free(listener);
}

/* ---- Making the socket ---- */

static int make_parent(const char *path, char *error)
{
    _cleanup_free_ char *dir = strdup(path);
    char *slash;
    int r;

    if (!dir)
        return fail(error, -ENOMEM, "Out of memory");
    slash = strrchr(dir, '/');
    if (!slash || slash == dir)
        return 0;
    *slash = '\0';
    r = places_make_dir(dir);
    return r < 0 ? fail(error, r, "Cannot make the folder %s: %s", dir, strerror(-r)) : 0;
}

static int take_lock(struct listener *listener, char *error)
{
    _cleanup_free_ char *path = NULL;
    int r;

    if (asprintf(&path, "%s.lock", listener->path) < 0)
        return fail(error, -ENOMEM, "Out of memory");
    r = lock_take(path, &listener->lock);
    if (r == LOCK_E_HELD)
        return fail(error, -EADDRINUSE, "Another kvcachedd serves %s", listener->path);
    return r < 0 ? fail(error, r, "Cannot lock %s: %s", path, strerror(-r)) : 0;
}

/* Under the lock. Only a refused connection proves that nobody listens any more. */
static int remove_stale(const struct sockaddr_un *address, char *error)
{
    _cleanup_close_ int fd = -1;
    struct stat st;

    if (lstat(address->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : fail(error, -errno, "Cannot see %s: %m", address->sun_path);
    if (!S_ISSOCK(st.st_mode))
        return fail(error, -EEXIST, "%s exists and is not a socket", address->sun_path);
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail(error, -errno, "Cannot make a socket: %m");
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno != ECONNREFUSED)
        return fail(error, -EADDRINUSE, "%s is in use by another program", address->sun_path);
    if (unlink(address->sun_path) < 0)
        return fail(error, -errno, "Cannot replace %s: %m", address->sun_path);
    return 0;
}

/* Nobody gets in between bind() and chmod(): nothing listens yet. */
static int bind_and_listen(struct listener *listener, const struct sockaddr_un *address,
                           const struct listener_access *access, char *error)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return fail(error, -errno, "Cannot make a socket: %m");
    if (bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0) {
        int r = fail(error, -errno, "Cannot bind %s: %m", listener->path);

        close_fd(fd);
        return r;
    }
    listener->fd = fd;
    if (access->gid != (gid_t)-1 && chown(listener->path, (uid_t)-1, access->gid) < 0)
        return fail(error, -errno, "Cannot give %s to its group: %m", listener->path);
    if (chmod(listener->path, access->mode) < 0)
        return fail(error, -errno, "Cannot set the mode of %s: %m", listener->path);
    if (listen(fd, BACKLOG) < 0)
        return fail(error, -errno, "Cannot listen on %s: %m", listener->path);
    return 0;
}

int listener_new(enum listener_kind kind, const char *path, const char *domain,
                 const struct listener_access *access, struct listener **ret,
                 char error[static LISTENER_ERROR_MAX])
{
    _cleanup_(listener_closep) struct listener *listener = NULL;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int r;

    if (strlen(path) >= sizeof(address.sun_path))
        return fail(error, -ENAMETOOLONG, "%s is too long for a socket's name, which may have %zu characters",
                    path, sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    listener = listener_alloc(kind, path, domain);
    if (!listener)
        return fail(error, -ENOMEM, "Out of memory");
    r = make_parent(path, error);
    if (r == 0)
        r = take_lock(listener, error);
    if (r == 0)
        r = remove_stale(&address, error);
    if (r == 0)
        r = bind_and_listen(listener, &address, access, error);
    if (r < 0)
        return r;
    *ret = steal_pointer(listener);
    return 0;
}

int listener_inherit(enum listener_kind kind, int fd, const char *domain, struct listener **ret,
                     char error[static LISTENER_ERROR_MAX])
{
    _cleanup_(listener_closep) struct listener *listener = NULL;
    struct sockaddr_un address = {0};
    socklen_t size = sizeof(address) - 1, type_size = sizeof(int);
    int type, flags = fcntl(fd, F_GETFL);

    if (getsockname(fd, (struct sockaddr *)&address, &size) < 0 || address.sun_family != AF_UNIX ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &type_size) < 0 || type != SOCK_SEQPACKET)
        return fail(error, -EINVAL, "The inherited descriptor %d is not a listening SOCK_SEQPACKET socket",
                    fd);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return fail(error, -errno, "The inherited descriptor %d cannot be used: %m", fd);
    listener = listener_alloc(kind, address.sun_path, domain);
    if (!listener)
        return fail(error, -ENOMEM, "Out of memory");
    listener->inherited = true;
    listener->fd = fd;
    *ret = steal_pointer(listener);
    return 0;
}

/* ---- Accepting ---- */

static void on_pause_end(uv_timer_t *timer);
static void on_readable(uv_poll_t *poll, int status, int events);

static void pause_accepting(struct listener *listener)
{
    uv_poll_stop(&listener->poll);
    uv_timer_start(&listener->pause, on_pause_end, PAUSE_MS, 0);
}

static void on_pause_end(uv_timer_t *timer)
{
    struct listener *listener = timer->data;

    uv_poll_start(&listener->poll, UV_READABLE, on_readable);
}

/* With the spare descriptor's place in the table, one connection is taken and dropped. */
static bool drop_one(struct listener *listener)
{
    int fd;

    if (listener->spare_fd < 0)
        return false;
    listener->spare_fd = close_fd(listener->spare_fd);
    fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    close_fd(fd);
    listener->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return fd >= 0;
}

static void shed(struct listener *listener, int error)
{
    if (!listener->told)
        log_warning("Connections to %s are being dropped: %s", listener->path, strerror(error));
    listener->told = true;
    if ((error == EMFILE || error == ENFILE) && drop_one(listener))
        return;
    pause_accepting(listener);
}

static void accept_waiting(struct listener *listener, unsigned n_max)
{
    for (unsigned i = 0; i < n_max; i++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            listener->told = false;
            if (listener->spare_fd < 0)
                listener->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
            listener->on_connection(listener, fd);
            continue;
        }
        if (errno == EAGAIN)
            return;
        if (errno != ECONNABORTED && errno != EINTR) {
            shed(listener, errno);
            return;
        }
    }
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    accept_waiting(poll->data, ACCEPTS_MAX);
}

int listener_start(struct listener *listener, uv_loop_t *loop,
                   void (*on_connection)(struct listener *, int fd), void *userdata)
{
    int r;

    listener->on_connection = on_connection;
    listener->userdata = userdata;
    listener->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    r = uv_poll_init(loop, &listener->poll, listener->fd);
    if (r < 0)
        return r;
    uv_timer_init(loop, &listener->pause);
    listener->poll.data = listener->pause.data = listener;
    listener->started = true;
    return uv_poll_start(&listener->poll, UV_READABLE, on_readable);
}

void listener_accept_rest(struct listener *listener)
{
    if (!listener->inherited)
        accept_waiting(listener, BACKLOG + 1); /* so many Linux lets wait */
}

static void on_closed(uv_handle_t *handle)
{
    listener_free(handle->data);
}

static void on_poll_closed(uv_handle_t *handle)
{
    struct listener *listener = handle->data;

    uv_close((uv_handle_t *)&listener->pause, on_closed);
}

struct listener *listener_close(struct listener *listener)
{
    if (!listener)
        return NULL;
    list_unlink(&listener->link);
    if (listener->started)
        uv_close((uv_handle_t *)&listener->poll, on_poll_closed);
    else
        listener_free(listener);
    return NULL;
}
