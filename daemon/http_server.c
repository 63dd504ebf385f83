/* SPDX-License-Identifier: Apache-2.0 */

/*
 * libmicrohttpd speaks HTTP, driven by this loop through its epoll descriptor. What it leaves to others is
 * here:
 *
 * - Accepting. Its own would spin when the descriptor table is full and nobody is connected.
 * - Deadlines. Its own are about silence, so a byte now and then would keep a connection for ever. Here a
 *   request has to be said, and an answer read, in a time that begins once. One timer serves all; with nobody
 *   connected there is none.
 * - Waiting. Requests that need a state are suspended until it has come, or is overdue.
 *
 * Before it is started and after it has ended, everything belongs to the thread that makes and frees it.
 */

#include "http_server.h"

#include <errno.h>
#include <fcntl.h>
#include <microhttpd.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "http_headers.h"
#include "http_site.h"
#include "state.h"

#define CLIENTS_MAX_PER_ADDRESS (HTTP_CLIENTS_MAX / 2)
#define REQUEST_MEMORY 16384 /* of a connection: headers in, headers out */
#define ACCEPTS_MAX 16
#define PAUSE_NS (100 * NSEC_PER_MSEC)
#define NICENESS 10

struct client {
    struct list wait_link;             /* while suspended */
    struct MHD_Connection *connection; /* NULL: a free place */
    uint64_t deadline_ns;
    bool has_waited;           /* for a state: it takes the one that there is */
    enum http_refusal in_vain; /* why it has waited in vain, or _HTTP_REFUSALS */
};

struct http_server {
    struct state_share *share;
    struct http_site *site;
    struct MHD_Daemon *daemon;
    int listen_fd, spare_fd;
    bool local;

    uv_loop_t loop;
    uv_poll_t listening, requests, answers;
    uv_timer_t timer;
    bool has_loop;
    pthread_t thread;
    bool has_thread;

    struct client clients[HTTP_CLIENTS_MAX];
    struct list waiting;
    uint64_t patience_ns; /* until when, while some wait */
    uint64_t paused_ns;   /* accepting, until then */
    struct http_stats stats;
};

static uint64_t now(void)
{
    return uv_hrtime();
}

static bool is_waiting(const struct client *client)
{
    return !list_is_empty(&client->wait_link);
}

/* ---- Answering ---- */

static enum MHD_Result queue(struct MHD_Connection *connection, struct http_answer answer)
{
    return MHD_queue_response(connection, answer.status, answer.response);
}

static const char *header(struct MHD_Connection *connection, const char *name)
{
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
}

static bool has_body(struct MHD_Connection *connection)
{
    const char *length = header(connection, MHD_HTTP_HEADER_CONTENT_LENGTH);

    return header(connection, MHD_HTTP_HEADER_TRANSFER_ENCODING) ||
           (length && length[strspn(length, "0")] != '\0');
}

/* What is wrong with a request whose headers are known; _HTTP_REFUSALS: nothing. */
static enum http_refusal judge(const struct http_server *server, struct MHD_Connection *connection,
                               const char *path, const char *method)
{
    const char *host = header(connection, MHD_HTTP_HEADER_HOST);
    bool needs_state;

    if (server->local && host && !http_host_is_local(host))
        return HTTP_REFUSE_HOST;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return HTTP_REFUSE_METHOD;
    if (has_body(connection))
        return HTTP_REFUSE_BODY;
    return http_site_find(server->site, path, &needs_state) ? _HTTP_REFUSALS : HTTP_REFUSE_PATH;
}

static bool has_fresh_state(const struct http_server *server)
{
    uint64_t state_ns = http_site_state_ns(server->site);

    return state_ns && now() - state_ns < HTTP_STATE_MS * NSEC_PER_MSEC;
}

static void wait_for_state(struct http_server *server, struct client *client)
{
    if (list_is_empty(&server->waiting)) {
        server->patience_ns = now() + HTTP_PATIENCE_MS * NSEC_PER_MSEC;
        server->stats.n_states++;
        state_share_ask(server->share);
    }
    list_append(&server->waiting, &client->wait_link);
    MHD_suspend_connection(client->connection);
}

/* Called once with the headers, again when the whole request is there, and once more after each time that it
 * was suspended. What is refused is refused at once, so that a body is not read; libmicrohttpd then ends the
 * connection. Where all is well the first call does nothing: so it stays. */
static enum MHD_Result on_request(void *userdata, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *body,
                                  size_t *body_size, void **context)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct http_server *server = userdata;
    struct client *client = info->socket_context;
    enum http_refusal refusal;
    bool needs_state;

    if (!*context) {
        *context = client;
        client->deadline_ns = now() + HTTP_ANSWER_MS * NSEC_PER_MSEC;
        refusal = judge(server, connection, path, method);
        return refusal == _HTTP_REFUSALS ? MHD_YES
                                         : queue(connection, http_site_refuse(server->site, refusal));
    }
    if (*body_size > 0 || !http_site_find(server->site, path, &needs_state))
        return MHD_NO;
    if (client->in_vain != _HTTP_REFUSALS)
        return queue(connection, http_site_refuse(server->site, client->in_vain));
    if (needs_state && !client->has_waited && !has_fresh_state(server)) {
        wait_for_state(server, client);
        return MHD_YES;
    }
    return queue(connection, http_site_answer(server->site, path, header(connection, MHD_HTTP_HEADER_ACCEPT),
                                              &server->stats));
}

