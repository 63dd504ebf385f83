/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Each byte of an instance stands in one part of the answer: with the process that holds it, or for which it
 * is set aside, or with nobody, where the process has ended. The parts that are charged add up to what the
 * ledger says. Of an instance with very many processes the first ones are named, and what the others have is
 * put together, so that the answer fits a frame.
 */

#include "explain.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"

#define NAMED_MAX 48
#define KINDS 9 /* of holdings */
#define PARTS_MAX ((NAMED_MAX + 1) * KINDS)

struct answer {
    Kvcached__WhyReply reply;
    Kvcached__WhyPart parts[PARTS_MAX];
    Kvcached__WhyPart *part_pointers[PARTS_MAX];
    Kvcached__PeerInfo peers[NAMED_MAX];
    unsigned n_peers;
    Kvcached__WhyLimit limits[BROKER_LIMIT_BUDGET];
    Kvcached__WhyLimit *limit_pointers[BROKER_LIMIT_BUDGET];
    Kvcached__WhyState over_limit, missed, frozen;
    uint64_t now_ns;
};

static uint64_t ms_since(const struct answer *answer, uint64_t ns)
{
    return u64_sub_floor(answer->now_ns, ns) / NSEC_PER_MSEC;
}

/* ---- Parts ---- */

static Kvcached__WhyPart *find_part(struct answer *answer, Kvcached__Holding holding,
                                    const Kvcached__PeerInfo *peer)
{
    for (size_t i = 0; i < answer->reply.n_parts; i++) {
        if (answer->parts[i].holding == holding && answer->parts[i].peer == peer)
            return &answer->parts[i];
    }
    return NULL;
}

static void add(struct answer *answer, Kvcached__PeerInfo *peer, Kvcached__Holding holding, uint64_t bytes,
                uint64_t for_ms)
{
    Kvcached__WhyPart *part = find_part(answer, holding, peer);
    size_t n = answer->reply.n_parts;

    if (bytes == 0)
        return;
    if (!part) {
        part = answer->part_pointers[n] = &answer->parts[n];
        answer->reply.n_parts++;
        kvcached__why_part__init(part);
        part->holding = holding;
        part->peer = peer;
    }
    part->bytes += bytes;
    part->for_ms = u64_max(part->for_ms, for_ms);
}

/* NULL: the answer has as many as it may. */
static Kvcached__PeerInfo *name_peer(struct answer *answer, const struct snapshot_peer *facts)
{
    Kvcached__PeerInfo *peer = &answer->peers[answer->n_peers];

    if (answer->n_peers == NAMED_MAX)
        return NULL;
    answer->n_peers++;
    kvcached__peer_info__init(peer);
    peer->pid = facts->pid;
    peer->role = facts->role;
    peer->program = (char *)facts->program;
    peer->connected = facts->connected;
    return peer;
}

static void add_held(struct answer *answer, Kvcached__PeerInfo *peer, const struct broker_peer *holder,
                     struct broker_words words)
{
    uint64_t for_ms = ms_since(answer, holder->held_ns);

    if (holder->lost) {
        add(answer, peer, KVCACHED__HOLDING__HOLDING_LIMBO, holder->held_bytes,
            ms_since(answer, holder->lost_ns));
        return;
    }
    add(answer, peer, KVCACHED__HOLDING__HOLDING_USED,
        holder->held_bytes - words.cached_bytes - words.pinned_bytes, for_ms);
    add(answer, peer, KVCACHED__HOLDING__HOLDING_CACHED, words.cached_bytes, for_ms);
    add(answer, peer, KVCACHED__HOLDING__HOLDING_PINNED, words.pinned_bytes, for_ms);
    add(answer, peer, KVCACHED__HOLDING__HOLDING_LEASED, broker_peer_leased(holder),
        ms_since(answer, holder->issued_ns));
}

