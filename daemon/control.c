/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What kvctl asks for. A limit is kept on disk before it takes effect, so what the administrator saw succeed
 * survives the daemon; where it cannot be kept, nothing changes.
 *
 * An administrator may set the limit of an instance that nobody has opened yet; its domain must be named
 * then, or be the only one that could be meant: the administrator's own.
 */

#include "control.h"

#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"
#include "chronicle.h"
#include "explain.h"
#include "handshake.h"
#include "http.h"
#include "instance_status.h"
#include "reload.h"
#include "request.h"
#include "server.h"

#define PPM_MAX 1000000
#define LIST_NAMES_MAX 256 /* each is compared with every instance */

static int refuse(struct peer *peer, const struct message *message, Kvcached__Error error, const char *reason)
{
    peer_refuse(peer, message->request, error, "%s", reason);
    return 0;
}

static Kvcached__Error error_of(int snapshot_error)
{
    return snapshot_error == SNAPSHOT_E_AMBIGUOUS ? KVCACHED__ERROR__ERROR_AMBIGUOUS
                                                  : KVCACHED__ERROR__ERROR_NOT_FOUND;
}

/* ---- Looking ---- */

int control_list(struct peer *peer, struct message *message)
{
    _cleanup_(snapshot_list_freep) Kvcached__ListReply *reply = NULL;
    const Kvcached__List *body = (const Kvcached__List *)message->body;
    const char *missing;
    int r;

    if (body->n_instances > LIST_NAMES_MAX)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, "a List names at most 256 instances");
    r = snapshot_list(peer->server->broker, body->instances, body->n_instances, body->cursor, &reply,
                      &missing);
    if (r == SNAPSHOT_E_NOT_FOUND) {
        peer_refuse(peer, message->request, KVCACHED__ERROR__ERROR_NOT_FOUND, "There is no instance %.200s",
                    missing);
        return 0;
    }
    if (r != 0)
        return r;
    peer_send(peer, MESSAGE_LIST_REPLY, message->request, &reply->base, NULL);
    return 0;
}

int control_info(struct peer *peer, struct message *message)
{
    _cleanup_(snapshot_instance_freep) Kvcached__InstanceInfo *info = NULL;
    const Kvcached__Info *body = (const Kvcached__Info *)message->body;
    const struct device_info *device = device_info(peer->server->device);
    Kvcached__InfoReply reply = KVCACHED__INFO_REPLY__INIT;
    struct broker_instance *instance;
    char reason[SNAPSHOT_REASON_MAX];
    int r;

    if (*body->instance) {
        r = snapshot_find(peer->server->broker, body->instance, &instance, reason);
        if (r > 0)
            return refuse(peer, message, error_of(r), reason);
        r = snapshot_instance(peer->server->broker, instance, &info);
        if (r < 0)
            return r;
    }
    snapshot_totals(peer->server->broker, &reply);
    reply.gpu_uuid = (char *)device->uuid;
    reply.gpu_name = (char *)device->name;
    reply.gpu_index = device->index;
    reply.emulated_folder = (char *)device->emulated_folder;
    reply.daemon_version = (char *)KVCACHED_VERSION;
    reply.protocol_version = FRAME_VERSION;
    reply.uptime_ms = (server_now() - peer->server->started_ns) / NSEC_PER_MSEC;
    reply.life = peer->server->life;
    reply.config_file = (char *)options_config_file(peer->server->options);
    reply.metrics_address = (char *)http_address(peer->server);
    reply.instance = info;
    peer_send(peer, MESSAGE_INFO_REPLY, message->request, &reply.base, NULL);
    return 0;
}

int control_why(struct peer *peer, struct message *message)
{
    _cleanup_(explain_freep) Kvcached__WhyReply *reply = NULL;
    const Kvcached__Why *body = (const Kvcached__Why *)message->body;
    const struct instance_status *status;
    struct broker_instance *instance;
    char reason[SNAPSHOT_REASON_MAX];
    int r;

    r = snapshot_find(peer->server->broker, body->instance, &instance, reason);
    if (r > 0)
        return refuse(peer, message, error_of(r), reason);
    status = instance->owner;
    r = explain_instance(peer->server->broker, instance, status ? &status->times : NULL, server_now(),
                         &reply);
    if (r < 0)
        return r;
    peer_send(peer, MESSAGE_WHY_REPLY, message->request, &reply->base, NULL);
    return 0;
}

