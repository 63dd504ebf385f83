/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Requests and what answers them. Who waits for an answer, and how, is in conn_wait.c.
 *
 * A request that is given up stays in the table: its answer, when it comes, is recognised, and what it
 * carries goes back to the daemon.
 *
 * Death is sticky. The socket is shut down but stays open, so the descriptor that an event loop polls stays
 * valid, and readable.
 */

#include "conn.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#include "base/arith.h"

/* Packets that may wait to be sent. Questions leave room for what an exchange has to say. */
#define QUEUE_MAX 1024
#define QUEUE_QUESTIONS_MAX 512

uint64_t conn_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

void conn_init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

int conn_new(int fd, uint64_t timeout_ns, struct conn **ret)
{
    const struct timeval moment = {.tv_usec = CONN_MOMENT_NS / NSEC_PER_USEC};
    struct conn *conn = calloc(1, sizeof(*conn));

    if (!conn || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &moment, sizeof(moment)) < 0 ||
        link_new(fd, true, QUEUE_MAX, &conn->link) != 0) {
        free(conn);
        close_fd(fd);
        return error_nomem();
    }
    pthread_mutex_init(&conn->lock, NULL);
    conn_init_condition(&conn->changed);
    list_init(&conn->requests);
    conn->timeout_ns = timeout_ns;
    conn->alive = true;
    *ret = conn;
    return 0;
}

struct conn *conn_free(struct conn *conn)
{
    if (!conn)
        return NULL;
    conn_die(conn, KVC_E_DISCONNECTED, "The client was closed");
    link_free(conn->link);
    pthread_cond_destroy(&conn->changed);
    pthread_mutex_destroy(&conn->lock);
    free(conn);
    return NULL;
}

struct conn *conn_forget(struct conn *conn)
{
    if (!conn)
        return NULL;
    list_for_each_safe (it, &conn->requests)
        free(container_of(it, struct request, link));
    link_forget(conn->link);
    free(conn);
    return NULL;
}

/* ---- Requests ---- */

static struct request *find_request(struct conn *conn, uint32_t id)
{
    list_for_each (it, &conn->requests) {
        struct request *request = container_of(it, struct request, link);

        if (request->id == id)
            return request;
    }
    return NULL;
}

void request_init(struct request *request,
                  int (*receive)(struct request *request, const struct message *message, struct fdset *fds,
                                 bool truncated),
                  void (*finish)(struct request *request))
{
    list_init(&request->link);
    request->receive = receive;
    request->finish = finish;
    request->waited = request->expired = request->done = request->over = false;
    request->result = 0;
    request->reason[0] = '\0';
}

int request_violated(struct request *request, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(request->reason, sizeof(request->reason), format, args);
    va_end(args);
    return KVC_E_PROTOCOL;
}

static void complete(struct request *request, int result, const char *reason)
{
    size_t n = strnlen(reason, sizeof(request->reason) - 1);

    list_unlink(&request->link);
    request->done = true;
    request->result = result;
    memmove(request->reason, reason, n);
    request->reason[n] = '\0';
    pthread_cond_broadcast(&request->conn->changed);
    if (!request->waited)
        request->finish(request);
}

void conn_die(struct conn *conn, int error, const char *format, ...)
{
    va_list args;

    if (!conn->alive)
        return;
    conn->alive = false;
    va_start(args, format);
    vsnprintf(conn->reason, sizeof(conn->reason), format, args);
    va_end(args);
    link_shutdown(conn->link);
    while (!list_is_empty(&conn->requests))
        complete(list_first(&conn->requests, struct request, link), error, conn->reason);
}

int conn_check(struct conn *conn)
{
    if (conn->alive)
        return 0;
    return error_set(KVC_E_DISCONNECTED, "The connection to kvcachedd has ended: %s", conn->reason);
}

short conn_events(const struct conn *conn)
{
    return (short)(POLLIN | (link_wants_write(conn->link) ? POLLOUT : 0));
}

bool conn_has_background(const struct conn *conn)
{
    list_for_each (it, &conn->requests)
        if (!container_of(it, struct request, link)->waited)
            return true;
    return false;
}

bool conn_asks_only(const struct conn *conn, const struct request *request)
{
    return conn->requests.next == &request->link && conn->requests.prev == &request->link;
}

/* ---- Sending ---- */

static void receive_all(struct conn *conn);

