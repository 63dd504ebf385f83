/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The daemon answers in order, so what is held is what its last answer says, whichever thread receives it.
 * Who has lost patience sends a Release behind the Reserve and waits for neither: whatever the answers are,
 * nothing is held after them.
 */

#include "reservation.h"

#include "base/arith.h"
#include "client.h"

struct reserve_ask {
    struct request request;
    struct kvc_client *client; /* NULL: nobody wants it any more */
};

static int reserve_receive(struct request *request, const struct message *message, struct fdset *fds,
                           bool truncated)
{
    struct reserve_ask *ask = container_of(request, struct reserve_ask, request);

    if (message->type != MESSAGE_RESERVED)
        return request_violated(request, "kvcachedd answered Reserve with %s",
                                codec_type_name(message->type));
    if (ask->client)
        ask->client->reservation.held = true;
    return 0;
}

static int release_receive(struct request *request, const struct message *message, struct fdset *fds,
                           bool truncated)
{
    if (message->type != MESSAGE_RELEASED)
        return request_violated(request, "kvcachedd answered Release with %s",
                                codec_type_name(message->type));
    return 0;
}

static void ask_finish(struct request *request)
{
    free(container_of(request, struct reserve_ask, request));
}

static int send(struct kvc_client *client, enum message_type type, const ProtobufCMessage *body,
                struct reserve_ask **ret)
{
    struct reserve_ask *ask = calloc(1, sizeof(*ask));
    int r;

    if (!ask)
        return error_nomem();
    request_init(&ask->request, type == MESSAGE_RESERVE ? reserve_receive : release_receive, ask_finish);
    ask->client = client;
    r = conn_ask(client->conn, &ask->request, type, body);
    if (r < 0) {
        free(ask);
        return r;
    }
    *ret = ask;
    return 0;
}

static int send_release(struct kvc_client *client, struct reserve_ask **ret)
{
    Kvcached__Release body = KVCACHED__RELEASE__INIT;

    return send(client, MESSAGE_RELEASE, &body.base, ret);
}

/* It is the connection's now, and will be answered behind the Release. */
static void give_up(struct kvc_client *client, struct reserve_ask *ask)
{
    struct reserve_ask *release;

    ask->client = NULL;
    error_hold();
    if (send_release(client, &release) < 0)
        conn_die(client->conn, KVC_E_NOMEM, "Something may be reserved that cannot be released");
    error_release();
}

static int reserve(struct kvc_client *client, uint64_t bytes, uint64_t foreign_bytes, uint64_t deadline_ns)
{
    Kvcached__Reserve body = KVCACHED__RESERVE__INIT;
    struct reserve_ask *ask = NULL;
    int r;

    body.bytes = bytes;
    body.foreign_bytes = foreign_bytes;
    r = send(client, MESSAGE_RESERVE, &body.base, &ask);
    if (r < 0)
        return r;
    client->reservation.asking = true;
    r = conn_wait_until(client->conn, &ask->request, deadline_ns);
    client->reservation.asking = false;
    if (ask->request.done)
        free(ask);
    else
        give_up(client, ask);
    return r;
}

static int check_controller(struct kvc_client *client)
{
    if (client->role != KVC_ROLE_CONTROLLER)
        return error_set(KVC_E_INVALID, "Only a controller (KVC_ROLE_CONTROLLER) reserves memory");
    return conn_check(client->conn);
}

KVC_API int kvc_reserve(struct kvc_client *client, uint64_t bytes, uint64_t foreign_bytes, int timeout_ms)
{
    int r = client_enter(client);

    if (r < 0)
        return r;
    r = check_controller(client);
    if (r == 0 && (client->reservation.asking || client->reservation.held))
        r = error_set(KVC_E_INVALID, "A controller has one reservation at a time: release it first");
    if (r == 0)
        r = reserve(client, bytes, foreign_bytes, client_deadline(client, timeout_ms));
    client_leave(client);
    return r;
}

static int release(struct kvc_client *client)
{
    struct reserve_ask *ask = NULL;
    int r;

    if (!client->reservation.held)
        return error_set(KVC_E_INVALID, "Nothing is reserved");
    r = send_release(client, &ask);
    if (r < 0)
        return r;
    client->reservation.held = false;
    r = conn_wait(client->conn, &ask->request);
    if (ask->request.done)
        free(ask);
    return r;
}

KVC_API int kvc_release(struct kvc_client *client)
{
    int r = client_enter(client);

    if (r < 0)
        return r;
    r = check_controller(client);
    if (r == 0)
        r = release(client);
    client_leave(client);
    return r;
}
