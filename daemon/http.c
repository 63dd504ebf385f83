/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Opens the socket, and joins the thread that answers with the loop that knows. The page is for looking at,
 * and says nothing about anybody's data, but it asks nobody who he is: so only this machine can reach it,
 * unless an administrator says otherwise. That it cannot be had is no reason not to lend memory.
 */

#include "http.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "http_address.h"
#include "http_server.h"
#include "server.h"
#include "state.h"

#define BACKLOG 64
#define SEND_BUFFER_BYTES (128 * 1024) /* of a connection that doesn't read */

struct http {
    struct http_server *server;
    struct state_share *share;
    char address[HTTP_ADDRESS_TEXT_MAX];
};

static int take_state(void *userdata, struct state **ret)
{
    return state_take(userdata, ret);
}

union socket_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static socklen_t to_socket_address(const struct http_address *address, union socket_address *ret)
{
    *ret = (union socket_address){0};
    if (!address->is_v6) {
        ret->v4.sin_family = AF_INET;
        ret->v4.sin_port = htons(address->port);
        memcpy(&ret->v4.sin_addr, address->host, sizeof(ret->v4.sin_addr));
        return sizeof(ret->v4);
    }
    ret->v6.sin6_family = AF_INET6;
    ret->v6.sin6_port = htons(address->port);
    memcpy(&ret->v6.sin6_addr, address->host, sizeof(ret->v6.sin6_addr));
    return sizeof(ret->v6);
}

static int bind_to(int fd, struct http_address *address)
{
    union socket_address where;
    socklen_t length = to_socket_address(address, &where);
    int on = 1, send_bytes = SEND_BUFFER_BYTES;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof(send_bytes));
    if (address->is_v6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    if (bind(fd, &where.any, length) < 0 || listen(fd, BACKLOG) < 0 ||
        getsockname(fd, &where.any, &length) < 0)
        return -errno;
    address->port = ntohs(address->is_v6 ? where.v6.sin6_port : where.v4.sin_port);
    return 0;
}

/* Afterwards the address has the port that was chosen. */
static int open_socket(struct http_address *address, int *ret_fd)
{
    _cleanup_close_ int fd = -1;
    int r;

    fd = socket(address->is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    r = bind_to(fd, address);
    if (r == 0)
        *ret_fd = steal_fd(&fd);
    return r;
}

static int start(struct server *server, struct http *http, struct http_address *address)
{
    _cleanup_close_ int fd = -1;
    bool local = http_address_is_local(address);
    int r;

    r = open_socket(address, &fd);
    if (r == 0)
        r = state_share_new(&server->loop, take_state, server, &http->share);
    if (r < 0)
        return r;
    r = http_server_new(fd, local, http->share, &http->server);
    if (r < 0) {
        http->share = state_share_free(http->share);
        return r;
    }
    steal_fd(&fd);
    http_address_format(http->address, address);
    if (!local)
        log_warning("Whoever can reach %s sees who uses this GPU: the status page asks nobody for a password",
                    http->address);
    return 0;
}

int http_open(struct server *server, char *error)
{
    const char *asked = server->config->metrics_listen;
    struct http_address address = http_address_default(device_info(server->device)->index);
    char text[HTTP_ADDRESS_TEXT_MAX];
    struct http *http;
    int r;

    if (asked)
        http_address_parse(asked, &address); /* the configuration has been checked */
    if (address.off)
        return 0;
    http = calloc(1, sizeof(*http));
    http_address_format(text, &address);
    r = http ? start(server, http, &address) : -ENOMEM;
    if (r == 0) {
        server->http = http;
        return 0;
    }
    free(http);
    if (asked) {
        snprintf(error, SERVER_ERROR_MAX, "Cannot serve metrics at %s: %s", text, strerror(-r));
        return r;
    }
    log_warning("There are no metrics and no status page, since %s cannot be had: %s", text, strerror(-r));
    return 0;
}

void http_close(struct server *server)
{
    if (!server->http)
        return;
    http_server_free(server->http->server);
    state_share_free(server->http->share);
    free(server->http);
    server->http = NULL;
}

const char *http_address(const struct server *server)
{
    return server->http ? server->http->address : "";
}
