/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The broker's outside: what the server may ask and must report, and the queue of what is to be done.
 *
 * Every event changes the state and then settles it: the pool is trimmed where it stands in the way, and what
 * can be started is started (supply.c). Nothing is done here; the server takes actions from the queues, the
 * urgent ones first, and reports. An extent whose action is out is in no list until the report.
 *
 * Bytes change hands where the action is taken, not where it is queued: a request becomes a grant in the
 * moment in which the server gets it, so that until then a lost peer's extents are as untouched as they were
 * in the pool. From then on somebody else may refer to them, and they are gone only when free memory says so.
 */

#include "broker.h"

#include <assert.h>
#include <errno.h>

#include "base/arith.h"
#include "broker-internal.h"
#include "reclaim.h"

/* ---- Construction ---- */

static bool config_makes_sense(const struct broker_config *config)
{
    if (config->n_classes == 0 || config->n_classes > BROKER_CLASSES_MAX || config->warm_max == 0 ||
        config->creating_max == 0 || config->look_ns == 0)
        return false;
    for (unsigned i = 0; i < config->n_classes; i++) {
        uint64_t size = config->class_bytes[i], smaller = i ? config->class_bytes[i - 1] : 1;

        if (size == 0 || size > config->total_bytes || size % smaller || (i && size == smaller))
            return false;
    }
    return true;
}

uint64_t broker_foreign(const struct broker *broker)
{
    const struct ledger *ledger = &broker->ledger;
    uint64_t held = ledger_held(ledger) - ledger->bytes[LEDGER_CREATING];

    return policy_foreign(ledger->total_bytes, ledger->free_bytes, held);
}

uint64_t broker_ceiling(const struct broker *broker)
{
    return policy_ceiling(broker->config.total_bytes, broker_foreign(broker), broker->config.utilization_ppm,
                          broker->config.budget_bytes, broker->config.headroom_bytes);
}

uint64_t broker_budget_now(const struct broker *broker)
{
    uint64_t budget =
        policy_budget_now(broker->config.total_bytes, broker_foreign(broker), broker->config.utilization_ppm,
                          broker->config.budget_bytes, broker->config.headroom_bytes);

    return policy_budget_beside(budget, broker_ceiling(broker), broker->expected_bytes);
}

int broker_new(const struct broker_config *config, uint64_t free_bytes, uint64_t now_ns, struct broker **ret)
{
    struct broker *broker;

    if (!config_makes_sense(config))
        return -EINVAL;
    broker = calloc(1, sizeof(*broker));
    if (!broker)
        return -ENOMEM;
    broker->config = *config;
    broker->now_ns = broker->looked_ns = broker->active_ns = now_ns;
    pool_init(&broker->pool, config->n_classes, config->class_bytes);
    ledger_init(&broker->ledger, config->total_bytes, free_bytes);
    broker->budget.bytes = broker_budget_now(broker);
    list_init(&broker->domains);
    list_init(&broker->instances);
    list_init(&broker->arrivals);
    list_init(&broker->stalled);
    list_init(&broker->hungry);
    list_init(&broker->parked);
    list_init(&broker->undecided);
    list_init(&broker->hopeful);
    list_init(&broker->leases);
    list_init(&broker->scribbled);
    list_init(&broker->listeners);
    list_init(&broker->due);
    list_init(&broker->awaited[false]);
    list_init(&broker->awaited[true]);
    list_init(&broker->pressed);
    list_init(&broker->preparing);
    list_init(&broker->expectations);
    list_init(&broker->unconfirmed);
    list_init(&broker->answers);
    list_init(&broker->dirty);
    list_init(&broker->exports);
    list_init(&broker->exports_ahead);
    list_init(&broker->creates);
    list_init(&broker->destroys);
    list_init(&broker->ahead);
    *ret = broker;
    return 0;
}

/* So many bytes of a destroyed extent are gone; with the last it is. */
static void confirm(struct broker *broker, struct extent *extent, uint64_t bytes)
{
    struct ledger_account *account = extent->charge.account;

    broker->unconfirmed_bytes -= bytes;
    ledger_charge_reduce(&broker->ledger, &extent->charge, bytes);
    if (account)
        instance_touch(broker, container_of(account, struct broker_instance, account));
    if (extent->charge.bytes)
        return;
    ledger_charge_deinit(&broker->ledger, &extent->charge);
    pool_extent_free(&broker->pool, extent);
}

static void confirm_oldest(struct broker *broker, uint64_t bytes)
{
    while (bytes) {
        struct extent *extent = list_first(&broker->unconfirmed, struct extent, link);
        uint64_t part = u64_min(bytes, extent->charge.bytes);

        confirm(broker, extent, part);
        bytes -= part;
    }
}