/* ---- Configuration ---- */

int control_reload(struct peer *peer, struct message *message)
{
    Kvcached__Reloaded reply = KVCACHED__RELOADED__INIT;
    char sentence[CONFIG_ERROR_MAX], *warnings[] = {sentence};
    int r;

    r = reload(peer->server, sentence);
    if (r < 0)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_CONFIG, sentence);
    reply.n_warnings = r > 0;
    reply.warnings = warnings;
    peer_send(peer, MESSAGE_RELOADED, message->request, &reply.base, NULL);
    return 0;
}

/* ---- Limits ---- */

/* Who is meant: somebody known, or somebody to come. ERROR_NONE, or the error and its reason. */
static Kvcached__Error find_target(struct peer *peer, const char *name,
                                   char domain[static BROKER_DOMAIN_MAX + 1], const char **ret_instance,
                                   char reason[static SNAPSHOT_REASON_MAX])
{
    struct broker_instance *instance;
    int r;

    r = snapshot_find(peer->server->broker, name, &instance, reason);
    if (r == SNAPSHOT_E_AMBIGUOUS)
        return error_of(r);
    if (r == 0) {
        strcpy(domain, broker_domain_name(instance->domain));
        *ret_instance = instance->name;
        return KVCACHED__ERROR__ERROR_NONE;
    }
    if (!snapshot_split(name, domain, ret_instance) || !handshake_name_is_valid(*ret_instance)) {
        snprintf(reason, SNAPSHOT_REASON_MAX, "That cannot be the name of an instance");
        return KVCACHED__ERROR__ERROR_NAME;
    }
    if (!*domain)
        snprintf(domain, BROKER_DOMAIN_MAX + 1, "uid:%u", (unsigned)peer->identity.uid);
    return KVCACHED__ERROR__ERROR_NONE;
}

/* NULL when the message says what can be. */
static const char *read_limit(const Kvcached__SetLimit *body, struct limit *ret)
{
    switch (body->limit_case) {
    case KVCACHED__SET_LIMIT__LIMIT_BYTES:
        *ret = (struct limit){.bytes = body->bytes};
        return body->bytes <= LIMIT_BYTES_MAX ? NULL : "the limit is larger than any GPU";
    case KVCACHED__SET_LIMIT__LIMIT_PPM:
        *ret = (struct limit){.bytes = UINT64_MAX, .ppm = body->ppm};
        return body->ppm <= PPM_MAX ? NULL : "a limit is at most 100 percent";
    default:
        return "the limit is missing";
    }
}

static int apply_limit(struct server *server, const char *domain, const char *instance,
                       const struct limit *limit)
{
    uint64_t bytes = limit_bytes(limit, device_info(server->device)->total_bytes);

    return broker_set_limit(server->broker, domain, instance, BROKER_LIMIT_ADMIN, bytes);
}

static int answer_limit(struct peer *peer, const struct message *message, const char *domain,
                        const char *name)
{
    _cleanup_(snapshot_instance_freep) Kvcached__InstanceInfo *info = NULL;
    Kvcached__LimitReply reply = KVCACHED__LIMIT_REPLY__INIT;
    struct broker *broker = peer->server->broker;
    int r;

    r = snapshot_instance(broker, broker_instance_find(broker, domain, name), &info);
    if (r < 0)
        return r;
    reply.instance = info;
    peer_send(peer, MESSAGE_LIMIT_REPLY, message->request, &reply.base, NULL);
    return 0;
}

static void note_limit(struct server *server, const char *domain, const char *name,
                       const struct identity *identity)
{
    const struct broker_instance *instance = broker_instance_find(server->broker, domain, name);
    uint64_t bytes = instance->limit_of[BROKER_LIMIT_ADMIN];
    char limit[FORMAT_SIZE_MAX];

    chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_LIMIT, instance, identity->pid, bytes,
                   "User %u set its limit to %s", (unsigned)identity->uid, format_size(limit, bytes));
}

