/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Reservations: what is promised to an instance before its engines are there to ask for it.
 *
 * One has two parts. Bytes of the budget are charged to the instance like a request that waits, and are left
 * to its own requests as they come, the oldest reservation's first: so a reservation takes nothing from its
 * instance, and others find no room in it. A request that comes to nothing leaves them to the reservations
 * again; what is asked for out of courtesy gets none, for it gives way to others.
 *
 * Foreign bytes are what the engine will take from the driver by itself, weights above all. They are nobody's
 * charge: the budget falls by them at once, the pool is trimmed to it, and the reservation is answered when a
 * later look has shown that they are free. From then on foreign memory that comes is laid to those who
 * expect some, the longest held first, so that the budget stays where it is while an engine loads. Whose it
 * is nobody can tell. What came last for one that ends is not known before the next look, so it is expected
 * until then, or it would be laid to another.
 *
 * What is held is a promise, and ends with its holder alone. It is one about the daemon's own doing: a limit
 * that is lowered below it, or others who take more than anybody expected, leave less for those who come.
 */

#include <assert.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/arith.h"
#include "broker-internal.h"

_Static_assert(offsetof(struct reservation, request) == 0, "a reservation is freed as its request");

static struct reservation *of_request(struct broker_request *request)
{
    return container_of(request, struct reservation, request);
}

/* ---- Admission ---- */

int reservations_find_shortage(const struct broker *broker, const struct broker_request *request,
                               uint64_t *ret_bytes)
{
    const struct broker_instance *instance = request->peer->instance;
    uint64_t limit = policy_limit(instance->has_limit, instance->limit_of, NULL);
    bool draws = !request->reserves && !request->courtesy;
    uint64_t drawn = draws ? u64_min(instance->reserved_bytes, request->bytes) : 0;
    uint64_t over_limit = u64_sub_floor(u64_add_ceil(broker_used(instance) - drawn, request->bytes), limit);
    uint64_t over_budget = policy_reservation_lacks(
        broker->ledger.charged_bytes - drawn, broker->budget.bytes, broker_ceiling(broker),
        broker->expected_bytes, request->bytes, request->foreign_bytes);

    *ret_bytes = over_limit ? over_limit : over_budget;
    if (over_limit)
        return BROKER_E_LIMIT;
    return over_budget ? BROKER_E_BUDGET : 0;
}

static void change_charge(struct broker *broker, struct reservation *reservation, uint64_t bytes)
{
    struct broker_request *request = &reservation->request;
    struct broker_instance *instance = request->peer->instance;

    instance->reserved_bytes -= request->charge.bytes;
    ledger_charge_deinit(&broker->ledger, &request->charge);
    ledger_charge_init(&broker->ledger, &request->charge, &instance->account, LEDGER_RESERVED, bytes);
    instance->reserved_bytes += bytes;
}

void reservations_draw(struct broker *broker, struct broker_request *request)
{
    struct broker_instance *instance = request->peer->instance;

    if (request->courtesy)
        return;
    list_for_each (it, &instance->reservations) {
        struct reservation *reservation = container_of(it, struct reservation, link);
        uint64_t left = reservation->request.charge.bytes;
        uint64_t part = u64_min(left, request->bytes - request->drawn_bytes);

        if (part)
            change_charge(broker, reservation, left - part);
        request->drawn_bytes += part;
    }
}

void reservations_restore(struct broker *broker, struct broker_request *request)
{
    list_for_each (it, &request->peer->instance->reservations) {
        struct reservation *reservation = container_of(it, struct reservation, link);
        uint64_t left = reservation->request.charge.bytes;
        uint64_t part = u64_min(reservation->request.bytes - left, request->drawn_bytes);

        if (part)
            change_charge(broker, reservation, left + part);
        request->drawn_bytes -= part;
    }
    request->drawn_bytes = 0;
}

static void become_ready(struct broker *broker, struct broker_request *request)
{
    list_unlink(&request->link);
    list_unlink(&request->stall_link);
    request->state = BROKER_REQUEST_READY;
    list_append(&broker->answers, &request->link);
}

/* The budget falls before anybody else is judged by it. Only a look lets it rise. */
static void begin_to_expect(struct broker *broker, struct expectation *expectation)
{
    expectation->bytes = expectation->foreign_bytes;
    expectation->look = broker->n_looks + 1;
    broker->expected_bytes += expectation->bytes;
    list_append(&broker->expectations, &expectation->link);
    broker->look_wanted = true;
    if (broker_budget_now(broker) < broker->budget.bytes)
        broker_update_budget(broker);
}