struct broker *broker_free(struct broker *broker)
{
    if (!broker)
        return NULL;
    assert(broker->n_peers == 0);
    broker->forgotten = instance_free(broker, broker->forgotten);
    confirm_oldest(broker, broker->unconfirmed_bytes);
    list_for_each_safe (it, &broker->instances)
        instance_free(broker, container_of(it, struct broker_instance, link));
    reservations_deinit(broker);
    ledger_deinit(&broker->ledger);
    pool_deinit(&broker->pool);
    free(broker);
    return NULL;
}

/* ---- Letting go ---- */

void extent_doom(struct broker *broker, struct extent *extent, struct ledger_account *account)
{
    assert(extent->state == EXTENT_LOOSE);
    ledger_charge_move(&broker->ledger, &extent->charge, account, LEDGER_DESTROYING);
    pool_colour(extent, &broker->pool.clean);
    extent->state = EXTENT_DOOMED;
    extent->holder = NULL;
    broker->n_doomed++;
    broker->n_doomed_descriptors += extent->descriptor;
    list_append(&broker->destroys, &extent->link);
}

uint64_t broker_coming(const struct broker *broker)
{
    return broker->ledger.bytes[LEDGER_DESTROYING] - broker->stuck_bytes;
}

unsigned broker_descriptors_max(const struct broker *broker)
{
    return broker->config.warm_max + broker->config.lease_max;
}

/* Returns what is still lacking when the shelves are empty. */
static uint64_t trim_shelves(struct broker *broker, const struct pool_shelf *own, uint64_t wanted_bytes)
{
    const struct ledger *ledger = &broker->ledger;
    uint64_t shortage = policy_shortage(broker->budget.bytes, ledger_held(ledger), ledger->free_bytes,
                                        ledger->bytes[LEDGER_CREATING], broker->config.headroom_bytes,
                                        broker_coming(broker), wanted_bytes);
    struct extent *extent;

    while (shortage && (extent = reclaim_pick(&broker->pool, own, false))) {
        shortage = u64_sub_floor(shortage, extent_bytes(&broker->pool, extent));
        pool_remove(&broker->pool, extent);
        extent_doom(broker, extent, NULL);
    }
    return shortage;
}

/* The pool first, then what is offered. Those who wait can use some of that as it is, and want less then. */
void broker_trim(struct broker *broker, const struct pool_shelf *own, uint64_t wanted_bytes)
{
    uint64_t shortage = trim_shelves(broker, own, wanted_bytes);
    uint64_t earmarked_bytes = broker->earmarked_bytes;

    if (shortage == 0 || !broker->may_offer)
        return;
    broker->may_offer = leases_withdraw(broker, NULL, NULL, shortage) >= shortage;
    trim_shelves(broker, own, u64_sub_floor(wanted_bytes, broker->earmarked_bytes - earmarked_bytes));
}

static bool pool_is_idle(const struct broker *broker)
{
    return list_is_empty(&broker->arrivals) && broker->now_ns - broker->active_ns >= broker->config.idle_ns;
}

void shelf_empty(struct broker *broker, struct pool_shelf *shelf)
{
    struct extent *extent;

    for (unsigned i = 0; i < broker->config.n_classes; i++)
        while ((extent = pool_take(&broker->pool, shelf, true, i)) ||
               (extent = pool_take(&broker->pool, shelf, false, i)))
            extent_doom(broker, extent, NULL);
}

static void empty_pool(struct broker *broker)
{
    struct pool_shelf *shelf;

    if (broker->may_offer) {
        leases_withdraw(broker, NULL, NULL, UINT64_MAX);
        broker->may_offer = false;
    }
    while ((shelf = list_first(&broker->pool.shelves, struct pool_shelf, link)))
        shelf_empty(broker, shelf);
}

/* ---- Time ---- */

void broker_note_activity(struct broker *broker)
{
    broker->active_ns = broker->now_ns;
    broker->idle_told = false;
}

/* Nobody uses the pool. Who has claims is asked once whether they are needed; others' are left alone. */
static void go_idle(struct broker *broker)
{
    broker->may_offer |= !broker->idle_told;
    empty_pool(broker);
    if (!broker->idle_told)
        notices_ask_claims(broker, NULL);
    broker->idle_told = true;
}

static bool has_idle_leases(const struct broker *broker)
{
    return broker->n_leased && !broker->idle_told;
}

