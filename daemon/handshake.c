/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From a stranger to a member of an instance. The order is: version, device, name; then, if the kernel could
 * not tell for sure who connected, the challenge; then the broker's word about the name; then Welcome with
 * the status page, and with the lease file for those who know what to do with one. Whatever is refused here
 * ends the connection.
 */

#include "handshake.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "chronicle.h"
#include "instance_status.h"
#include "lessor.h"
#include "request.h"
#include "server.h"

#define HANDSHAKE_NS (10 * NSEC_PER_SEC)

/* What this daemon can do for clients that want it. */
#define RESERVATIONS KVCACHED__FEATURE__FEATURE_RESERVATIONS
#define ENGINE_FEATURES (KVCACHED__FEATURE__FEATURE_LEASES | KVCACHED__FEATURE__FEATURE_ORDERS | RESERVATIONS)
#define CONTROL_FEATURES KVCACHED__FEATURE__FEATURE_OPERATIONS

/* ---- Time ---- */

int handshake_begin(struct peer *peer)
{
    peer->hello = calloc(1, sizeof(*peer->hello));
    if (!peer->hello)
        return -ENOMEM;
    peer->hello->deadline_ns = server_now() + HANDSHAKE_NS;
    list_append(&peer->server->handshakes, &peer->hello_link);
    return 0;
}

void handshake_end(struct peer *peer)
{
    list_unlink(&peer->hello_link);
    free(peer->hello);
    peer->hello = NULL;
}

uint64_t handshake_expire(struct server *server, uint64_t now_ns)
{
    list_for_each_safe (it, &server->handshakes) {
        struct peer *peer = container_of(it, struct peer, hello_link);

        if (peer->hello->deadline_ns > now_ns)
            return peer->hello->deadline_ns;
        list_unlink(&peer->hello_link);
        peer_fail(peer, KVCACHED__ERROR__ERROR_PROTOCOL, "no handshake within %u seconds",
                  (unsigned)(HANDSHAKE_NS / NSEC_PER_SEC));
    }
    return UINT64_MAX;
}

/* ---- Judging a Hello ---- */

bool handshake_name_is_valid(const char *name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strlen(name);

    return length > 0 && length <= BROKER_NAME_MAX && strspn(name, letters) == length && *name != '.' &&
           *name != '-';
}

static int refuse(struct peer *peer, Kvcached__Error error, const char *reason)
{
    peer_fail(peer, error, "%s", reason);
    return REQUEST_E_FAILED;
}

static bool is_role(const Kvcached__Hello *hello)
{
    switch (hello->role) {
    case KVCACHED__ROLE__ROLE_ENGINE:
    case KVCACHED__ROLE__ROLE_WORKER:
    case KVCACHED__ROLE__ROLE_SCHEDULER:
        return true;
    case KVCACHED__ROLE__ROLE_CONTROLLER:
        return hello->features & RESERVATIONS;
    default:
        return false;
    }
}

static bool controls(const struct peer *peer)
{
    return peer->hello->role == KVCACHED__ROLE__ROLE_CONTROLLER;
}

static int judge_hello(struct peer *peer, const Kvcached__Hello *hello)
{
    const struct device_info *info = device_info(peer->server->device);

    if (hello->min_version > FRAME_VERSION || hello->max_version < FRAME_VERSION) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_VERSION,
                  "this daemon speaks version %d of the protocol, you speak %u to %u", FRAME_VERSION,
                  hello->min_version, hello->max_version);
        return REQUEST_E_FAILED;
    }
    if (*hello->gpu_uuid && strcasecmp(hello->gpu_uuid, info->uuid) != 0) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_DEVICE, "this daemon serves %s", info->uuid);
        return REQUEST_E_FAILED;
    }
    if (peer->kind == LISTENER_CONTROL)
        return 0;
    if (!is_role(hello))
        return refuse(peer, KVCACHED__ERROR__ERROR_INVALID, "the role is unknown");
    if (!handshake_name_is_valid(hello->instance))
        return refuse(
            peer, KVCACHED__ERROR__ERROR_NAME,
            "an instance name has 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or a digit");
    if (hello->limit_ppm > 1000000)
        return refuse(peer, KVCACHED__ERROR__ERROR_INVALID, "limit_ppm is above one million");
    return 0;
}

