/* SPDX-License-Identifier: Apache-2.0 */
#include "explain.h"

#include <stdatomic.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"

static const uint64_t no_limits[5] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
static const uint32_t one_small[BROKER_CLASSES_MAX] = {1};

static struct broker *make_broker(void)
{
    struct broker_config config = {
        .total_bytes = GIB,
        .n_classes = 1,
        .class_bytes = {2 * MIB},
        .budget_bytes = GIB,
        .warm_max = 100,
        .lease_max = 100,
        .creating_max = 4,
        .look_ns = NSEC_PER_SEC,
        .patience_ns = NSEC_PER_SEC,
    };
    struct broker *broker;

    check_eq(broker_new(&config, GIB, 1, &broker), 0);
    return broker;
}

/* What is released is still referred to by somebody. */
static void look(struct broker *broker, uint64_t now_ns)
{
    struct broker_totals totals;

    broker_totals(broker, &totals);
    broker_look(broker, totals.total_bytes - totals.held_bytes, now_ns);
}

/* Carries everything out, as a driver would that never fails. */
static void settle(struct broker *broker, uint64_t now_ns)
{
    struct broker_action action;

    while (broker_next_action(broker, &action)) {
        if (action.type == BROKER_ACTION_CREATE)
            broker_created(broker, action.extent, true, now_ns);
        if (action.type == BROKER_ACTION_EXPORT)
            broker_exported(broker, action.extent, true, now_ns);
        if (action.type == BROKER_ACTION_DESTROY)
            broker_destroyed(broker, action.extent, 0, now_ns);
        if (action.type == BROKER_ACTION_LOOK)
            look(broker, now_ns);
        if (action.type == BROKER_ACTION_GRANT || action.type == BROKER_ACTION_LEASE ||
            action.type == BROKER_ACTION_REFUSE)
            broker_request_free(broker, action.request);
    }
}

static void take(struct broker *broker, struct broker_peer *peer, unsigned n, uint64_t now_ns)
{
    struct broker_request *request;

    for (unsigned i = 0; i < n; i++) {
        check_eq(broker_take(broker, peer, one_small, now_ns, &request), 0);
        settle(broker, now_ns);
    }
}

static const Kvcached__WhyPart *find(const Kvcached__WhyReply *reply, Kvcached__Holding holding, int32_t pid)
{
    for (size_t i = 0; i < reply->n_parts; i++) {
        const Kvcached__WhyPart *part = reply->parts[i];

        if (part->holding == holding && (part->peer ? part->peer->pid : 0) == pid)
            return part;
    }
    return NULL;
}

static uint64_t charged(const Kvcached__WhyReply *reply)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < reply->n_parts; i++)
        if (reply->parts[i]->holding != KVCACHED__HOLDING__HOLDING_WANTED)
            bytes += reply->parts[i]->bytes;
    return bytes;
}

static Kvcached__WhyReply *explain(struct broker *broker, const struct broker_instance *instance,
                                   const struct explain_times *times, uint64_t now_ns)
{
    Kvcached__WhyReply *reply;

    check_eq(explain_instance(broker, instance, times, now_ns, &reply), 0);
    check_eq(charged(reply), reply->instance->used_bytes);
    return reply;
}