/* While something depends on free memory that others move too. */
static bool needs_looks(const struct broker *broker)
{
    const uint64_t *bytes = broker->ledger.bytes;

    return has_idle_leases(broker) || bytes[LEDGER_LIMBO] || bytes[LEDGER_DESTROYING] || bytes[LEDGER_POOL] ||
           !list_is_empty(&broker->arrivals) || broker->budget.rising || broker->expected_bytes ||
           supply_expects(broker);
}

void broker_settle(struct broker *broker, uint64_t now_ns)
{
    broker->now_ns = u64_max(now_ns, broker->now_ns);
    broker->unsettled = false;
    notices_expire(broker);
    admission_settle(broker);
    if (broker->draining)
        empty_pool(broker);
    else if (pool_is_idle(broker))
        go_idle(broker);
    else
        broker_trim(broker, NULL, 0);
    if (!list_is_empty(&broker->preparing))
        reservations_settle(broker);
    supply_settle(broker);
    if (needs_looks(broker) && broker->now_ns - broker->looked_ns >= broker->config.look_ns)
        broker->look_wanted = true;
}

static uint64_t hopeful_end_ns(const struct broker *broker)
{
    const struct broker_request *request = list_first(&broker->hopeful, struct broker_request, stall_link);

    return u64_add_ceil(request->stalled_ns, broker->config.courtesy_ns);
}

uint64_t broker_deadline(const struct broker *broker)
{
    uint64_t deadline = UINT64_MAX;

    if (!list_is_empty(&broker->stalled)) {
        const struct broker_request *request =
            list_first(&broker->stalled, struct broker_request, stall_link);
        uint64_t end_ns = u64_add_ceil(request->stalled_ns, broker->config.patience_ns);

        /* Past it, something is under way, and its answer will be the next event. */
        if (end_ns > broker->now_ns)
            deadline = end_ns;
    }
    if (!list_is_empty(&broker->hopeful))
        deadline = u64_min(deadline, hopeful_end_ns(broker));
    deadline = u64_min(deadline, notices_deadline(broker));
    if ((broker->pool.shelved_bytes || has_idle_leases(broker)) && list_is_empty(&broker->arrivals))
        deadline = u64_min(deadline, u64_add_ceil(broker->active_ns, broker->config.idle_ns));
    if (!broker->looking && needs_looks(broker))
        deadline = u64_min(deadline, u64_add_ceil(broker->looked_ns, broker->config.look_ns));
    return deadline;
}

void broker_tick(struct broker *broker, uint64_t now_ns)
{
    broker_settle(broker, now_ns);
}

/* ---- Actions ---- */

/* What was asked for out of courtesy is refused as a matter of course. */
void broker_count_refusal(struct broker *broker, const struct broker_request *request, int error)
{
    if (request->courtesy || error <= 0)
        return;
    broker->counters.n_refused[error]++;
    request->peer->instance->n_refused++;
}

static void count_grant(struct broker *broker, const struct broker_request *request)
{
    struct broker_counters *counters = &broker->counters;

    counters->n_grants++;
    counters->n_granted_extents += request->n_extents;
    counters->granted_bytes += request->bytes;
    histogram_add(&counters->waits, u64_sub_floor(broker->now_ns, request->since_ns));
}

static void hand_over(struct broker *broker, struct broker_request *request)
{
    struct broker_peer *peer = request->peer;
    struct broker_instance *instance = peer->instance;

    queue_complete(broker, request);
    broker->n_sending += request->n_extents;
    if (peer->held_bytes == 0)
        peer->held_ns = broker->now_ns;
    for (uint32_t i = 0; i < request->n_extents; i++) {
        struct extent *extent = pool_extent_find(&broker->pool, request->extents[i]);
        uint64_t bytes = extent_bytes(&broker->pool, extent);

        ledger_charge_move(&broker->ledger, &extent->charge, &instance->account, LEDGER_GRANTED);
        broker->earmarked_bytes -= bytes;
        extent->state = EXTENT_GRANTED;
        extent->holder = peer;
        extent->handed = extent->sending = true;
        pool_colour(extent, &instance->domain->shelf);
        list_append(&peer->extents, &extent->link);
        peer->held_bytes += bytes;
        policy_demand_add(&broker->demand[extent->class_index], bytes, broker->now_ns);
    }
    peer->n_extents += request->n_extents;
    instance->total_granted_bytes += request->bytes;
    count_grant(broker, request);
    request->granted = true;
    broker_note_activity(broker);
    instance_touch(broker, instance);
}