static int send_failed(struct conn *conn, int r)
{
    if (r == LINK_E_FULL)
        return error_set(KVC_E_TIMEOUT, "kvcachedd does not read what it is sent");
    if (r == -ENOMEM)
        return error_nomem();
    if (r == LINK_E_CLOSED)
        conn_die(conn, KVC_E_DISCONNECTED, "kvcachedd closed the connection");
    else
        conn_die(conn, KVC_E_DISCONNECTED, "sending failed: %s", strerror(-r));
    return conn_check(conn);
}

static uint32_t next_id(struct conn *conn)
{
    do
        conn->last_id++;
    while (conn->last_id == 0 || find_request(conn, conn->last_id));
    return conn->last_id;
}

static void tell(struct conn *conn, uint16_t type, uint32_t request, const ProtobufCMessage *body)
{
    int r;

    if (!conn->alive)
        return;
    r = link_send(conn->link, type, request, body, NULL);
    if (r == LINK_E_FULL || r == -ENOMEM)
        conn_die(conn, KVC_E_DISCONNECTED, "an answer to kvcachedd could not be sent");
    else if (r < 0)
        send_failed(conn, r);
    /* LINK_E_CLOSED is left to who receives: behind what the daemon said last. */
}

void conn_acknowledge_owed(struct conn *conn)
{
    Kvcached__GrantAck body = KVCACHED__GRANT_ACK__INIT;
    uint32_t request = conn->owed_ack;

    if (request == 0)
        return;
    conn->owed_ack = 0;
    tell(conn, MESSAGE_GRANT_ACK, request, &body.base);
}

void conn_acknowledge(struct conn *conn, uint32_t request, bool lazily)
{
    conn_acknowledge_owed(conn);
    conn->owed_ack = request;
    if (!lazily)
        conn_acknowledge_owed(conn);
}

int conn_ask(struct conn *conn, struct request *request, uint16_t type, const ProtobufCMessage *body)
{
    int r;

    conn_acknowledge_owed(conn);
    r = conn_check(conn);
    if (r < 0)
        return r;
    if (link_queued(conn->link) >= QUEUE_QUESTIONS_MAX)
        return send_failed(conn, LINK_E_FULL);
    request->conn = conn;
    request->deadline_ns = UINT64_MAX;
    request->id = next_id(conn);
    r = link_send(conn->link, type, request->id, body, NULL);
    /* The daemon may have said why. Who receives already hears it, and ends this request with the others. */
    if (r == LINK_E_CLOSED && conn->receiving)
        r = 0;
    else if (r == LINK_E_CLOSED)
        receive_all(conn);
    if (r != 0)
        return send_failed(conn, r);
    list_append(&conn->requests, &request->link);
    return 0;
}

void conn_tell(struct conn *conn, uint16_t type, uint32_t request, const ProtobufCMessage *body)
{
    conn_acknowledge_owed(conn);
    tell(conn, type, request ? request : next_id(conn), body);
}

void conn_flush(struct conn *conn)
{
    int r = conn->alive ? link_flush(conn->link) : 0;

    /* LINK_E_CLOSED is left to who receives, as above. */
    if (r < 0)
        send_failed(conn, r);
}

/* ---- Receiving ---- */

static int error_of(Kvcached__Error error)
{
    switch (error) {
    case KVCACHED__ERROR__ERROR_VERSION:
        return KVC_E_VERSION;
    case KVCACHED__ERROR__ERROR_PROTOCOL:
        return KVC_E_PROTOCOL;
    case KVCACHED__ERROR__ERROR_LIMIT:
        return KVC_E_LIMIT;
    case KVCACHED__ERROR__ERROR_BUDGET:
        return KVC_E_BUDGET;
    case KVCACHED__ERROR__ERROR_DRIVER:
        return KVC_E_DEVICE_MEMORY;
    case KVCACHED__ERROR__ERROR_FROZEN:
        return KVC_E_FROZEN;
    case KVCACHED__ERROR__ERROR_INVALID:
        return KVC_E_INVALID;
    case KVCACHED__ERROR__ERROR_SHUTDOWN:
        return KVC_E_DISCONNECTED;
    case KVCACHED__ERROR__ERROR_WORKER:
        return KVC_E_WORKER;
    case KVCACHED__ERROR__ERROR_RESOURCES:
        return KVC_E_RESOURCES;
    default:
        return KVC_E_REFUSED;
    }
}

