/* SPDX-License-Identifier: Apache-2.0 */

/* What a grant costs must not depend on how many others there are. */

#include <stdio.h>
#include <time.h>

#include "base/arith.h"
#include "broker.h"
#include "test.h"

static const uint64_t no_limits[5] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};

#define PEERS 1000
#define EXTENTS 100000

/* Of everybody: a page each, claimed by every other one. */
static struct lease_line lines[PEERS];
static struct broker_lease *leases[PEERS];

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

/* Answers every action with success, without looking at anything, so that only the broker's own work is
 * timed. Names the first extent that was granted. */
static uint64_t serve(struct broker *broker, uint64_t free_bytes)
{
    struct broker_action action;
    uint64_t first = 0;

    while (broker_next_action(broker, &action)) {
        switch (action.type) {
        case BROKER_ACTION_CREATE:
            broker_created(broker, action.extent, true, 0);
            break;
        case BROKER_ACTION_EXPORT:
            broker_exported(broker, action.extent, true, 0);
            break;
        case BROKER_ACTION_DESTROY:
            broker_destroyed(broker, action.extent, 0, 0);
            break;
        case BROKER_ACTION_LOOK:
            broker_look(broker, free_bytes, 0);
            break;
        case BROKER_ACTION_GRANT:
            first = action.request->extents[0];
            broker_request_free(broker, action.request);
            break;
        case BROKER_ACTION_LEASE:
            broker_request_free(broker, action.request);
            break;
        default:
            break;
        }
    }
    return first;
}

static void lease_page(struct broker *broker, struct broker_peer *peer, unsigned i)
{
    struct broker_request *request;

    broker_peer_listens(broker, peer, false, false);
    check_eq(broker_lease_new(broker, peer, (uint32_t[BROKER_CLASSES_MAX]){1}, &lines[i], &leases[i]), 0);
    check_eq(broker_lease_ask(broker, leases[i], 1, false, 0, &request), 0);
    serve(broker, 1024 * GIB);
    if (i % 2)
        check_eq(lease_claim(&lines[i], 1), 1);
    check_eq(broker_lease_pages(leases[i]), 1);
}

static struct broker *large_broker(unsigned n_peers, unsigned n_extents, struct broker_peer **ret_last)
{
    struct broker_config config = {
        .total_bytes = 1024 * GIB,
        .n_classes = 1,
        .class_bytes = {2 * MIB},
        .budget_bytes = 1024 * GIB,
        .warm_max = 1024,
        .lease_max = 1024,
        .creating_max = 64,
        .idle_ns = UINT64_MAX,
        .look_ns = UINT64_MAX,
    };
    struct broker *broker;
    char name[16];

    check_eq(broker_new(&config, 1024 * GIB, 0, &broker), 0);
    for (unsigned i = 0; i < n_peers; i++) {
        struct broker_request *request;

        snprintf(name, sizeof(name), "%u", i);
        check_eq(broker_peer_new(broker, i % 2 ? "d" : "e", name, 1, no_limits, ret_last), 0);
        check_eq(
            broker_take(broker, *ret_last, (uint32_t[BROKER_CLASSES_MAX]){n_extents / n_peers}, 0, &request),
            0);
        serve(broker, 1024 * GIB);
        if (n_peers > 1)
            lease_page(broker, *ret_last, i);
    }
    return broker;
}

/* Of one extent, asked for, granted, sent and given back. */
static uint64_t cycle_ns(struct broker *broker, struct broker_peer *peer)
{
    struct broker_request *request;
    struct broker_action action;
    uint64_t start_ns = clock_ns(), id;

    check_eq(broker_take(broker, peer, (uint32_t[BROKER_CLASSES_MAX]){1}, 0, &request), 0);
    check(broker_next_action(broker, &action));
    check_eq(action.type, BROKER_ACTION_GRANT);
    id = request->extents[0];
    broker_request_free(broker, request);
    check_eq(broker_return(broker, peer, &id, 1, 0), 0);
    start_ns = clock_ns() - start_ns;
    serve(broker, 0);
    return start_ns;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void warm_up(struct broker *broker, struct broker_peer *peer)
{
    struct broker_request *request;
    uint64_t id;

    check_eq(broker_take(broker, peer, (uint32_t[BROKER_CLASSES_MAX]){1}, 0, &request), 0);
    id = serve(broker, 0);
    check_eq(broker_return(broker, peer, &id, 1, 0), 0);
    serve(broker, 0);
}

TEST(a_grant_costs_the_same_among_many)
{
    static uint64_t few_ns[1001], many_ns[1001];
    struct broker_peer *few_peer, *many_peer;
    struct broker *few = large_broker(1, 100, &few_peer);
    struct broker *many = large_broker(PEERS, EXTENTS, &many_peer);

    warm_up(few, few_peer);
    warm_up(many, many_peer);
    for (unsigned i = 0; i < ARRAY_SIZE(few_ns); i++) {
        few_ns[i] = cycle_ns(few, few_peer);
        many_ns[i] = cycle_ns(many, many_peer);
    }
    qsort(few_ns, ARRAY_SIZE(few_ns), sizeof(*few_ns), compare_u64);
    qsort(many_ns, ARRAY_SIZE(many_ns), sizeof(*many_ns), compare_u64);
    printf("# median of one extent asked for, granted and returned: %" PRIu64 " ns, among many %" PRIu64
           " ns\n",
           few_ns[ARRAY_SIZE(few_ns) / 2], many_ns[ARRAY_SIZE(many_ns) / 2]);
    /* A walk over peers or extents would cost a hundred times as much; caches may cost some. */
    check(many_ns[ARRAY_SIZE(many_ns) / 2] <= 4 * few_ns[ARRAY_SIZE(few_ns) / 2] + 1000);
    check(!broker_check(many));
    for (struct broker_instance *i = NULL; (i = broker_instance_next(many, i));)
        broker_peer_dead(many, list_first(&i->peers, struct broker_peer, link), 0);
    broker_peer_dead(few, few_peer, 0);
    broker_drain(many, 0);
    serve(few, 1024 * GIB);
    serve(many, 1024 * GIB);
    for (unsigned i = 0; i < PEERS; i++)
        leases[i] = broker_lease_free(many, leases[i]);
    few = broker_free(few);
    many = broker_free(many);
}
