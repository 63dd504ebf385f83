/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Listener: one listening socket, either made here or inherited from systemd, and the handing out of
 * connections.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "base/cleanup.h"
#include "base/list.h"

#define LISTENER_ERROR_MAX 512

enum listener_kind { LISTENER_ENGINE, LISTENER_CONTROL };

struct listener {
    struct list link;
    enum listener_kind kind;
    const char *domain; /* configured trust domain; NULL on the main socket. Inside `path`'s allocation */
    char *path;
    int fd;
    bool inherited, started;
    struct lock *lock;
    uv_poll_t poll;
    uv_timer_t pause; /* runs while accepting is suspended */
    int spare_fd;
    bool told; /* that connections are being dropped */
    void (*on_connection)(struct listener *listener, int fd);
    void *userdata;
};

/* How to make a socket file. */
struct listener_access {
    mode_t mode;
    gid_t gid; /* (gid_t)-1: as it comes */
};

/* Makes the socket file and listens. A live socket of that name is left alone. 0, or negative with one
 * sentence in `error`. */
int listener_new(enum listener_kind kind, const char *path, const char *domain,
                 const struct listener_access *access, struct listener **ret,
                 char error[static LISTENER_ERROR_MAX]);

/* Takes over a listening descriptor. */
int listener_inherit(enum listener_kind kind, int fd, const char *domain, struct listener **ret,
                     char error[static LISTENER_ERROR_MAX]);

/* Begins to accept. The callback owns the descriptors that it gets. */
int listener_start(struct listener *listener, uv_loop_t *loop,
                   void (*on_connection)(struct listener *, int fd), void *userdata);

/* Accepts who waits to be, before the listener is closed; on an inherited socket they can wait for the next
 * daemon. */
void listener_accept_rest(struct listener *listener);

/* Stops accepting and frees the listener, once the loop has let go of it where it was started. A socket file
 * that was made here is removed. */
struct listener *listener_close(struct listener *listener);
DEFINE_CLEANUP(struct listener *, listener_close);