/* No path of ours has anything to unescape, a NUL least of all. */
static size_t leave_escaped(void *userdata, struct MHD_Connection *connection, char *text)
{
    return strlen(text);
}

static void on_completed(void *userdata, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode reason)
{
    struct http_server *server = userdata;
    struct client *client = *context;

    if (!client)
        return;
    server->stats.n_requests++;
    client->deadline_ns = now() + HTTP_REQUEST_MS * NSEC_PER_MSEC;
    client->has_waited = false;
    client->in_vain = _HTTP_REFUSALS;
}

static void resume_all(struct http_server *server, enum http_refusal in_vain)
{
    struct client *client;

    while ((client = list_first(&server->waiting, struct client, wait_link))) {
        list_unlink(&client->wait_link);
        client->has_waited = true;
        client->in_vain = in_vain;
        MHD_resume_connection(client->connection);
    }
}

/* ---- Connections ---- */

static void on_connection(void *userdata, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http_server *server = userdata;
    struct client *client = *context;

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        client = server->clients;
        while (client->connection) /* there are as many places as connections may be */
            client++;
        *client = (struct client){.connection = connection,
                                  .deadline_ns = now() + HTTP_REQUEST_MS * NSEC_PER_MSEC,
                                  .in_vain = _HTTP_REFUSALS};
        list_init(&client->wait_link);
        *context = client;
        server->stats.n_connections++;
    } else if (client) {
        list_unlink(&client->wait_link);
        client->connection = NULL;
        server->stats.n_connections--;
    }
}

/* The table is full: with the spare descriptor the next one can be taken, and dropped. */
static void shed(struct http_server *server)
{
    int fd;

    server->spare_fd = close_fd(server->spare_fd);
    fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        server->paused_ns = now() + PAUSE_NS;
    close_fd(fd);
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static bool accept_one(struct http_server *server)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);
    int fd = accept4(server->listen_fd, (struct sockaddr *)&address, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd >= 0) {
        MHD_add_connection(server->daemon, fd, (struct sockaddr *)&address,
                           length); /* closes what it refuses */
        return true;
    }
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        shed(server);
        return false;
    }
    return errno != EAGAIN;
}

/* Who didn't say or read in time. A reset, so that the system keeps nothing for it either; libmicrohttpd sees
 * the end of the connection and closes it. */
