/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What engines ask for, but for regions (region.c) and orders (orders.c): extents, and giving them back.
 */

#include "request.h"

#include <errno.h>
#include <stdlib.h>

#include "attach.h"
#include "base/arith.h"
#include "base/parse.h"
#include "chronicle.h"
#include "control.h"
#include "controller.h"
#include "grant.h"
#include "handshake.h"
#include "instance_status.h"
#include "lessor.h"
#include "orders.h"
#include "region.h"
#include "server.h"

#define RETURN_EXTENTS_MAX 4096

/* ---- Refusals ---- */

static int refuse(struct peer *peer, const struct message *message, Kvcached__Error error, const char *reason)
{
    peer_refuse(peer, message->request, error, "%s", reason);
    return 0;
}

static Kvcached__Error error_of(int broker_error)
{
    switch (broker_error) {
    case BROKER_E_LIMIT:
        return KVCACHED__ERROR__ERROR_LIMIT;
    case BROKER_E_BUDGET:
        return KVCACHED__ERROR__ERROR_BUDGET;
    case BROKER_E_FROZEN:
        return KVCACHED__ERROR__ERROR_FROZEN;
    case BROKER_E_DRIVER:
        return KVCACHED__ERROR__ERROR_DRIVER;
    case BROKER_E_DESCRIPTORS:
        return KVCACHED__ERROR__ERROR_RESOURCES;
    default:
        return KVCACHED__ERROR__ERROR_INVALID;
    }
}

/* Those of the budget, and what is to be taken beside it. */
static const char *describe_wanted(uint64_t bytes, uint64_t foreign_bytes, char *buf, size_t size)
{
    char own[FORMAT_SIZE_MAX], foreign[FORMAT_SIZE_MAX];

    if (foreign_bytes)
        snprintf(buf, size, "%s and %s beside it", format_size(own, bytes),
                 format_size(foreign, foreign_bytes));
    else
        format_size(buf, bytes);
    return buf;
}

static void describe_shortage(struct peer *peer, int broker_error, uint64_t bytes, uint64_t foreign_bytes,
                              Kvcached__Refused *body, char reason[static SNAPSHOT_REASON_MAX])
{
    char wanted[3 * FORMAT_SIZE_MAX], limit[FORMAT_SIZE_MAX], used[FORMAT_SIZE_MAX];
    const struct broker_instance *instance = peer->broker_peer->instance;
    struct broker *broker = peer->server->broker;
    struct broker_totals totals;

    if (broker_error == BROKER_E_LIMIT) {
        body->limit_bytes = broker_limit(broker, instance, NULL);
        body->used_bytes = broker_used(instance);
    } else {
        broker_totals(broker, &totals);
        body->limit_bytes = totals.budget_bytes;
        body->used_bytes = totals.granted_bytes + totals.leased_bytes + totals.limbo_bytes +
                           totals.destroying_bytes + totals.reserved_bytes;
    }
    snprintf(
        reason, SNAPSHOT_REASON_MAX, "%s more would exceed the %s of %s, of which %s are in use",
        describe_wanted(bytes, broker_error == BROKER_E_LIMIT ? 0 : foreign_bytes, wanted, sizeof(wanted)),
        broker_error == BROKER_E_LIMIT ? "limit" : "budget", format_size(limit, body->limit_bytes),
        format_size(used, body->used_bytes));
}

int request_refuse_reservation(struct peer *peer, uint32_t request, int broker_error, uint64_t bytes,
                               uint64_t foreign_bytes)
{
    Kvcached__Refused body = KVCACHED__REFUSED__INIT;
    char reason[SNAPSHOT_REASON_MAX];

    if (broker_error == BROKER_E_LIMIT || broker_error == BROKER_E_BUDGET)
        describe_shortage(peer, broker_error, bytes, foreign_bytes, &body, reason);
    else if (broker_error == BROKER_E_FROZEN)
        snprintf(reason, sizeof(reason), "an administrator froze this instance");
    else if (broker_error == BROKER_E_DRIVER)
        snprintf(reason, sizeof(reason), "the driver has not given the memory");
    else if (broker_error == BROKER_E_DESCRIPTORS)
        snprintf(reason, sizeof(reason), "leases hold as many descriptors as the daemon can spare");
    else if (broker_error == BROKER_E_NOT_LEASED)
        snprintf(reason, sizeof(reason), "so many pages are not leased");
    else
        snprintf(reason, sizeof(reason), "that is more than can be had in one request");
    body.error = error_of(broker_error);
    body.reason = reason;
    instance_status_note_refusal(peer->server, peer->broker_peer->instance, reason);
    peer_send(peer, MESSAGE_REFUSED, request, &body.base, NULL);
    return 0;
}