static int error_of_refusal(const Kvcached__Refused *refused)
{
    int error = error_of(refused->error);

    return error == KVC_E_WORKER && refused->over ? KVC_E_WORKER_GONE : error;
}

/* The daemon's own sentence, or ours where it has none. */
static const char *reason_of(const Kvcached__Refused *refused)
{
    return refused->reason[0] ? refused->reason : kvc_strerror(error_of_refusal(refused));
}

static void handle_answer(struct conn *conn, struct request *request, const struct message *message,
                          struct fdset *fds, bool truncated)
{
    int r = request->receive(request, message, fds, truncated);

    if (!conn->alive)
        return;
    if (r < 0)
        conn_die(conn, r, "%s", request->reason);
    else if (r == 0)
        complete(request, 0, "");
    else if (request->deadline_ns != UINT64_MAX)
        conn_start_time(conn, request);
}

static void handle_refusal(struct conn *conn, struct request *request, const Kvcached__Refused *refused)
{
    int error = error_of_refusal(refused);

    if (request)
        request->over = refused->over;
    if (request)
        complete(request, error, reason_of(refused));
    else
        conn_die(conn, error, "%s", reason_of(refused));
}

/* Until Welcome has named a version, the daemon can only speak its own. */
static bool is_our_version(const struct message *message)
{
    return message->version == FRAME_VERSION || message->type == MESSAGE_REFUSED ||
           message->type == MESSAGE_CHALLENGE;
}

/* Orders have numbers of the daemon's own, notices none. */
static bool is_news(const struct message *message)
{
    return message->type == MESSAGE_NOTICE || message->type == MESSAGE_MAP_ORDER ||
           message->type == MESSAGE_UNMAP_ORDER;
}

static void handle_news(struct conn *conn, struct message *message, struct fdset *fds, bool truncated)
{
    const char *name = codec_type_name(message->type);
    int r = conn->on_news ? conn->on_news(conn->news_data, message, fds, truncated) : KVC_E_PROTOCOL;

    if (r < 0)
        conn_die(conn, r, "kvcachedd sent a %s that has no place here", name);
}

static void handle(struct conn *conn, struct message *message, struct fdset *fds, bool truncated)
{
    bool is_answer = message->request && !is_news(message);
    struct request *request = is_answer ? find_request(conn, message->request) : NULL;

    if (!is_our_version(message))
        conn_die(conn, KVC_E_PROTOCOL, "kvcachedd sent %s in protocol version %u",
                 codec_type_name(message->type), message->version);
    else if (is_news(message))
        handle_news(conn, message, fds, truncated);
    else if (message->request && !request)
        conn_die(conn, KVC_E_PROTOCOL, "kvcachedd answered question %" PRIu32 ", which nobody asked",
                 message->request);
    else if (message->type == MESSAGE_REFUSED)
        handle_refusal(conn, request, (const Kvcached__Refused *)message->body);
    else if (!request)
        conn_die(conn, KVC_E_PROTOCOL, "kvcachedd sent a message of type %u out of the blue", message->type);
    else
        handle_answer(conn, request, message, fds, truncated);
}

bool conn_receive_one(struct conn *conn)
{
    struct message message;
    struct fdset fds;
    int r = link_receive(conn->link, &message, fdset_init(&fds));

    if (r == 0 || r == LINK_E_NOFILE) {
        handle(conn, &message, &fds, r == LINK_E_NOFILE);
        message_deinit(&message);
        fdset_deinit(&fds);
    } else if (r == LINK_E_CLOSED) {
        conn_die(conn, KVC_E_DISCONNECTED, "kvcachedd closed the connection");
    } else if (r == LINK_E_VIOLATION) {
        conn_die(conn, KVC_E_PROTOCOL, "%s", link_reason(conn->link));
    } else if (r != LINK_E_EMPTY) {
        conn_die(conn, KVC_E_DISCONNECTED, "receiving failed: %s", strerror(-r));
    }
    return conn->alive && r != LINK_E_EMPTY;
}

static void receive_all(struct conn *conn)
{
    if (conn->receiving)
        return;
    conn->receiving = true;
    while (conn_receive_one(conn))
        ;
    conn->receiving = false;
}

void conn_dispatch(struct conn *conn)
{
    conn_flush(conn);
    if (!conn->has_leader)
        receive_all(conn);
}