/* Its lease has been scribbled over meanwhile. */
static bool is_in_vain(struct broker *broker, const struct broker_request *request)
{
    return request->state == BROKER_REQUEST_READY && request->lease && !lease_is_open(broker, request->lease);
}

static enum broker_action_type deliver(struct broker *broker, struct broker_request *request)
{
    if (request->state != BROKER_REQUEST_READY)
        return BROKER_ACTION_REFUSE;
    if (request->lease) {
        lease_receive(broker, request);
        return BROKER_ACTION_LEASE;
    }
    if (request->reserves) {
        reservation_hold(broker, request);
        return BROKER_ACTION_RESERVED;
    }
    hand_over(broker, request);
    return BROKER_ACTION_GRANT;
}

static bool next_answer(struct broker *broker, struct broker_action *ret)
{
    struct broker_request *request = list_first(&broker->answers, struct broker_request, link);

    if (!request)
        return false;
    if (is_in_vain(broker, request))
        queue_refuse(broker, request, BROKER_E_NOT_LEASED);
    list_unlink(&request->link);
    list_unlink(&request->arrival_link);
    *ret = (struct broker_action){
        .type = deliver(broker, request),
        .request = request,
        .error = request->error,
    };
    request->state = BROKER_REQUEST_ANSWERED;
    if (ret->type == BROKER_ACTION_REFUSE)
        broker_count_refusal(broker, request, request->error);
    return true;
}

static bool next_status(struct broker *broker, struct broker_action *ret)
{
    struct broker_instance *instance = list_first(&broker->dirty, struct broker_instance, dirty_link);

    if (!instance)
        return false;
    list_unlink(&instance->dirty_link);
    *ret = (struct broker_action){.type = BROKER_ACTION_STATUS, .instance = instance};
    if (instance_is_vain(instance)) {
        ret->type = BROKER_ACTION_FORGET;
        broker->forgotten = instance;
        list_unlink(&instance->link);
    }
    return true;
}

static bool next_of(struct broker *broker, struct list *queue, enum broker_action_type type,
                    struct broker_action *ret)
{
    struct extent *extent = list_first(queue, struct extent, link);

    if (!extent)
        return false;
    list_unlink(&extent->link);
    if (extent->state != EXTENT_DOOMED && !extent->holder)
        list_append(&broker->ahead, &extent->link);
    *ret = (struct broker_action){
        .type = type,
        .extent = extent_id(extent),
        .class_index = extent->class_index,
    };
    return true;
}

static bool next_look(struct broker *broker, struct broker_action *ret)
{
    if (!broker->look_wanted || broker->looking)
        return false;
    broker->look_wanted = false;
    broker->looking = true;
    broker->n_looks++;
    *ret = (struct broker_action){.type = BROKER_ACTION_LOOK};
    return true;
}

bool broker_next_action(struct broker *broker, struct broker_action *ret)
{
    broker->forgotten = instance_free(broker, broker->forgotten);
    if (broker->unsettled && list_is_empty(&broker->answers))
        broker_settle(broker, broker->now_ns);
    /* The status is seen before a notice: who has answered one doesn't take back at once what it gave. */
    return next_answer(broker, ret) || leases_next_report(broker, ret) || next_status(broker, ret) ||
           notices_next(broker, ret) || next_of(broker, &broker->exports, BROKER_ACTION_EXPORT, ret) ||
           next_of(broker, &broker->exports_ahead, BROKER_ACTION_EXPORT, ret) ||
           next_of(broker, &broker->creates, BROKER_ACTION_CREATE, ret) || next_look(broker, ret) ||
           next_of(broker, &broker->destroys, BROKER_ACTION_DESTROY, ret);
}

/* ---- Answers ---- */

static struct extent *find_in_state(struct broker *broker, uint64_t id, enum extent_state state)
{
    struct extent *extent = pool_extent_find(&broker->pool, id);

    assert(extent && extent->state == state);
    return extent;
}

void broker_created(struct broker *broker, uint64_t id, bool ok, uint64_t now_ns)
{
    broker->now_ns = u64_max(now_ns, broker->now_ns);
    supply_created(broker, find_in_state(broker, id, EXTENT_CREATING), ok);
    broker_settle(broker, now_ns);
}

void broker_exported(struct broker *broker, uint64_t id, bool ok, uint64_t now_ns)
{
    broker->now_ns = u64_max(now_ns, broker->now_ns);
    supply_exported(broker, find_in_state(broker, id, EXTENT_EXPORTING), ok);
    broker_settle(broker, now_ns);
}

