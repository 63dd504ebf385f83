/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Lending: what peers ask for and give back.
 *
 * A request is judged by limit and budget alone (admission.c), mostly at once, and then charged with all it
 * asks for. What lies in the pool counts as room for it, whatever its colour or class, so after that it is
 * only a matter of time. What comes out of a lease has been charged before, and is not judged again.
 *
 * What comes back is put away in the colour of its domain. A call that names anything which the peer doesn't
 * hold, names an extent twice, or one whose descriptor is not out yet, changes nothing.
 */

#include <assert.h>
#include <errno.h>

#include "base/arith.h"
#include "broker-internal.h"

static int weigh(const struct broker *broker, const uint32_t *counts, uint64_t *ret_bytes, uint32_t *ret_n)
{
    uint64_t bytes = 0, part, n = 0;

    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++) {
        if (counts[i] && i >= broker->config.n_classes)
            return BROKER_E_INVALID;
        n += counts[i];
        if (counts[i] &&
            (!u64_mul(counts[i], broker->config.class_bytes[i], &part) || !u64_add(bytes, part, &bytes)))
            return BROKER_E_INVALID;
    }
    if (n == 0 || n > BROKER_REQUEST_EXTENTS_MAX || n > broker->config.warm_max)
        return BROKER_E_INVALID;
    *ret_bytes = bytes;
    *ret_n = n;
    return 0;
}

static int may_ask(const struct broker *broker, const struct broker_peer *peer)
{
    if (peer->lost)
        return BROKER_E_INVALID;
    if (peer->instance->frozen)
        return BROKER_E_FROZEN;
    return broker->draining ? BROKER_E_DRIVER : 0;
}

static void request_init(struct broker *broker, struct broker_peer *peer, struct broker_request *request)
{
    request->peer = peer;
    request->since_ns = broker->now_ns;
    list_init(&request->link);
    list_init(&request->arrival_link);
    list_init(&request->stall_link);
    list_append(&peer->requests, &request->peer_link);
}

static int request_new(struct broker *broker, struct broker_peer *peer, const uint32_t *counts,
                       struct broker_request **ret)
{
    _cleanup_free_ struct broker_request *request = NULL;
    uint64_t bytes;
    uint32_t n;
    int r;

    r = weigh(broker, counts, &bytes, &n);
    if (r)
        return r;
    request = malloc(sizeof(*request));
    if (!request)
        return -ENOMEM;
    *request = (struct broker_request){
        .extents = malloc(n * sizeof(*request->extents)),
        .bytes = bytes,
        .n_extents = n,
    };
    if (!request->extents)
        return -ENOMEM;
    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++)
        request->counts[i] = counts[i];
    request_init(broker, peer, request);
    *ret = steal_pointer(request);
    return 0;
}

/* A budget that others move is looked after while it is used. */
static void refresh_budget(struct broker *broker)
{
    if (!broker->config.budget_bytes && broker->now_ns - broker->looked_ns >= broker->config.look_ns)
        broker->look_wanted = true;
}

static void request_drop(struct broker_request *request)
{
    list_unlink(&request->peer_link);
    if (request->reserves)
        free(container_of(request, struct reservation, request)->expectation);
    free(request->extents);
    free(request);
}

/* Who gets at once what it asks for doesn't wait for what others, or the pool, need next. */
static void settle_behind(struct broker *broker, const struct broker_request *request)
{
    if (request->state == BROKER_REQUEST_READY)
        broker->unsettled = true;
    else
        broker_settle(broker, broker->now_ns);
}

static int submit(struct broker *broker, struct broker_request *request, struct broker_request **ret)
{
    int r;

    refresh_budget(broker);
    r = may_ask(broker, request->peer);
    if (!r)
        r = admission_ask(broker, request);
    if (r) {
        broker_count_refusal(broker, request, r);
        request_drop(request);
        broker_settle(broker, broker->now_ns);
        return r;
    }
    *ret = request;
    settle_behind(broker, request);
    return 0;
}

