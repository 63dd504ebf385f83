/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The bench owns a broker and the memory of its device, which is a handful of numbers: what others hold, what
 * the driver gave us, what somebody keeps of what we destroyed. Actions are carried out in the order in which
 * they are taken, and succeed unless a test says otherwise. What the numbers should be is for the tests to
 * say.
 */

#include "broker-bench.h"

#include <string.h>

#include "test.h"

const uint64_t bench_no_limits[5] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};

uint64_t bench_free(const struct bench *b)
{
    return b->config.total_bytes - b->foreign_bytes - b->ours_bytes - b->kept_bytes;
}

void bench_init(struct bench *b, uint64_t budget_bytes)
{
    *b = (struct bench){
        .now_ns = NSEC_PER_SEC,
        .config =
            {
                .total_bytes = 1024 * MIB,
                .n_classes = 2,
                .class_bytes = {2 * MIB, 8 * MIB},
                .budget_bytes = budget_bytes,
                .utilization_ppm = 900000,
                .warm_max = 64,
                .lease_max = 128,
                .creating_max = 4,
                .idle_ns = 30 * NSEC_PER_SEC,
                .look_ns = 250 * NSEC_PER_MSEC,
                .budget_rise_ns = NSEC_PER_SEC,
                .patience_ns = 2 * NSEC_PER_SEC,
                .notice_ns = 2 * NSEC_PER_SEC,
                .courtesy_ns = 500 * NSEC_PER_MSEC,
            },
    };
}

void bench_start(struct bench *b)
{
    check_eq(broker_new(&b->config, bench_free(b), b->now_ns, &b->broker), 0);
}

void bench_begin(struct bench *b, uint64_t budget_bytes)
{
    bench_init(b, budget_bytes);
    bench_start(b);
}

static void create(struct bench *b, const struct broker_action *action)
{
    uint64_t size = b->config.class_bytes[action->class_index];
    bool ok = !b->fail_creates && size <= bench_free(b);

    b->n_creates++;
    if (b->hold_creates) {
        b->held_back[b->n_held_back++] = action->extent;
        b->sizes[(uint32_t)action->extent] = size;
        return;
    }
    b->sizes[(uint32_t)action->extent] = size;
    b->ours_bytes += ok ? size : 0;
    broker_created(b->broker, action->extent, ok, b->now_ns);
}

static void destroy(struct bench *b, const struct broker_action *action)
{
    uint64_t size = b->sizes[(uint32_t)action->extent];
    uint64_t freed_bytes = b->looks_around && !b->keep ? size : 0;

    b->n_destroys++;
    b->ours_bytes -= size;
    if (b->keep)
        b->kept_bytes += size;
    if (b->others_grow)
        b->foreign_bytes += size;
    broker_destroyed(b->broker, action->extent, freed_bytes, b->now_ns);
}

/* Where that reservation is noted; NULL: where one can be. */
static struct broker_request **held_slot(struct bench *b, const struct broker_request *request)
{
    for (unsigned i = 0; i < ARRAY_SIZE(b->held); i++)
        if (b->held[i] == request)
            return &b->held[i];
    test_fail(__FILE__, __LINE__, "the bench has no such reservation, or no room for it");
}

static void carry_out(struct bench *b, const struct broker_action *action)
{
    switch (action->type) {
    case BROKER_ACTION_CREATE:
        create(b, action);
        break;
    case BROKER_ACTION_EXPORT:
        b->n_exports++;
        broker_exported(b->broker, action->extent, !b->fail_exports, b->now_ns);
        break;
    case BROKER_ACTION_DESTROY:
        destroy(b, action);
        break;
    case BROKER_ACTION_LOOK:
        b->n_looks++;
        broker_look(b->broker, bench_free(b), b->now_ns);
        break;
    case BROKER_ACTION_GRANT:
        b->n_grants++;
        b->granted = action->request;
        break;
    case BROKER_ACTION_REFUSE:
        b->n_refusals++;
        b->error = action->error;
        broker_request_free(b->broker, action->request);
        break;
    case BROKER_ACTION_FORGET:
        b->n_forgets++;
        break;
    case BROKER_ACTION_LEASE:
        b->n_leases++;
        broker_request_free(b->broker, action->request);
        break;
    case BROKER_ACTION_RESERVED:
        b->n_reservations++;
        b->reserved = action->request;
        *held_slot(b, NULL) = action->request;
        break;
    case BROKER_ACTION_NOTICE:
        check(b->n_notices < ARRAY_SIZE(b->notices));
        /* Its status page shows the pressure already. */
        check(list_is_empty(&action->instance->dirty_link));
        b->notices[b->n_notices++] = *action;
        break;
    case BROKER_ACTION_SCRIBBLED:
        b->n_scribbles++;
        break;
    case BROKER_ACTION_STATUS:
        break;
    }
}

void bench_run(struct bench *b)
{
    struct broker_action action;

    while (broker_next_action(b->broker, &action)) {
        carry_out(b, &action);
        check_str(broker_check(b->broker) ? broker_check(b->broker) : "fine", "fine");
    }
}

void bench_pass(struct bench *b, uint64_t ns)
{
    uint64_t end_ns = b->now_ns + ns;

    bench_run(b);
    while (broker_deadline(b->broker) <= end_ns) {
        b->now_ns = u64_max(b->now_ns, broker_deadline(b->broker));
        broker_tick(b->broker, b->now_ns);
        bench_run(b);
    }
    b->now_ns = end_ns;
}

struct broker_peer *bench_join(struct bench *b, const char *domain, const char *name)
{
    struct broker_peer *peer = NULL;