/* With whom it is reserved, and how much of that its engines have got. */
TEST(what_is_reserved_is_explained)
{
    struct snapshot_peer facts[2] = {{.pid = 7, .role = KVCACHED__ROLE__ROLE_CONTROLLER}, {.pid = 8}};
    struct broker *broker = make_broker();
    struct broker_peer *controller, *engine;
    struct broker_request *request;
    Kvcached__WhyReply *reply;
    const Kvcached__WhyPart *part;

    check_eq(broker_controller_new(broker, "d", "llama", no_limits, &controller), 0);
    controller->owner = &facts[0];
    check_eq(broker_peer_new(broker, "d", "llama", 1, no_limits, &engine), 0);
    engine->owner = &facts[1];
    check_eq(broker_reserve(broker, controller, 10 * MIB, 0, 2 * NSEC_PER_SEC, &request), 0);
    settle(broker, 2 * NSEC_PER_SEC);
    take(broker, engine, 2, 3 * NSEC_PER_SEC);
    reply = explain(broker, engine->instance, NULL, 5 * NSEC_PER_SEC);
    check_eq(reply->instance->used_bytes, 10 * MIB);
    check_eq(reply->instance->reserved_bytes, 6 * MIB);
    check_eq(reply->n_parts, 2);
    part = find(reply, KVCACHED__HOLDING__HOLDING_RESERVED, 7);
    check_eq(part->bytes, 6 * MIB);
    check_eq(part->for_ms, 3000);
    check_eq(part->peer->role, KVCACHED__ROLE__ROLE_CONTROLLER);
    check_eq(find(reply, KVCACHED__HOLDING__HOLDING_USED, 8)->bytes, 4 * MIB);
    reply = explain_free(reply);
    broker_request_free(broker, request);
    broker_peer_dead(broker, controller, 6 * NSEC_PER_SEC);
    broker_peer_dead(broker, engine, 6 * NSEC_PER_SEC);
    settle(broker, 6 * NSEC_PER_SEC);
    broker_drain(broker, 6 * NSEC_PER_SEC);
    settle(broker, 6 * NSEC_PER_SEC);
    broker = broker_free(broker);
}

/* One that works, one that has disconnected, one that is dead. */
TEST(each_byte_is_explained)
{
    struct snapshot_peer facts[3] = {{.pid = 7, .connected = true, .program = "p"}, {.pid = 8}, {.pid = 9}};
    struct explain_times times = {.destroying = {.holds = true, .ns = 5 * NSEC_PER_SEC},
                                  .over_limit = {.holds = true, .ns = 6 * NSEC_PER_SEC}};
    struct lease_line line = {0};
    struct broker *broker = make_broker();
    struct broker_instance *instance;
    struct broker_request *request;
    struct broker_peer *peers[3];
    struct broker_lease *lease;
    Kvcached__WhyReply *reply;
    const Kvcached__WhyPart *part;

    for (unsigned i = 0; i < 3; i++) {
        check_eq(broker_peer_new(broker, "d", "llama", 1, no_limits, &peers[i]), 0);
        peers[i]->owner = &facts[i];
    }
    instance = peers[0]->instance;
    check_eq(broker_lease_new(broker, peers[0], one_small, &line, &lease), 0);
    take(broker, peers[0], 5, 2 * NSEC_PER_SEC);
    take(broker, peers[1], 2, 2 * NSEC_PER_SEC);
    take(broker, peers[2], 1, 2 * NSEC_PER_SEC);
    check_eq(broker_lease_ask(broker, lease, 3, false, 3 * NSEC_PER_SEC, &request), 0);
    settle(broker, 3 * NSEC_PER_SEC);
    atomic_store(&line.cached_pages, 2);
    atomic_store(&line.pinned_pages, 1);
    broker_peer_lost(broker, peers[1], 4 * NSEC_PER_SEC);
    broker_peer_dead(broker, peers[2], 5 * NSEC_PER_SEC);
    settle(broker, 5 * NSEC_PER_SEC);
    check_eq(broker_set_limit(broker, "d", "llama", BROKER_LIMIT_CONFIG, 4 * MIB), 0);

    reply = explain(broker, instance, &times, 10 * NSEC_PER_SEC);
    part = find(reply, KVCACHED__HOLDING__HOLDING_USED, 7);
    check_eq(part->bytes, 2 * 2 * MIB);
    check_eq(part->for_ms, 8000);
    check_str(part->peer->program, "p");
    check_eq(find(reply, KVCACHED__HOLDING__HOLDING_CACHED, 7)->bytes, 2 * 2 * MIB);
    check_eq(find(reply, KVCACHED__HOLDING__HOLDING_PINNED, 7)->bytes, 2 * MIB);
    part = find(reply, KVCACHED__HOLDING__HOLDING_LIMBO, 8);
    check_eq(part->bytes, 2 * 2 * MIB);
    check_eq(part->for_ms, 6000);
    part = find(reply, KVCACHED__HOLDING__HOLDING_DESTROYING, 0);
    check_eq(part->bytes, 2 * MIB);
    check_eq(part->for_ms, 5000);
    check_eq(reply->n_limits, 2);
    check_eq(reply->limits[0]->source, KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_CONFIG);
    check_eq(reply->limits[0]->bytes, 4 * MIB);
    check_eq(reply->limits[1]->bytes, GIB);
    check(reply->over_limit->holds);
    check_eq(reply->over_limit->for_ms, 4000);
    check(!reply->frozen->holds);
    explain_free(reply);

    broker_lease_free(broker, lease);
    broker_peer_dead(broker, peers[0], 6 * NSEC_PER_SEC);
    broker_peer_dead(broker, peers[1], 6 * NSEC_PER_SEC);
    settle(broker, 6 * NSEC_PER_SEC);
    broker_look(broker, GIB, 7 * NSEC_PER_SEC);
    settle(broker, 7 * NSEC_PER_SEC);
    broker_drain(broker, 8 * NSEC_PER_SEC);
    settle(broker, 8 * NSEC_PER_SEC);
    broker_free(broker);
}

