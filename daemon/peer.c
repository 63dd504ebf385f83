/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Connections: reading, writing, failing and dying. This is where a peer's failure stops: whatever goes wrong
 * with one of them ends that one and nothing else.
 *
 * A peer whose answers are not read is not read either, so it cannot make the daemon remember more than a
 * queue of bounded length for it. The end of a process is its pidfd's word; end-of-file only ends the
 * connection.
 */

#include "peer.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/parse.h"
#include "chronicle.h"
#include "controller.h"
#include "grant.h"
#include "handshake.h"
#include "lessor.h"
#include "orders.h"
#include "region.h"
#include "request.h"
#include "server.h"

#define QUEUE_MAX (PEER_TAKES_MAX + PEER_ORDERS_MAX + 32)
#define MESSAGES_PER_TURN 2

/* ---- Being watched ---- */

static void on_ready(uv_poll_t *poll, int status, int events);
static void on_death(uv_poll_t *poll, int status, int events);

static void watch(struct peer *peer)
{
    int events = 0;

    if (peer->state == PEER_GONE)
        return;
    if (link_queued(peer->conn) == 0)
        events |= UV_READABLE;
    else
        events |= UV_DISCONNECT;
    if (link_wants_write(peer->conn))
        events |= UV_WRITABLE;
    if (link_is_throttled(peer->conn) && list_is_empty(&peer->stall_link))
        list_append(&peer->server->throttled, &peer->stall_link);
    if (events != peer->polled)
        uv_poll_start(&peer->poll, events, on_ready);
    peer->polled = events;
}

static void peer_free(struct peer *peer)
{
    struct server *server = peer->server;

    list_unlink(&peer->link);
    server->n_peers--;
    identity_deinit(&peer->identity);
    link_free(peer->conn);
    free(peer->domain);
    free(peer);
}

static void on_closed(uv_handle_t *handle)
{
    struct peer *peer = handle->data;

    if (--peer->n_handles == 0)
        peer_free(peer);
}

static void on_poll_closed(uv_handle_t *handle)
{
    struct peer *peer = handle->data;

    if (!peer->keeps_descriptors)
        peer->conn = link_free(peer->conn);
    on_closed(handle);
}

/* ---- Speaking ---- */

void peer_doom(struct peer *peer)
{
    if (peer->doomed || peer->state == PEER_GONE)
        return;
    peer->doomed = true;
    list_append(&peer->server->doomed, &peer->queue_link);
}

void peer_send(struct peer *peer, enum message_type type, uint32_t request, const ProtobufCMessage *body,
               struct fdset *fds)
{
    int r;

    if (peer->state == PEER_GONE || peer->doomed)
        return;
    r = link_send(peer->conn, (uint16_t)type, request, body, fds);
    if (r != 0)
        peer_doom(peer);
    watch(peer);
}

void peer_flush(struct peer *peer)
{
    if (peer->state == PEER_GONE || peer->doomed)
        return;
    if (link_flush(peer->conn) != 0)
        peer_doom(peer);
    watch(peer);
    if (link_queued(peer->conn) == 0)
        orders_resume(peer);
}

/* Who is disconnected without having read all may keep descriptors in flight for as long as it likes. What it
 * is told last doesn't count. */
static void note_unread(struct peer *peer)
{
    if (peer->is_noted)
        return;
    peer->is_noted = true;
    peer->keeps_descriptors = peer->broker_peer && !link_is_read(peer->conn);
    if (!peer->keeps_descriptors)
        flight_charge_deinit(&peer->in_flight);
}

static void send_refusal(struct peer *peer, uint32_t request, Kvcached__Error error, const char *reason)
{
    Kvcached__Refused body = KVCACHED__REFUSED__INIT;

    body.error = error;
    body.reason = (char *)reason;
    peer_send(peer, MESSAGE_REFUSED, request, &body.base, NULL);
}