static void add_requests(struct answer *answer, Kvcached__PeerInfo *peer, const struct broker_peer *asker)
{
    list_for_each (it, &asker->requests) {
        const struct broker_request *request = container_of(it, struct broker_request, peer_link);
        uint64_t for_ms = ms_since(answer, request->since_ns);

        add(answer, peer,
            request->reserves ? KVCACHED__HOLDING__HOLDING_RESERVED : KVCACHED__HOLDING__HOLDING_PENDING,
            request->charge.bytes, for_ms);
        if (request->state == BROKER_REQUEST_UNDECIDED)
            add(answer, peer, KVCACHED__HOLDING__HOLDING_WANTED, request->bytes, for_ms);
    }
}

static void add_parts(struct answer *answer, struct broker *broker, const struct broker_instance *instance,
                      const struct explain_times *times)
{
    uint64_t spoken_bytes = broker_words_begin(broker, instance);

    list_for_each (it, &instance->peers) {
        const struct broker_peer *peer = container_of(it, struct broker_peer, link);
        Kvcached__PeerInfo *info = name_peer(answer, peer->owner);

        add_held(answer, info, peer, broker_words_next(broker, peer, &spoken_bytes));
        add_requests(answer, info, peer);
    }
    add(answer, NULL, KVCACHED__HOLDING__HOLDING_DESTROYING, instance->account.bytes[LEDGER_DESTROYING],
        since_ms(&times->destroying, answer->now_ns));
    answer->reply.parts = answer->part_pointers;
}

/* ---- Limits and states ---- */

static void add_limit(struct answer *answer, enum broker_limit_source source, uint64_t bytes)
{
    Kvcached__WhyLimit *limit = &answer->limits[answer->reply.n_limits];

    kvcached__why_limit__init(limit);
    limit->source = (Kvcached__LimitSource)source;
    limit->bytes = bytes;
    answer->limit_pointers[answer->reply.n_limits++] = limit;
}

static void add_limits(struct answer *answer, const struct broker *broker,
                       const struct broker_instance *instance)
{
    for (unsigned source = BROKER_LIMIT_ADMIN; source < BROKER_LIMIT_BUDGET; source++)
        if (instance->has_limit[source])
            add_limit(answer, (enum broker_limit_source)source, instance->limit_of[source]);
    add_limit(answer, BROKER_LIMIT_BUDGET, broker_budget(broker));
    answer->reply.limits = answer->limit_pointers;
}

static Kvcached__WhyState *fill_state(Kvcached__WhyState *state, const struct since *since, uint64_t now_ns)
{
    kvcached__why_state__init(state);
    state->holds = since->holds;
    state->for_ms = since_ms(since, now_ns);
    return state;
}

/* ---- The answer ---- */

int explain_instance(struct broker *broker, const struct broker_instance *instance,
                     const struct explain_times *times, uint64_t now_ns, Kvcached__WhyReply **ret)
{
    static const struct explain_times nothing_seen;
    struct answer *answer = malloc(sizeof(*answer));

    if (!answer)
        return -ENOMEM;
    kvcached__why_reply__init(&answer->reply);
    answer->now_ns = now_ns;
    answer->n_peers = 0;
    if (snapshot_instance(broker, instance, &answer->reply.instance) < 0) {
        free(answer);
        return -ENOMEM;
    }
    times = times ?: &nothing_seen;
    add_parts(answer, broker, instance, times);
    add_limits(answer, broker, instance);
    answer->reply.over_limit = fill_state(&answer->over_limit, &times->over_limit, now_ns);
    answer->reply.missed_notice = fill_state(&answer->missed, &times->missed, now_ns);
    answer->reply.frozen = fill_state(&answer->frozen, &times->frozen, now_ns);
    answer->reply.pressure_bytes = broker_pressure(instance);
    *ret = &answer->reply;
    return 0;
}

Kvcached__WhyReply *explain_free(Kvcached__WhyReply *reply)
{
    if (!reply)
        return NULL;
    snapshot_instance_free(reply->instance);
    free(container_of(reply, struct answer, reply));
    return NULL;
}