int request_refuse_memory(struct peer *peer, uint32_t request, int broker_error, uint64_t bytes)
{
    return request_refuse_reservation(peer, request, broker_error, bytes, 0);
}

/* ---- Extents ---- */

/* ERROR_NONE when the broker can be asked. */
static Kvcached__Error judge_take(const struct peer *peer, const struct region *region, uint32_t pages,
                                  const char **ret_reason)
{
    if (pages < 1) {
        *ret_reason = "at least one page must be taken";
        return KVCACHED__ERROR__ERROR_INVALID;
    }
    if (region_page_extents(region) * pages > region->capacity_extents - region->n_extents) {
        *ret_reason = "the region has not so many pages left";
        return KVCACHED__ERROR__ERROR_INVALID;
    }
    if (peer->n_takes >= PEER_TAKES_MAX) {
        *ret_reason = "too many requests wait for their answers";
        return KVCACHED__ERROR__ERROR_RESOURCES;
    }
    return KVCACHED__ERROR__ERROR_NONE;
}

static int take(struct peer *peer, struct message *message)
{
    const Kvcached__Take *body = (const Kvcached__Take *)message->body;
    struct region *region = region_find(peer, body->region);
    struct broker_lease *lease;
    const char *reason;
    Kvcached__Error error;
    int r;

    if (!region)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID, "there is no such region");
    lease = body->leased ? region->lease : NULL;
    error = judge_take(peer, region, body->pages, &reason);
    if (error != KVCACHED__ERROR__ERROR_NONE) {
        if (lease)
            lessor_forgo(peer, region, body->pages);
        return refuse(peer, message, error, reason);
    }
    r = grant_ask(peer, body->region, body->pages, message->request, lease, NULL);
    if (r <= 0)
        return r;
    if (lease)
        lessor_forgo(peer, region, body->pages);
    return request_refuse_memory(peer, message->request, r,
                                 region_page_bytes(region, &peer->server->settings.broker) * body->pages);
}

static int grant_ack(struct peer *peer, struct message *message)
{
    return grant_acknowledged(peer, message->request);
}

/* Of a cold grant the broker doesn't know what is still to be sent. */
static bool all_sent(const struct server *server, const Kvcached__Return *body)
{
    for (size_t i = 0; i < body->n_extents; i++) {
        const struct slot *slot = slots_find(&server->slots, body->extents[i]);

        if (!slot || grant_is_unsent(slot))
            return false;
    }
    return true;
}

static int give_back(struct peer *peer, struct message *message)
{
    const Kvcached__Return *body = (const Kvcached__Return *)message->body;
    Kvcached__Returned answer = KVCACHED__RETURNED__INIT;
    struct server *server = peer->server;
    int r;

    if (body->n_extents == 0 || body->n_extents > RETURN_EXTENTS_MAX)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID,
                      "1 to 4096 extents can be returned at once");
    r = BROKER_E_NOT_HELD;
    if (all_sent(server, body))
        r = broker_return(server->broker, peer->broker_peer, body->extents, body->n_extents, server_now());
    if (r == BROKER_E_NOT_HELD)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_INVALID,
                      "an extent is not yours, or is named twice");
    if (r != 0)
        return r < 0 ? r : -EINVAL;
    for (size_t i = 0; i < body->n_extents; i++)
        region_lose_extents(peer, slots_find(&server->slots, body->extents[i])->region, 1);
    peer_send(peer, MESSAGE_RETURNED, message->request, &answer.base, NULL);
    return 0;
}

/* ---- The table ---- */

#define ROLE(name) (1u << KVCACHED__ROLE__ROLE_##name)
#define NO_ROLE (1u << KVCACHED__ROLE__ROLE_UNSPECIFIED)
#define MAPPERS (ROLE(ENGINE) | ROLE(WORKER))
#define MEMBERS (MAPPERS | ROLE(SCHEDULER))
#define ENGINES (1u << LISTENER_ENGINE)
#define CONTROL (1u << LISTENER_CONTROL)
#define LEASES KVCACHED__FEATURE__FEATURE_LEASES
#define ORDERS KVCACHED__FEATURE__FEATURE_ORDERS
#define OPERATIONS KVCACHED__FEATURE__FEATURE_OPERATIONS
#define RESERVATIONS KVCACHED__FEATURE__FEATURE_RESERVATIONS

struct request_rule {
    uint16_t type;
    unsigned sockets; /* bits of enum listener_kind */
    unsigned states;  /* enum peer_state */
    uint64_t feature; /* without it, there is no such message */
    unsigned roles;   /* bits of the Role; before Hello there is none */
    bool admin;
    int (*handle)(struct peer *peer, struct message *message);
};