void broker_destroyed(struct broker *broker, uint64_t id, uint64_t freed_bytes, uint64_t now_ns)
{
    struct extent *extent = find_in_state(broker, id, EXTENT_DOOMED);
    uint64_t bytes = extent_bytes(&broker->pool, extent);

    broker->n_doomed--;
    broker->n_doomed_descriptors -= extent->descriptor;
    pool_set_descriptor(&broker->pool, extent, false);
    extent->state = EXTENT_UNCONFIRMED;
    list_unlink(&extent->link);
    list_append(&broker->unconfirmed, &extent->link);
    broker->unconfirmed_bytes += bytes;
    if (!extent->handed || freed_bytes >= bytes) {
        ledger_released(&broker->ledger, bytes);
        confirm(broker, extent, bytes);
    }
    if (broker->n_doomed == 0 &&
        (broker->unconfirmed_bytes > broker->stuck_bytes || !list_is_empty(&broker->arrivals)))
        broker->look_wanted = true;
    broker_settle(broker, now_ns);
}

void broker_update_budget(struct broker *broker)
{
    uint64_t before = broker->budget.bytes;

    reservations_check(broker);
    policy_budget_update(&broker->budget, broker_budget_now(broker), broker->now_ns,
                         broker->config.budget_rise_ns);
    if (broker->budget.bytes != before)
        members_budget_changed(broker);
}

void broker_look(struct broker *broker, uint64_t free_bytes, uint64_t now_ns)
{
    uint64_t proven_bytes = ledger_look(&broker->ledger, free_bytes, broker->unconfirmed_bytes);

    broker->looking = broker->look_wanted = false;
    broker->now_ns = broker->looked_ns = u64_max(now_ns, broker->now_ns);
    broker->may_offer = true;
    confirm_oldest(broker, proven_bytes);
    broker->stuck_bytes = broker->unconfirmed_bytes;
    supply_looked(broker);
    reservations_looked(broker);
    broker_update_budget(broker);
    broker_settle(broker, now_ns);
    supply_fill(broker);
}

void broker_look_failed(struct broker *broker, uint64_t now_ns)
{
    broker->now_ns = u64_max(now_ns, broker->now_ns);
    supply_look_failed(broker);
    broker_settle(broker, now_ns);
}

/* ---- The whole ---- */

void broker_drain(struct broker *broker, uint64_t now_ns)
{
    broker->draining = broker->may_offer = true;
    while (!list_is_empty(&broker->arrivals)) {
        struct list *oldest = broker->arrivals.next;

        queue_refuse(broker, container_of(oldest, struct broker_request, arrival_link), BROKER_E_DRIVER);
    }
    broker_settle(broker, now_ns);
}

void broker_reconfigure(struct broker *broker, const struct broker_config *config, uint64_t now_ns)
{
    broker->config.budget_bytes = config->budget_bytes;
    broker->config.utilization_ppm = config->utilization_ppm;
    broker->config.headroom_bytes = config->headroom_bytes;
    broker->config.reserve_bytes = config->reserve_bytes;
    broker->config.idle_ns = config->idle_ns;
    reservations_check(broker);
    broker->budget = (struct policy_budget){.bytes = broker_budget_now(broker)};
    members_budget_changed(broker);
    broker_settle(broker, now_ns);
}

uint64_t broker_budget(const struct broker *broker)
{
    return broker->budget.bytes;
}

const struct broker_counters *broker_counters(const struct broker *broker)
{
    return &broker->counters;
}

void broker_totals(const struct broker *broker, struct broker_totals *ret)
{
    const struct ledger *ledger = &broker->ledger;
    uint64_t held = ledger_held(ledger);

    *ret = (struct broker_totals){
        .total_bytes = ledger->total_bytes,
        .free_bytes = ledger->free_bytes,
        .foreign_bytes = broker_foreign(broker),
        .budget_bytes = broker->budget.bytes,
        .headroom_bytes = broker->config.headroom_bytes,
        .creating_bytes = ledger->bytes[LEDGER_CREATING],
        .pool_bytes = ledger->bytes[LEDGER_POOL],
        .warm_bytes = broker->pool.warm_bytes + broker->earmarked_bytes,
        .granted_bytes = ledger->bytes[LEDGER_GRANTED],
        .leased_bytes = ledger->bytes[LEDGER_LEASED],
        .limbo_bytes = ledger->bytes[LEDGER_LIMBO],
        .destroying_bytes = ledger->bytes[LEDGER_DESTROYING],
        .held_bytes = held,
        .reserved_bytes = ledger->bytes[LEDGER_RESERVED],
        .expected_bytes = broker->expected_bytes,
        .n_instances = broker->n_instances,
        .n_peers = broker->n_peers,
    };
}