void peer_refuse(struct peer *peer, uint32_t request, Kvcached__Error error, const char *format, ...)
{
    char reason[SNAPSHOT_REASON_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(reason, sizeof(reason), format, args);
    va_end(args);
    send_refusal(peer, request, error, reason);
}

static struct broker_instance *instance_of(const struct peer *peer)
{
    return peer->broker_peer ? peer->broker_peer->instance : NULL;
}

/* Also of one that has not said Hello, as far as can be told who it is. */
static const char *domain_of(const struct peer *peer, char buf[static BROKER_DOMAIN_MAX + 1])
{
    const char *reason;

    if (peer->domain)
        return peer->domain;
    if (identity_domain(&peer->identity, buf, &reason) != 0)
        snprintf(buf, BROKER_DOMAIN_MAX + 1, "uid:%u@?", (unsigned)peer->identity.uid);
    return buf;
}

static void note_violation(struct peer *peer, const char *reason)
{
    static const char format[] = "A process of user %u was disconnected: %s";
    const Kvcached__EventKind kind = KVCACHED__EVENT_KIND__EVENT_VIOLATION;
    const struct broker_instance *instance = instance_of(peer);
    unsigned uid = peer->identity.uid;
    int32_t pid = peer->facts.pid;
    char its[BROKER_DOMAIN_MAX + 1];
    const char *domain = domain_of(peer, its);

    peer->server->counters.n_violations++;
    if (instance)
        chronicle_note(peer->server, kind, instance, pid, 0, format, uid, reason);
    else
        chronicle_note_stranger(peer->server, kind, domain, pid, format, uid, reason);
    if (chronicle_may_log(peer->server, domain))
        log_warning("Process %d (uid %u) was disconnected: %s", pid, uid, reason);
}

void peer_fail(struct peer *peer, Kvcached__Error error, const char *format, ...)
{
    char reason[SNAPSHOT_REASON_MAX];
    va_list args;

    if (peer->doomed || peer->state == PEER_GONE)
        return;
    va_start(args, format);
    vsnprintf(reason, sizeof(reason), format, args);
    va_end(args);
    if (error == KVCACHED__ERROR__ERROR_PROTOCOL)
        note_violation(peer, reason);
    note_unread(peer);
    send_refusal(peer, 0, error, reason);
    peer_doom(peer);
}

/* ---- Listening ---- */

static int receive(struct peer *peer, struct message *ret)
{
    pid_t pid;
    uid_t uid;
    int r;

    if (peer->state != PEER_CHALLENGED)
        return link_receive(peer->conn, ret, NULL);
    r = link_receive_credentials(peer->conn, ret, &pid, &uid);
    if (r == 0 && identity_prove(&peer->identity, pid, uid) != 0) {
        message_deinit(ret);
        peer_fail(peer, KVCACHED__ERROR__ERROR_IDENTITY, "the challenge was answered by another process");
        return LINK_E_EMPTY;
    }
    return r;
}

/* Whether the next message is likely to be there already. */
static bool receive_one(struct peer *peer)
{
    struct message message;
    bool more = false;
    int r = receive(peer, &message);

    switch (r) {
    case 0:
        more = message.type == MESSAGE_GRANT_ACK;
        request_dispatch(peer, &message);
        message_deinit(&message);
        break;
    case LINK_E_EMPTY:
        break;
    case LINK_E_CLOSED:
        peer_doom(peer);
        break;
    case LINK_E_VIOLATION:
        peer_fail(peer, KVCACHED__ERROR__ERROR_PROTOCOL, "%s", link_reason(peer->conn));
        break;
    default:
        peer_fail(peer, KVCACHED__ERROR__ERROR_RESOURCES, "the daemon is short of memory");
        break;
    }
    return more;
}

static bool may_receive(const struct peer *peer)
{
    return peer->state != PEER_GONE && !peer->doomed && link_queued(peer->conn) == 0;
}

/* Each message is answered before the next is looked for; few are, so that nobody waits for a peer that has
 * much to say. An acknowledgement often has the next request right behind it. */
static void on_ready(uv_poll_t *poll, int status, int events)
{
    struct peer *peer = poll->data;
    struct server *server = peer->server;
    bool more = true;

    if (events & UV_WRITABLE)
        peer_flush(peer);
    /* libuv stops watching a socket in error, which is one that the peer has closed; what it said before
     * counts, unless it has left answers unread. */
    if (status < 0)
        peer->polled = 0;
    for (unsigned i = 0; i < MESSAGES_PER_TURN && more && may_receive(peer); i++) {
        more = receive_one(peer);
        grant_go_on(peer);
        if (more)
            server_settle(server);
    }
    if (events & UV_DISCONNECT || (status < 0 && !may_receive(peer)))
        peer_doom(peer);
    if (!peer->doomed)
        watch(peer);
    server_settle(server);
}

/* ---- Dying ---- */

static void close_handles(struct peer *peer)
{
    if (peer->conn && !uv_is_closing((uv_handle_t *)&peer->poll))
        uv_close((uv_handle_t *)&peer->poll, on_poll_closed);
}

static bool has_nothing(const struct peer *peer)
{
    return peer->broker_peer->held_bytes == 0 && !peer->keeps_descriptors;
}

/* Nothing is left that the process could hold. What it never received was in flight until now. */
static void forget(struct peer *peer)
{
    list_unlink(&peer->stall_link);
    flight_charge_deinit(&peer->in_flight);
    peer->flight = flight_domain_leave(peer->flight);
    peer->keeps_descriptors = false;
    peer->server->room_grew = true;
    if (peer->broker_peer)
        broker_peer_dead(peer->server->broker, peer->broker_peer, server_now());
    peer->broker_peer = NULL;
    if (!uv_is_closing((uv_handle_t *)&peer->death))
        uv_close((uv_handle_t *)&peer->death, on_closed);
}

static void note_loss(const struct peer *peer)
{
    uint64_t bytes = peer->broker_peer ? peer->broker_peer->held_bytes : 0;
    struct server_counters *counters = &peer->server->counters;
    const char *program = *peer->facts.program ? peer->facts.program : "A process";
    char held[FORMAT_SIZE_MAX];

    if (!peer->broker_peer)
        return;
    counters->n_lost += bytes > 0;
    counters->n_left += bytes == 0;
    if (bytes)
        chronicle_note(peer->server, KVCACHED__EVENT_KIND__EVENT_LOST, peer->broker_peer->instance,
                       peer->facts.pid, bytes, "%s %s, and held %s", program,
                       peer->dead ? "has ended" : "has disconnected", format_size(held, bytes));
    else
        chronicle_note(peer->server, KVCACHED__EVENT_KIND__EVENT_LEFT, peer->broker_peer->instance,
                       peer->facts.pid, 0, "%s has left", program);
}

void peer_disconnect(struct peer *peer)
{
    struct server *server = peer->server;

    list_unlink(&peer->queue_link);
    list_unlink(&peer->stall_link);
    list_unlink(&peer->wait_link);
    list_unlink(&peer->follow_link);
    peer->doomed = false;
    peer->state = PEER_GONE;
    peer->facts.connected = false;
    handshake_end(peer);
    note_unread(peer);
    link_shutdown(peer->conn);
    close_handles(peer);
    orders_end_all(peer);
    grant_end_all(peer);
    controller_end(peer);
    for (unsigned i = 0; i < PEER_REGIONS_MAX; i++)
        peer->regions[i] = region_free(peer, peer->regions[i]);
    lessor_end(peer);
    note_loss(peer);
    if (peer->broker_peer)
        broker_peer_lost(server->broker, peer->broker_peer, server_now());
    if (peer->dead || !peer->broker_peer || has_nothing(peer))
        forget(peer);
    else if (peer->keeps_descriptors)
        list_append(&server->throttled, &peer->stall_link);
}

/* A socket that its process has closed is empty, but perhaps not the moment in which that is heard of. */
static void look_again(struct peer *peer)
{
    if (!peer->keeps_descriptors || !link_is_read(peer->conn))
        return;
    peer->keeps_descriptors = false;
    flight_charge_deinit(&peer->in_flight);
    peer->server->room_grew = true;
    if (has_nothing(peer))
        forget(peer);
}

void peer_go_on(struct peer *peer)
{
    if (peer->state == PEER_GONE)
        look_again(peer);
    peer_flush(peer);
    grant_send(peer);
}

static void on_death(uv_poll_t *poll, int status, int events)
{
    struct peer *peer = poll->data;
    struct server *server = peer->server;

    grant_close_sent(server);
    uv_poll_stop(&peer->death);
    peer->dead = true;
    if (peer->state == PEER_GONE)
        forget(peer);
    else
        peer_doom(peer);
    server_settle(server);
}

void peer_bury(struct peer *peer)
{
    grant_close_sent(peer->server);
    peer->dead = true;
    if (peer->state == PEER_GONE)
        forget(peer);
    else
        peer_doom(peer);
}

/* ---- Being born ---- */

/* Before there is a peer: one packet, as well as it goes. */
static void reject(int fd, Kvcached__Error error, const char *reason)
{
    Kvcached__Refused body = KVCACHED__REFUSED__INIT;
    struct link *link;

    body.error = error;
    body.reason = (char *)reason;
    if (link_new(fd, false, 1, &link) < 0) {
        close_fd(fd);
        return;
    }
    link_send(link, MESSAGE_REFUSED, 0, &body.base, NULL);
    link_free(link);
}

/* They may have closed their sockets since. */
static void look_at_the_gone(struct server *server, uid_t uid)
{
    list_for_each (it, &server->peers) {
        struct peer *peer = container_of(it, struct peer, link);

        if (peer->state == PEER_GONE && peer->identity.uid == uid)
            look_again(peer);
    }
}

static unsigned count_of_uid(const struct server *server, uid_t uid)
{
    unsigned n = 0;

    list_for_each (it, &server->peers)
        n += container_of(it, struct peer, link)->identity.uid == uid;
    return n;
}

/* A user may have half of what the others leave, so that something is left for the next one. */
static const char *check_room(const struct server *server, uid_t uid)
{
    unsigned n_own = count_of_uid(server, uid), n_others = server->n_peers - n_own;

    if (server->n_peers >= server->settings.peers_max)
        return "the daemon has as many connections as it can hold";
    if (n_own > (server->settings.peers_max - n_others - 1) / 2)
        return "your user has as many connections as one user may";
    return NULL;
}

static int start_watching(struct peer *peer)
{
    uv_loop_t *loop = &peer->server->loop;
    int r;

    r = uv_poll_init(loop, &peer->death, peer->identity.pidfd);
    if (r < 0)
        return r;
    peer->n_handles = 1;
    r = uv_poll_init(loop, &peer->poll, link_fd(peer->conn));
    if (r == 0)
        peer->n_handles = 2;
    peer->death.data = peer->poll.data = peer;
    return r;
}

static struct peer *peer_alloc(struct server *server, const struct listener *listener,
                               struct identity *identity)
{
    struct peer *peer = calloc(1, sizeof(*peer));

    if (!peer)
        return NULL;
    list_init(&peer->link);
    list_init(&peer->queue_link);
    list_init(&peer->hello_link);
    list_init(&peer->stall_link);
    list_init(&peer->wait_link);
    list_init(&peer->follow_link);
    list_init(&peer->asked);
    list_init(&peer->granted);
    list_init(&peer->attaching);
    list_init(&peer->ordered);
    list_init(&peer->sent);
    peer->server = server;
    peer->kind = listener->kind;
    peer->state = PEER_HELLO;
    peer->facts.pid = identity->pid;
    peer->facts.connected = true;
    peer->domain = listener->domain ? strdup(listener->domain) : NULL;
    if (listener->domain && !peer->domain) {
        free(peer);
        return NULL;
    }
    peer->identity = *identity;
    *identity = (struct identity){.pidfd = -1};
    list_append(&server->peers, &peer->link);
    server->n_peers++;
    return peer;
}

/* What the loop knows of closes through the loop; the rest can go at once. */
static void give_up(struct peer *peer, int fd)
{
    close_fd(fd);
    peer->state = PEER_GONE;
    handshake_end(peer);
    if (peer->n_handles == 2)
        uv_close((uv_handle_t *)&peer->poll, on_poll_closed);
    else
        peer->conn = link_free(peer->conn);
    if (peer->n_handles > 0)
        uv_close((uv_handle_t *)&peer->death, on_closed);
    else
        peer_free(peer);
}

static void peer_start(struct server *server, const struct listener *listener, struct identity *identity,
                       int fd)
{
    struct peer *peer = peer_alloc(server, listener, identity);

    if (!peer) {
        reject(fd, KVCACHED__ERROR__ERROR_RESOURCES, "the daemon is short of memory");
        return;
    }
    peer->is_admin = identity_is_admin(&peer->identity, fd, server->admin_gid);
    if (link_new(fd, false, QUEUE_MAX, &peer->conn) < 0) {
        give_up(peer, fd);
        return;
    }
    if (start_watching(peer) < 0 || handshake_begin(peer) < 0) {
        give_up(peer, -1);
        return;
    }
    uv_poll_start(&peer->death, UV_READABLE, on_death);
    watch(peer);
}

/* Who may not come in, and why; ERROR_NONE for the others. */
static Kvcached__Error judge(const struct server *server, const struct listener *listener,
                             const struct identity *identity, const char **ret_reason)
{
    if (listener->kind == LISTENER_CONTROL && !identity_is_local(identity)) {
        *ret_reason = "the control socket serves processes of the daemon's own pid and user namespaces";
        return KVCACHED__ERROR__ERROR_PERMISSION;
    }
    *ret_reason = check_room(server, identity->uid);
    return *ret_reason ? KVCACHED__ERROR__ERROR_RESOURCES : KVCACHED__ERROR__ERROR_NONE;
}

void peer_accept(struct server *server, const struct listener *listener, int fd)
{
    struct identity identity = {.pidfd = -1};
    const char *reason = "the daemon is short of descriptors";
    Kvcached__Error error = KVCACHED__ERROR__ERROR_RESOURCES;
    int r;

    if (server->draining) {
        reject(fd, KVCACHED__ERROR__ERROR_SHUTDOWN, PEER_STOPPING);
        return;
    }
    r = identity_read(fd, &identity, &reason);
    if (r == IDENTITY_E_GONE) {
        close_fd(fd);
        return;
    }
    if (r == IDENTITY_E_REFUSED)
        error = KVCACHED__ERROR__ERROR_IDENTITY;
    if (r == 0) {
        look_at_the_gone(server, identity.uid);
        error = judge(server, listener, &identity, &reason);
    }
    if (error == KVCACHED__ERROR__ERROR_NONE) {
        server->counters.n_connections[listener->kind]++;
        peer_start(server, listener, &identity, fd);
    } else {
        server->counters.n_rejected[listener->kind]++;
        reject(fd, error, reason);
    }
    identity_deinit(&identity);
}

struct region *peer_region(const struct peer *peer, uint32_t number)
{
    return number > 0 && number <= PEER_REGIONS_MAX ? peer->regions[number - 1] : NULL;
}

struct instance_status *peer_instance(const struct peer *peer)
{
    return peer->broker_peer->instance->owner;
}