static const struct request_rule rules[] = {
    {MESSAGE_HELLO, ENGINES | CONTROL, PEER_HELLO, 0, NO_ROLE, false, handshake_hello},
    {MESSAGE_CHALLENGE_REPLY, ENGINES | CONTROL, PEER_CHALLENGED, 0, NO_ROLE, false, handshake_reply},
    {MESSAGE_REGION_OPEN, ENGINES, PEER_READY, 0, MAPPERS, false, region_open},
    {MESSAGE_REGION_CLOSE, ENGINES, PEER_READY, 0, MEMBERS, false, region_close},
    {MESSAGE_TAKE, ENGINES, PEER_READY, 0, MAPPERS, false, take},
    {MESSAGE_GRANT_ACK, ENGINES, PEER_READY, 0, MAPPERS, false, grant_ack},
    {MESSAGE_RETURN, ENGINES, PEER_READY, 0, MAPPERS, false, give_back},
    {MESSAGE_LEASE, ENGINES, PEER_READY, LEASES, MEMBERS, false, lessor_ask},
    {MESSAGE_NOTICE_ACK, ENGINES, PEER_READY, LEASES, MEMBERS, false, lessor_notice_acknowledged},
    {MESSAGE_REGION_ATTACH, ENGINES, PEER_READY, ORDERS, ROLE(SCHEDULER), false, attach_region},
    {MESSAGE_MAP, ENGINES, PEER_READY, ORDERS, ROLE(SCHEDULER), false, orders_map},
    {MESSAGE_UNMAP, ENGINES, PEER_READY, ORDERS, ROLE(SCHEDULER), false, orders_unmap},
    {MESSAGE_ORDER_DONE, ENGINES, PEER_READY, ORDERS, ROLE(WORKER), false, orders_done},
    {MESSAGE_RESERVE, ENGINES, PEER_READY, RESERVATIONS, ROLE(CONTROLLER), false, controller_reserve},
    {MESSAGE_RELEASE, ENGINES, PEER_READY, RESERVATIONS, ROLE(CONTROLLER), false, controller_release},
    {MESSAGE_LIST, CONTROL, PEER_READY, 0, NO_ROLE, false, control_list},
    {MESSAGE_EVENTS, CONTROL, PEER_READY, OPERATIONS, NO_ROLE, false, chronicle_asked},
    {MESSAGE_WHY, CONTROL, PEER_READY, OPERATIONS, NO_ROLE, false, control_why},
    {MESSAGE_RELOAD, CONTROL, PEER_READY, OPERATIONS, NO_ROLE, true, control_reload},
    {MESSAGE_INFO, CONTROL, PEER_READY, 0, NO_ROLE, false, control_info},
    {MESSAGE_SET_LIMIT, CONTROL, PEER_READY, 0, NO_ROLE, true, control_set_limit},
    {MESSAGE_DELETE, CONTROL, PEER_READY, 0, NO_ROLE, true, control_delete},
};

static const struct request_rule *find_rule(uint16_t type)
{
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        if (rules[i].type == type)
            return &rules[i];
    }
    return NULL;
}

static bool has_place(const struct request_rule *rule, const struct peer *peer)
{
    return rule && (rule->sockets & (1u << peer->kind)) && (rule->states & peer->state) &&
           (rule->feature & ~peer->features) == 0;
}

static int handle(struct peer *peer, struct message *message)
{
    const struct request_rule *rule = find_rule(message->type);
    const char *name = codec_type_name(message->type);

    if (!has_place(rule, peer)) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_PROTOCOL, "a %s has no place here", name);
        return REQUEST_E_FAILED;
    }
    if (peer->state == PEER_READY && message->version != FRAME_VERSION) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_PROTOCOL,
                  "a %s of version %u came after version %d was agreed on", name, message->version,
                  FRAME_VERSION);
        return REQUEST_E_FAILED;
    }
    if (message->request == 0) {
        peer_fail(peer, KVCACHED__ERROR__ERROR_PROTOCOL, "a %s must have a request number", name);
        return REQUEST_E_FAILED;
    }
    if (!(rule->roles & (1u << peer->facts.role)))
        return refuse(peer, message, KVCACHED__ERROR__ERROR_PERMISSION, "your role has no use for that");
    if (rule->admin && !peer->is_admin)
        return refuse(peer, message, KVCACHED__ERROR__ERROR_PERMISSION,
                      "only root, the daemon's user and the admin group may change things");
    return rule->handle(peer, message);
}

void request_dispatch(struct peer *peer, struct message *message)
{
    if (handle(peer, message) < 0)
        peer_fail(peer, KVCACHED__ERROR__ERROR_RESOURCES, "the daemon is short of memory or descriptors");
}