int control_set_limit(struct peer *peer, struct message *message)
{
    const Kvcached__SetLimit *body = (const Kvcached__SetLimit *)message->body;
    char domain[BROKER_DOMAIN_MAX + 1], error[LIMIT_STORE_ERROR_MAX];
    struct server *server = peer->server;
    Kvcached__Error refusal;
    struct limit limit;
    const char *instance, *reason = read_limit(body, &limit);
    int r;

    if (reason)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, reason);
    refusal = find_target(peer, body->instance, domain, &instance, error);
    if (refusal != KVCACHED__ERROR__ERROR_NONE)
        return refuse(peer, message, refusal, error);
    r = limit_store_change(server->limits, domain, instance, &limit, error);
    if (r < 0)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_STORAGE, error);
    r = apply_limit(server, domain, instance, &limit);
    if (r != 0)
        return r < 0 ? r : refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, "the limit is out of range");
    server_set_config_limit(server, broker_instance_find(server->broker, domain, instance));
    note_limit(server, domain, instance, &peer->identity);
    return answer_limit(peer, message, domain, instance);
}

/* ---- Deleting ---- */

static void disconnect_all(struct broker_instance *instance)
{
    list_for_each (it, &instance->peers) {
        struct snapshot_peer *facts = container_of(it, struct broker_peer, link)->owner;

        peer_fail(container_of(facts, struct peer, facts), KVCACHED__ERROR__ERROR_FROZEN,
                  "an administrator deleted this instance");
    }
}

static int refuse_busy(struct peer *peer, const struct message *message, const Kvcached__InstanceInfo *info)
{
    char reason[SNAPSHOT_REASON_MAX];
    int used = snprintf(reason, sizeof(reason), "%s is in use by process", info->instance);

    for (size_t i = 0; i < info->n_peers && used < (int)sizeof(reason) - 16; i++)
        used += snprintf(reason + used, sizeof(reason) - (size_t)used, " %d", info->peers[i]->pid);
    return refuse(peer, message, KVCACHED__ERROR__ERROR_BUSY, reason);
}

int control_delete(struct peer *peer, struct message *message)
{
    _cleanup_(snapshot_instance_freep) Kvcached__InstanceInfo *info = NULL;
    const Kvcached__Delete *body = (const Kvcached__Delete *)message->body;
    Kvcached__DeleteReply reply = KVCACHED__DELETE_REPLY__INIT;
    char error[LIMIT_STORE_ERROR_MAX], reason[SNAPSHOT_REASON_MAX];
    struct server *server = peer->server;
    struct broker_instance *instance;
    int r;

    r = snapshot_find(server->broker, body->instance, &instance, reason);
    if (r > 0)
        return refuse(peer, message, error_of(r), reason);
    r = snapshot_instance(server->broker, instance, &info);
    if (r < 0)
        return r;
    if (info->n_peers > 0 && !body->force)
        return refuse_busy(peer, message, info);
    r = limit_store_change(server->limits, info->domain, info->instance, NULL, error);
    if (r < 0)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_STORAGE, error);
    chronicle_note(server,
                   info->n_peers ? KVCACHED__EVENT_KIND__EVENT_FROZEN : KVCACHED__EVENT_KIND__EVENT_DELETED,
                   instance, peer->identity.pid, info->used_bytes, "User %u deleted it%s",
                   (unsigned)peer->identity.uid, info->n_peers ? "; its processes are disconnected" : "");
    for (size_t i = 0; i < info->n_peers; i++)
        info->peers[i]->connected = false;
    reply.n_peers = info->n_peers;
    reply.peers = info->peers;
    peer_send(peer, MESSAGE_DELETE_REPLY, message->request, &reply.base, NULL);
    if (info->n_peers == 0)
        return broker_instance_delete(server->broker, instance);
    broker_set_limit(server->broker, info->domain, info->instance, BROKER_LIMIT_ADMIN, UINT64_MAX);
    broker_instance_freeze(server->broker, instance);
    disconnect_all(instance);
    return 0;
}