/* A process that claims to keep more than it has is believed as far as it has something. */
TEST(words_are_cut)
{
    struct snapshot_peer facts = {.pid = 7};
    struct lease_line line = {0};
    struct broker *broker = make_broker();
    struct broker_peer *peer;
    struct broker_lease *lease;
    Kvcached__WhyReply *reply;

    check_eq(broker_peer_new(broker, "d", "llama", 1, no_limits, &peer), 0);
    peer->owner = &facts;
    check_eq(broker_lease_new(broker, peer, one_small, &line, &lease), 0);
    take(broker, peer, 3, 2);
    atomic_store(&line.cached_pages, UINT64_MAX);
    atomic_store(&line.pinned_pages, UINT64_MAX);
    reply = explain(broker, peer->instance, NULL, 3);
    check_eq(find(reply, KVCACHED__HOLDING__HOLDING_PINNED, 7)->bytes, 6 * MIB);
    check(!find(reply, KVCACHED__HOLDING__HOLDING_USED, 7));
    check(!find(reply, KVCACHED__HOLDING__HOLDING_CACHED, 7));
    explain_free(reply);
    broker_lease_free(broker, lease);
    broker_peer_dead(broker, peer, 4);
    settle(broker, 4);
    broker_drain(broker, 5);
    settle(broker, 5);
    broker_free(broker);
}

/* However many processes there are, and whatever they are called, the answer fits a frame and is whole. */
TEST(a_crowd_fits_a_frame)
{
    enum { N = 300 };
    static struct broker_peer *peers[N];
    struct snapshot_peer facts = {.pid = INT32_MAX, .role = KVCACHED__ROLE__ROLE_WORKER, .connected = true};
    struct broker_config config = {
        .total_bytes = 4 * GIB,
        .n_classes = 1,
        .class_bytes = {2 * MIB},
        .budget_bytes = 4 * GIB,
        .warm_max = 1000,
        .creating_max = 4,
        .look_ns = NSEC_PER_SEC,
    };
    char domain[BROKER_DOMAIN_MAX + 1], name[BROKER_NAME_MAX + 1];
    struct broker *broker;
    Kvcached__WhyReply *reply;

    memset(facts.program, 'p', SNAPSHOT_PROGRAM_MAX);
    memset(domain, 'd', BROKER_DOMAIN_MAX);
    domain[BROKER_DOMAIN_MAX] = '\0';
    memset(name, 'n', BROKER_NAME_MAX);
    name[BROKER_NAME_MAX] = '\0';
    check_eq(broker_new(&config, 4 * GIB, 1, &broker), 0);
    for (unsigned i = 0; i < N; i++) {
        check_eq(broker_peer_new(broker, domain, name, 1, no_limits, &peers[i]), 0);
        peers[i]->owner = &facts;
        take(broker, peers[i], 1, 2);
    }
    reply = explain(broker, peers[0]->instance, NULL, 3);
    check(codec_size(&reply->base) <= FRAME_SIZE_MAX);
    check_eq(reply->instance->used_bytes, N * 2 * MIB);
    check(find(reply, KVCACHED__HOLDING__HOLDING_USED, 0)->bytes > 2 * MIB);
    explain_free(reply);
    for (unsigned i = 0; i < N; i++)
        broker_peer_dead(broker, peers[i], 4);
    settle(broker, 4);
    broker_drain(broker, 5);
    settle(broker, 5);
    broker_free(broker);
}