static void keep_program(struct peer *peer, const char *program)
{
    char *to = peer->facts.program;

    for (size_t i = 0; i < SNAPSHOT_PROGRAM_MAX && program[i]; i++)
        *to++ = program[i] >= ' ' && program[i] <= '~' ? program[i] : '?';
    *to = '\0';
}

static void keep_hello(struct peer *peer, const struct message *message)
{
    const Kvcached__Hello *body = (const Kvcached__Hello *)message->body;
    struct peer_hello *hello = peer->hello;

    keep_program(peer, body->program);
    hello->request = message->request;
    hello->features = body->features & (peer->kind == LISTENER_CONTROL ? CONTROL_FEATURES : ENGINE_FEATURES);
    if (peer->kind == LISTENER_CONTROL)
        return;
    hello->limit_ppm = body->limit_ppm;
    strcpy(hello->instance, body->instance);
    hello->role = body->role;
    /* It has nothing to lease for, and nothing to give back. */
    if (controls(peer))
        hello->features &= RESERVATIONS;
}

/* ---- Joining ---- */

static int find_domain(struct peer *peer)
{
    char domain[BROKER_DOMAIN_MAX + 1];
    const char *reason;

    if (peer->domain)
        return 0;
    if (identity_domain(&peer->identity, domain, &reason) != 0)
        return refuse(peer, KVCACHED__ERROR__ERROR_IDENTITY, reason);
    peer->domain = strdup(domain);
    return peer->domain ? 0 : -ENOMEM;
}

static void initial_limits(const struct peer *peer, uint64_t limits[static 5])
{
    const struct peer_hello *hello = peer->hello;
    const struct server *server = peer->server;
    uint64_t total_bytes = device_info(server->device)->total_bytes;
    const struct limit *admin = limit_store_find(server->limits, peer->domain, hello->instance);

    for (unsigned i = 0; i < 5; i++)
        limits[i] = UINT64_MAX;
    if (admin)
        limits[BROKER_LIMIT_ADMIN] = limit_bytes(admin, total_bytes);
    limits[BROKER_LIMIT_CONFIG] = config_limit(server->config, peer->domain, hello->instance, total_bytes);
    if (hello->limit_ppm && !controls(peer))
        limits[BROKER_LIMIT_ENGINE] = config_part(total_bytes, hello->limit_ppm);
}

static bool has_other_engines(const struct broker_instance *instance, const struct broker_peer *self)
{
    list_for_each (it, &instance->peers) {
        const struct broker_peer *other = container_of(it, struct broker_peer, link);

        if (other != self && !other->controls)
            return true;
    }
    return false;
}

/* A record that was there before anybody opened it (for its limit) has not heard the other sources. */
static int set_opener_limits(struct peer *peer, const uint64_t limits[static 5])
{
    struct broker *broker = peer->server->broker;
    const struct broker_instance *instance = peer->broker_peer->instance;
    int r;

    if (has_other_engines(instance, peer->broker_peer))
        return 0;
    r = broker_set_limit(broker, peer->domain, instance->name, BROKER_LIMIT_CONFIG,
                         limits[BROKER_LIMIT_CONFIG]);
    if (r == 0 && !controls(peer))
        r = broker_set_limit(broker, peer->domain, instance->name, BROKER_LIMIT_ENGINE,
                             limits[BROKER_LIMIT_ENGINE]);
    return r;
}

static int join(struct peer *peer)
{
    struct server *server = peer->server;
    uint64_t limits[5];
    int r;

    r = find_domain(peer);
    if (r != 0)
        return r;
    initial_limits(peer, limits);
    if (controls(peer))
        r = broker_controller_new(server->broker, peer->domain, peer->hello->instance, limits,
                                  &peer->broker_peer);
    else
        r = broker_peer_new(server->broker, peer->domain, peer->hello->instance,
                            identity_key(&peer->identity), limits, &peer->broker_peer);
    if (r == BROKER_E_IDENTITY)
        return refuse(peer, KVCACHED__ERROR__ERROR_NAME, "this instance was opened by somebody else");
    if (r == BROKER_E_FROZEN)
        return refuse(peer, KVCACHED__ERROR__ERROR_FROZEN, "an administrator froze this instance");
    if (r != 0)
        return r;
    peer->broker_peer->owner = &peer->facts;
    r = flight_domain_join(&server->flight, peer->domain, &peer->flight);
    if (r == 0)
        r = set_opener_limits(peer, limits);
    return r;
}