int broker_take(struct broker *broker, struct broker_peer *peer,
                const uint32_t counts[static BROKER_CLASSES_MAX], uint64_t now_ns,
                struct broker_request **ret)
{
    struct broker_request *request;
    int r;

    broker->now_ns = u64_max(now_ns, broker->now_ns);
    r = request_new(broker, peer, counts, &request);
    return r ? r : submit(broker, request, ret);
}

/* ---- Reservations ---- */

static bool has_reservation(const struct broker_peer *peer)
{
    list_for_each (it, &peer->requests)
        if (container_of(it, struct broker_request, peer_link)->reserves)
            return true;
    return false;
}

static int reservation_new(struct broker *broker, struct broker_peer *peer, uint64_t bytes,
                           uint64_t foreign_bytes, struct broker_request **ret)
{
    _cleanup_free_ struct reservation *reservation = calloc(1, sizeof(*reservation));

    if (!reservation)
        return -ENOMEM;
    if (foreign_bytes) {
        reservation->expectation = calloc(1, sizeof(*reservation->expectation));
        if (!reservation->expectation)
            return -ENOMEM;
        list_init(&reservation->expectation->link);
        reservation->expectation->foreign_bytes = foreign_bytes;
    }
    list_init(&reservation->link);
    reservation->request.reserves = true;
    reservation->request.bytes = bytes;
    reservation->request.foreign_bytes = foreign_bytes;
    request_init(broker, peer, &reservation->request);
    *ret = &steal_pointer(reservation)->request;
    return 0;
}

int broker_reserve(struct broker *broker, struct broker_peer *peer, uint64_t bytes, uint64_t foreign_bytes,
                   uint64_t now_ns, struct broker_request **ret)
{
    struct broker_request *request;
    int r;

    broker->now_ns = u64_max(now_ns, broker->now_ns);
    if ((bytes == 0 && foreign_bytes == 0) || has_reservation(peer))
        return BROKER_E_INVALID;
    r = reservation_new(broker, peer, bytes, foreign_bytes, &request);
    return r ? r : submit(broker, request, ret);
}

/* ---- Leases ---- */

static int count_pages(const struct broker_lease *lease, uint32_t pages, uint32_t *counts)
{
    for (unsigned i = 0; i < BROKER_CLASSES_MAX; i++) {
        uint64_t n = (uint64_t)pages * lease->page_counts[i];

        if (n > BROKER_REQUEST_EXTENTS_MAX)
            return BROKER_E_INVALID;
        counts[i] = (uint32_t)n;
    }
    return 0;
}

int broker_lease_ask(struct broker *broker, struct broker_lease *lease, uint32_t pages, bool courtesy,
                     uint64_t now_ns, struct broker_request **ret)
{
    uint32_t counts[BROKER_CLASSES_MAX];
    struct broker_request *request;
    int r;

    broker->now_ns = u64_max(now_ns, broker->now_ns);
    if (!lease->peer)
        return BROKER_E_NOT_LEASED;
    r = count_pages(lease, pages, counts);
    if (r)
        return r;
    r = request_new(broker, lease->peer, counts, &request);
    if (r)
        return r;
    request->lease = lease;
    request->pages = pages;
    request->courtesy = courtesy;
    return submit(broker, request, ret);
}

static int take_out(struct broker *broker, struct broker_lease *lease, struct broker_peer *holder,
                    uint32_t pages, struct broker_request **ret)
{
    uint32_t counts[BROKER_CLASSES_MAX];
    struct broker_request *request;
    int r;

    r = count_pages(lease, pages, counts);
    if (r)
        return r;
    r = request_new(broker, holder, counts, &request);
    if (r)
        return r;
    request->pages = pages;
    request->promised = true;
    lease_fill_request(broker, lease, request);
    ledger_charge_init(&broker->ledger, &request->charge, &holder->instance->account, LEDGER_PENDING,
                       request->bytes);
    queue_promise(broker, request);
    *ret = request;
    return 0;
}