static void expire(struct http_server *server)
{
    static const struct linger at_once = {.l_onoff = 1};
    uint64_t now_ns = now();

    for (size_t i = 0; i < HTTP_CLIENTS_MAX; i++) {
        struct client *client = &server->clients[i];
        const union MHD_ConnectionInfo *info;

        if (!client->connection || is_waiting(client) || client->deadline_ns > now_ns)
            continue;
        client->deadline_ns = UINT64_MAX;
        info = MHD_get_connection_info(client->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        setsockopt(info->connect_fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
        shutdown(info->connect_fd, SHUT_RDWR);
    }
    if (!list_is_empty(&server->waiting) && server->patience_ns <= now_ns)
        resume_all(server, HTTP_REFUSE_SILENCE);
}

/* ---- The loop ---- */

static void go_on(struct http_server *server);

static void on_timer(uv_timer_t *timer)
{
    struct http_server *server = timer->data;

    expire(server);
    go_on(server);
}

static void on_requests(uv_poll_t *poll, int status, int events)
{
    go_on(poll->data);
}

static void on_listening(uv_poll_t *poll, int status, int events)
{
    struct http_server *server = poll->data;

    for (unsigned i = 0; i < ACCEPTS_MAX && server->stats.n_connections < HTTP_CLIENTS_MAX; i++)
        if (!accept_one(server))
            break;
    go_on(server);
}

static uint64_t next_deadline(const struct http_server *server)
{
    uint64_t deadline_ns = UINT64_MAX;
    MHD_UNSIGNED_LONG_LONG timeout_ms;

    if (MHD_get_timeout(server->daemon, &timeout_ms) == MHD_YES)
        deadline_ns = now() + timeout_ms * NSEC_PER_MSEC;
    if (server->paused_ns > now())
        deadline_ns = u64_min(deadline_ns, server->paused_ns);
    if (!list_is_empty(&server->waiting))
        deadline_ns = u64_min(deadline_ns, server->patience_ns);
    for (size_t i = 0; i < HTTP_CLIENTS_MAX; i++) {
        const struct client *client = &server->clients[i];

        if (client->connection && !is_waiting(client))
            deadline_ns = u64_min(deadline_ns, client->deadline_ns);
    }
    return deadline_ns;
}

static void set_timer(struct http_server *server)
{
    uint64_t deadline_ns = next_deadline(server), now_ns = now(), left_ns;

    if (deadline_ns == UINT64_MAX) {
        uv_timer_stop(&server->timer);
        return;
    }
    left_ns = u64_sub_floor(deadline_ns, now_ns);
    uv_update_time(&server->loop);
    uv_timer_start(&server->timer, on_timer, (left_ns + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC, 0);
}

/* After everything that has happened. */
static void go_on(struct http_server *server)
{
    MHD_run(server->daemon);
    if (server->stats.n_connections < HTTP_CLIENTS_MAX && server->paused_ns <= now())
        uv_poll_start(&server->listening, UV_READABLE, on_listening);
    else
        uv_poll_stop(&server->listening);
    set_timer(server);
}

static void on_answer(uv_poll_t *poll, int status, int events)
{
    struct http_server *server = poll->data;
    struct state *state;
    int r = state_share_collect(server->share, &state);

    if (r == STATE_SHARE_E_STOP) {
        uv_stop(&server->loop);
        return;
    }
    if (r == STATE_SHARE_E_NOTHING)
        return;
    if (r == 0)
        http_site_set_state(server->site, state, now());
    resume_all(server, r == 0 ? _HTTP_REFUSALS : HTTP_REFUSE_MEMORY);
    go_on(server);
}

static void *run(void *arg)
{
    struct http_server *server = arg;

    pthread_setname_np(pthread_self(), "http");
    /* Rather late than in the broker's way. */
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), getpriority(PRIO_PROCESS, 0) + NICENESS);
    uv_run(&server->loop, UV_RUN_DEFAULT);
    return NULL;
}

/* ---- Beginning and end ---- */

static struct MHD_Daemon *start_daemon(struct http_server *server)
{
    const struct MHD_OptionItem options[] = {
        {MHD_OPTION_CONNECTION_LIMIT, HTTP_CLIENTS_MAX, NULL},
        {MHD_OPTION_PER_IP_CONNECTION_LIMIT, server->local ? HTTP_CLIENTS_MAX : CLIENTS_MAX_PER_ADDRESS,
         NULL},
        {MHD_OPTION_CONNECTION_MEMORY_LIMIT, REQUEST_MEMORY, NULL},
        {MHD_OPTION_STRICT_FOR_CLIENT, 1, NULL},
        {MHD_OPTION_UNESCAPE_CALLBACK, (intptr_t)leave_escaped, NULL},
        {MHD_OPTION_NOTIFY_CONNECTION, (intptr_t)on_connection, server},
        {MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)on_completed, server},
        {MHD_OPTION_END, 0, NULL},
    };

    return MHD_start_daemon(MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME, 0, NULL,
                            NULL, on_request, server, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
}

static int watch(struct http_server *server, uv_poll_t *poll, int fd, uv_poll_cb callback)
{
    int r = uv_poll_init(&server->loop, poll, fd);

    poll->data = server;
    return r < 0 ? r : uv_poll_start(poll, UV_READABLE, callback);
}

static int start_loop(struct http_server *server)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    int r = uv_loop_init(&server->loop);

    if (r < 0)
        return r;
    server->has_loop = true;
    uv_timer_init(&server->loop, &server->timer);
    server->timer.data = server;
    r = watch(server, &server->listening, server->listen_fd, on_listening);
    if (r == 0)
        r = watch(server, &server->requests, info->epoll_fd, on_requests);
    if (r == 0)
        r = watch(server, &server->answers, state_share_fd(server->share), on_answer);
    return r;
}

/* The main loop's thread takes all signals. */
static int start_thread(struct http_server *server)
{
    sigset_t all, before;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&server->thread, NULL, run, server);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    server->has_thread = r == 0;
    return -r;
}

int http_server_new(int listen_fd, bool local, struct state_share *share, struct http_server **ret)
{
    struct http_server *server = calloc(1, sizeof(*server));
    int r;

    if (!server)
        return -ENOMEM;
    server->share = share;
    server->local = local;
    server->listen_fd = listen_fd;
    list_init(&server->waiting);
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    server->site = http_site_new();
    server->daemon = start_daemon(server);
    r = server->site && server->daemon ? start_loop(server) : -ENOMEM;
    if (r == 0)
        r = start_thread(server);
    if (r < 0) {
        server->listen_fd = -1;
        http_server_free(server);
        return r;
    }
    *ret = server;
    return 0;
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    uv_close(handle, NULL);
}

struct http_server *http_server_free(struct http_server *server)
{
    if (!server)
        return NULL;
    state_share_stop(server->share);
    if (server->has_thread)
        pthread_join(server->thread, NULL);
    if (server->has_loop) {
        uv_walk(&server->loop, close_handle, NULL);
        uv_run(&server->loop, UV_RUN_DEFAULT);
        uv_loop_close(&server->loop);
    }
    if (server->daemon) {
        resume_all(server, HTTP_REFUSE_SILENCE); /* none may be suspended at its end */
        MHD_stop_daemon(server->daemon);
    }
    http_site_free(server->site);
    close_fd(server->listen_fd);
    close_fd(server->spare_fd);
    free(server);
    return NULL;
}