void reservation_admit(struct broker *broker, struct broker_request *request)
{
    struct reservation *reservation = of_request(request);
    struct broker_instance *instance = request->peer->instance;

    ledger_charge_init(&broker->ledger, &request->charge, &instance->account, LEDGER_RESERVED,
                       request->bytes);
    instance->reserved_bytes += request->bytes;
    list_append(&instance->reservations, &reservation->link);
    instance_touch(broker, instance);
    if (!reservation->expectation) {
        become_ready(broker, request);
        return;
    }
    request->state = BROKER_REQUEST_PREPARING;
    list_append(&broker->preparing, &request->link);
    begin_to_expect(broker, reservation->expectation);
}

/* ---- What is expected ---- */

/* What has come since nobody's growth was waited for. Others may have given back more than that. */
static uint64_t growth(struct broker *broker)
{
    uint64_t foreign = broker_foreign(broker);

    broker->foreign_base_bytes = u64_min(broker->foreign_base_bytes, foreign);
    return foreign - broker->foreign_base_bytes;
}

/* Lays what has come to those who are held. Returns what is left of it. */
static uint64_t attribute(struct broker *broker)
{
    uint64_t come = growth(broker);

    broker->expected_bytes = 0;
    list_for_each (it, &broker->expectations) {
        struct expectation *expectation = container_of(it, struct expectation, link);

        if (expectation->held)
            expectation->bytes = policy_outstanding(expectation->foreign_bytes, &come);
        broker->expected_bytes += expectation->bytes;
    }
    return come;
}

static struct expectation *expectation_free(struct broker *broker, struct expectation *expectation)
{
    list_unlink(&expectation->link);
    broker->expected_bytes -= expectation->bytes;
    /* Somebody may have waited for that. */
    broker->n_touches++;
    free(expectation);
    return NULL;
}

/* What has come for it stays. It may have been laid to another, who is yet to get his: so it counts as having
 * got all that it said, as far as so much has come, and the others as having got no more than is left. */
static void forget(struct broker *broker, struct expectation *expectation)
{
    broker->foreign_base_bytes += u64_min(expectation->foreign_bytes, growth(broker));
    expectation_free(broker, expectation);
}

void reservations_looked(struct broker *broker)
{
    if (list_is_empty(&broker->expectations))
        return;
    broker->looked = broker->n_looks;
    attribute(broker);
    list_for_each_safe (it, &broker->expectations) {
        struct expectation *expectation = container_of(it, struct expectation, link);

        if (expectation->look > broker->looked)
            broker->look_wanted = true;
        else if (expectation->ended)
            forget(broker, expectation);
    }
    attribute(broker);
}

void reservations_deinit(struct broker *broker)
{
    list_for_each_safe (it, &broker->expectations)
        expectation_free(broker, container_of(it, struct expectation, link));
}

static struct broker_request *youngest(const struct broker *broker)
{
    return list_is_empty(&broker->preparing)
               ? NULL
               : container_of(broker->preparing.prev, struct broker_request, link);
}

static bool lacks(const struct broker *broker)
{
    return u64_add_ceil(broker->ledger.charged_bytes, broker->expected_bytes) > broker_ceiling(broker);
}

void reservations_check(struct broker *broker)
{
    struct broker_request *request;

    while ((request = youngest(broker)) && lacks(broker))
        queue_refuse(broker, request, BROKER_E_BUDGET);
}

/* ---- Held, until the end ---- */

/* Within the budget, what is held leaves room for all that is expected. */
void reservations_settle(struct broker *broker)
{
    bool fits = ledger_held(&broker->ledger) <= broker->budget.bytes;

    list_for_each_safe (it, &broker->preparing) {
        struct broker_request *request = container_of(it, struct broker_request, link);

        if (fits && of_request(request)->expectation->look <= broker->looked)
            become_ready(broker, request);
        else
            queue_stall(broker, request);
    }
}

void reservation_hold(struct broker *broker, struct broker_request *request)
{
    struct expectation *expectation = of_request(request)->expectation;

    request->granted = true;
    broker->counters.n_reservations++;
    instance_touch(broker, request->peer->instance);
    if (!expectation)
        return;
    broker->foreign_base_bytes += attribute(broker);
    expectation->held = true;
    list_unlink(&expectation->link);
    list_append(&broker->expectations, &expectation->link);
}

static void end_expectation(struct broker *broker, struct expectation *expectation)
{
    broker->look_wanted = true;
    if (!expectation->held) {
        expectation_free(broker, expectation);
        return;
    }
    expectation->ended = true;
    expectation->look = broker->n_looks + 1;
}

void reservation_end(struct broker *broker, struct broker_request *request)
{
    struct reservation *reservation = of_request(request);
    struct broker_instance *instance;

    if (list_is_empty(&reservation->link))
        return;
    instance = request->peer->instance;
    list_unlink(&reservation->link);
    instance->reserved_bytes -= request->charge.bytes;
    ledger_charge_deinit(&broker->ledger, &request->charge);
    if (reservation->expectation)
        end_expectation(broker, reservation->expectation);
    reservation->expectation = NULL;
    instance_touch(broker, instance);
}