int broker_lease_take(struct broker *broker, struct broker_lease *lease, struct broker_peer *holder,
                      uint32_t pages, uint64_t now_ns, struct broker_request **ret)
{
    int r;

    broker->now_ns = u64_max(now_ns, broker->now_ns);
    r = lease_may_take(broker, lease, holder, pages);
    if (!r)
        r = take_out(broker, lease, holder, pages, ret);
    broker_settle(broker, broker->now_ns);
    return r;
}

void broker_lease_forgo(struct broker *broker, struct broker_lease *lease, uint32_t pages, uint64_t now_ns)
{
    broker->now_ns = u64_max(now_ns, broker->now_ns);
    lease_forgo(broker, lease, pages);
    broker_settle(broker, broker->now_ns);
}

/* ---- Ends and returns ---- */

static void close_descriptors(struct broker *broker, struct broker_request *request)
{
    broker->n_sending -= request->n_extents;
    for (uint32_t i = 0; i < request->n_extents; i++) {
        struct extent *extent = pool_extent_find(&broker->pool, request->extents[i]);

        if (!extent || (extent->state != EXTENT_GRANTED && extent->state != EXTENT_LIMBO))
            continue;
        extent->sending = false;
        pool_set_descriptor(&broker->pool, extent, false);
    }
}

void request_end(struct broker *broker, struct broker_request *request)
{
    if (request->state != BROKER_REQUEST_ANSWERED)
        queue_withdraw(broker, request);
    else if (request->reserves)
        reservation_end(broker, request);
    else if (request->granted)
        close_descriptors(broker, request);
    request_drop(request);
}

struct broker_request *broker_request_free(struct broker *broker, struct broker_request *request)
{
    if (!request)
        return NULL;
    request_end(broker, request);
    broker_settle(broker, broker->now_ns);
    return NULL;
}

uint64_t *broker_request_keep_extents(struct broker *broker, struct broker_request *request)
{
    uint64_t *extents = request->extents;

    assert(request->state == BROKER_REQUEST_ANSWERED && request->granted);
    close_descriptors(broker, request);
    request->extents = NULL;
    request_drop(request);
    broker_settle(broker, broker->now_ns);
    return extents;
}

static bool is_returnable(const struct extent *extent, const struct broker_peer *peer)
{
    return extent && extent->state == EXTENT_GRANTED && extent->holder == peer && !extent->sending &&
           !extent->marked;
}

static void take_back(struct broker *broker, struct broker_peer *peer, struct extent *extent)
{
    extent->marked = false;
    list_unlink(&extent->link);
    extent->state = EXTENT_LOOSE;
    peer->held_bytes -= extent_bytes(&broker->pool, extent);
    peer->instance->total_returned_bytes += extent_bytes(&broker->pool, extent);
    broker->counters.returned_bytes += extent_bytes(&broker->pool, extent);
    broker->counters.n_returned_extents++;
    notices_returned(peer, extent_bytes(&broker->pool, extent));
    peer->n_extents--;
    ledger_charge_move(&broker->ledger, &extent->charge, NULL, LEDGER_POOL);
    queue_offer(broker, NULL, extent);
}

int broker_return(struct broker *broker, struct broker_peer *peer, const uint64_t *extents, size_t n,
                  uint64_t now_ns)
{
    size_t n_marked = 0;
    int r = 0;

    for (; n_marked < n; n_marked++) {
        struct extent *extent = pool_extent_find(&broker->pool, extents[n_marked]);

        if (!is_returnable(extent, peer))
            break;
        extent->marked = true;
    }
    if (n_marked < n)
        r = BROKER_E_NOT_HELD;
    for (size_t i = 0; i < n_marked; i++) {
        struct extent *extent = pool_extent_find(&broker->pool, extents[i]);

        if (r)
            extent->marked = false;
        else
            take_back(broker, peer, extent);
    }
    if (r)
        return r;
    broker->now_ns = u64_max(now_ns, broker->now_ns);
    broker_note_activity(broker);
    instance_touch(broker, peer->instance);
    broker_settle(broker, now_ns);
    return 0;
}