    check_eq(broker_peer_new(b->broker, domain, name, 1, bench_no_limits, &peer), 0);
    bench_run(b);
    return peer;
}

int bench_ask(struct bench *b, struct broker_peer *peer, uint32_t small, uint32_t large)
{
    uint32_t counts[BROKER_CLASSES_MAX] = {small, large};
    struct broker_request *request;
    int r = broker_take(b->broker, peer, counts, b->now_ns, &request);

    b->granted = NULL;
    b->error = 0;
    bench_run(b);
    return r;
}

void bench_take(struct bench *b, struct broker_peer *peer, uint32_t small, uint32_t large, uint64_t *ids)
{
    check_eq(bench_ask(b, peer, small, large), 0);
    check(b->granted);
    check_eq(b->granted->n_extents, small + large);
    if (ids)
        memcpy(ids, b->granted->extents, (small + large) * sizeof(*ids));
    broker_request_free(b->broker, b->granted);
    bench_run(b);
}

/* Where that lease is noted; NULL: where one can be. */
static struct broker_lease **lease_slot(struct bench *b, const struct broker_lease *lease)
{
    for (unsigned i = 0; i < ARRAY_SIZE(b->leases); i++)
        if (b->leases[i] == lease)
            return &b->leases[i];
    test_fail(__FILE__, __LINE__, "the bench has no such lease, or no room for it");
}

struct broker_lease *bench_lease(struct bench *b, struct broker_peer *peer, uint32_t small, uint32_t large,
                                 struct lease_line *line)
{
    uint32_t counts[BROKER_CLASSES_MAX] = {small, large};
    struct broker_lease *lease = NULL;

    *line = (struct lease_line){};
    check_eq(broker_lease_new(b->broker, peer, counts, line, &lease), 0);
    *lease_slot(b, NULL) = lease;
    return lease;
}

int bench_lease_ask(struct bench *b, struct broker_lease *lease, uint32_t pages, bool courtesy)
{
    struct broker_request *request;
    int r = broker_lease_ask(b->broker, lease, pages, courtesy, b->now_ns, &request);

    b->error = 0;
    bench_run(b);
    return r;
}

void bench_lease_take(struct bench *b, struct broker_lease *lease, struct lease_line *line,
                      struct broker_peer *holder, uint32_t pages, uint64_t *ret_ids)
{
    struct broker_request *request;

    lease_claim(line, pages);
    check(lease_spend(line, pages));
    check_eq(broker_lease_take(b->broker, lease, holder, pages, b->now_ns, &request), 0);
    b->granted = NULL;
    bench_run(b);
    check(b->granted == request);
    if (ret_ids)
        memcpy(ret_ids, request->extents, request->n_extents * sizeof(*ret_ids));
    broker_request_free(b->broker, request);
    bench_run(b);
}

struct broker_peer *bench_control(struct bench *b, const char *domain, const char *name)
{
    struct broker_peer *peer = NULL;

    check_eq(broker_controller_new(b->broker, domain, name, bench_no_limits, &peer), 0);
    bench_run(b);
    return peer;
}

int bench_reserve(struct bench *b, struct broker_peer *peer, uint64_t bytes, uint64_t foreign_bytes)
{
    struct broker_request *request;
    int r = broker_reserve(b->broker, peer, bytes, foreign_bytes, b->now_ns, &request);

    b->reserved = NULL;
    b->error = 0;
    bench_run(b);
    return r;
}

void bench_free_reservation(struct bench *b, struct broker_request *request)
{
    *held_slot(b, request) = broker_request_free(b->broker, request);
}

void bench_release(struct bench *b, struct broker_request *request)
{
    bench_free_reservation(b, request);
    bench_run(b);
}

void bench_ack(struct bench *b, struct broker_peer *peer)
{
    broker_notice_acked(b->broker, peer, peer->notice_number, b->now_ns);
    bench_run(b);
}

void bench_end(struct bench *b, struct broker_peer *peer)
{
    broker_peer_dead(b->broker, peer, b->now_ns);
    bench_run(b);
}

void bench_lease_end(struct bench *b, struct broker_lease *lease)
{
    *lease_slot(b, lease) = broker_lease_free(b->broker, lease);
    bench_run(b);
}

static struct broker_peer *anybody(struct bench *b)
{
    struct broker_instance *instance = NULL;

    while ((instance = broker_instance_next(b->broker, instance)))
        if (!list_is_empty(&instance->peers))
            return list_first(&instance->peers, struct broker_peer, link);
    return NULL;
}

void bench_finish(struct bench *b)
{
    struct broker_peer *peer;

    while ((peer = anybody(b)))
        bench_end(b, peer);
    for (unsigned i = 0; i < ARRAY_SIZE(b->leases); i++)
        b->leases[i] = broker_lease_free(b->broker, b->leases[i]);
    for (unsigned i = 0; i < ARRAY_SIZE(b->held); i++)
        b->held[i] = broker_request_free(b->broker, b->held[i]);
    broker_drain(b->broker, b->now_ns);
    bench_pass(b, NSEC_PER_SEC);
    b->broker = broker_free(b->broker);
}

struct broker_totals bench_totals(const struct bench *b)
{
    struct broker_totals t;

    broker_totals(b->broker, &t);
    return t;
}

void bench_answer(struct bench *b, unsigned index)
{
    uint64_t id = b->held_back[index];

    b->ours_bytes += b->sizes[(uint32_t)id];
    broker_created(b->broker, id, true, b->now_ns);
}