static int attach_files(struct peer *peer, struct fdset *fds)
{
    struct instance_status *instance;
    int r;

    if (peer->kind == LISTENER_CONTROL)
        return 0;
    r = instance_status_of(peer->server, peer->broker_peer->instance, &instance);
    if (r == 0)
        r = instance_status_share(instance, fds);
    return r < 0 ? r : lessor_begin(peer, fds);
}

static int welcome(struct peer *peer, uint32_t request)
{
    const struct broker_config *config = &peer->server->settings.broker;
    const struct device_info *info = device_info(peer->server->device);
    Kvcached__Welcome body = KVCACHED__WELCOME__INIT;
    struct fdset fds = {0};
    int r;

    r = attach_files(peer, &fds);
    if (r < 0) {
        fdset_deinit(&fds);
        return r;
    }
    body.version = FRAME_VERSION;
    body.features = peer->features;
    body.gpu_uuid = (char *)info->uuid;
    body.emulated_folder = (char *)info->emulated_folder;
    body.total_bytes = info->total_bytes;
    body.granularity_bytes = info->granularity_bytes;
    body.n_class_bytes = config->n_classes;
    body.class_bytes = (uint64_t *)config->class_bytes;
    body.daemon_version = (char *)KVCACHED_VERSION;
    body.gpu_index = info->index;
    peer_send(peer, MESSAGE_WELCOME, request, &body.base, &fds);
    fdset_deinit(&fds);
    return 0;
}

static void note_joined(struct peer *peer)
{
    static const char *const roles[] = {"", "engine", "worker", "scheduler", "controller"};

    peer->server->counters.n_joined++;
    chronicle_note(peer->server, KVCACHED__EVENT_KIND__EVENT_JOINED, peer->broker_peer->instance,
                   peer->facts.pid, 0, "%s has joined as %s",
                   *peer->facts.program ? peer->facts.program : "A process", roles[peer->facts.role]);
}

static int admit(struct peer *peer)
{
    int r = 0;

    peer->facts.role = peer->hello->role;
    peer->features = peer->hello->features;
    if (peer->kind != LISTENER_CONTROL)
        r = join(peer);
    if (r == 0)
        r = welcome(peer, peer->hello->request);
    if (r != 0)
        return r;
    peer->state = PEER_READY;
    if (peer->broker_peer)
        note_joined(peer);
    handshake_end(peer);
    return 0;
}

/* ---- Messages ---- */

/* For the answer to the challenge only: everything else is received without room for what the kernel
 * attaches. */
static int ask_for_credentials(struct peer *peer, bool on)
{
    int value = on;

    if (setsockopt(link_fd(peer->conn), SOL_SOCKET, SO_PASSCRED, &value, sizeof(value)) < 0)
        return -errno;
    return 0;
}

static int challenge(struct peer *peer)
{
    Kvcached__Challenge body = KVCACHED__CHALLENGE__INIT;
    struct peer_hello *hello = peer->hello;
    int r;

    if (getrandom(hello->nonce, sizeof(hello->nonce), 0) != sizeof(hello->nonce))
        return -EIO;
    r = ask_for_credentials(peer, true);
    if (r < 0)
        return r;
    body.nonce.data = hello->nonce;
    body.nonce.len = sizeof(hello->nonce);
    peer->state = PEER_CHALLENGED;
    peer_send(peer, MESSAGE_CHALLENGE, hello->request, &body.base, NULL);
    return 0;
}

int handshake_hello(struct peer *peer, struct message *message)
{
    int r = judge_hello(peer, (const Kvcached__Hello *)message->body);

    if (r != 0)
        return r;
    keep_hello(peer, message);
    return peer->identity.proven ? admit(peer) : challenge(peer);
}

int handshake_reply(struct peer *peer, struct message *message)
{
    const Kvcached__ChallengeReply *reply = (const Kvcached__ChallengeReply *)message->body;
    const struct peer_hello *hello = peer->hello;
    int r;

    if (reply->nonce.len != sizeof(hello->nonce) ||
        memcmp(reply->nonce.data, hello->nonce, sizeof(hello->nonce)) != 0)
        return refuse(peer, KVCACHED__ERROR__ERROR_IDENTITY, "the challenge was answered wrongly");
    r = ask_for_credentials(peer, false);
    if (r < 0)
        return r;
    return admit(peer);
}
