/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Supply orders from the driver what the queue misses.
 *
 * A domain's own cold extents are exported first, then clean ones, and what is then lacking is created.
 * Exports need a descriptor and no memory, so they are started whenever there is one. Creates are dealt out
 * by deficit round robin in bytes. When the next create doesn't fit, nobody's is started: free extents that
 * can't serve are destroyed, and the turn stays where it is, or small requests would pass a large one
 * forever.
 *
 * A domain for which the driver fails pauses for one look. A request that has got nothing for long enough
 * since then, or since its turn came and there was no room, is refused: everything accepted is answered.
 *
 * While nobody waits, what is cold is exported ahead, and where a reserve is configured, what was asked for
 * lately is kept ready. Both take only what nobody needs.
 */

#include "base/arith.h"
#include "broker-internal.h"
#include "reclaim.h"

/* ---- Exports ---- */

bool supply_export(struct broker *broker, struct broker_domain *domain, struct extent *extent)
{
    if (broker->pool.n_descriptors >= broker_descriptors_max(broker))
        return false;
    pool_set_descriptor(&broker->pool, extent, true);
    extent->state = EXTENT_EXPORTING;
    extent->holder = domain;
    if (domain) {
        domain->exporting[extent->class_index]++;
        domain->incoming[extent->class_index]++;
        domain->n_incoming++;
        queue_update_hunger(broker, domain);
        list_append(&broker->exports, &extent->link);
    } else {
        broker->n_exporting_ahead++;
        list_append(&broker->exports_ahead, &extent->link);
    }
    return true;
}

static struct pool_shelf *cold_shelf(struct broker *broker, struct broker_domain *domain,
                                     unsigned class_index)
{
    if (domain->shelf.n[false][class_index])
        return &domain->shelf;
    return broker->pool.clean.n[false][class_index] ? &broker->pool.clean : NULL;
}

/* Descriptors are short: some that lie warm and are of no use to those who wait have to go. */
static void evict_warm(struct broker *broker, const struct broker_domain *domain)
{
    struct extent *extent;
    uint32_t n = 0;

    for (unsigned i = 0; i < broker->config.n_classes; i++)
        n += u64_sub_floor(domain->missing[i], domain->incoming[i]);
    while (broker->n_doomed_descriptors < n && (extent = reclaim_pick(&broker->pool, &domain->shelf, true))) {
        pool_remove(&broker->pool, extent);
        extent_doom(broker, extent, NULL);
    }
}

static bool start_exports_for(struct broker *broker, struct broker_domain *domain)
{
    for (unsigned i = broker->config.n_classes; i-- > 0;) {
        struct pool_shelf *shelf;

        while (domain->missing[i] > domain->incoming[i] && (shelf = cold_shelf(broker, domain, i))) {
            if (broker->pool.n_descriptors >= broker_descriptors_max(broker)) {
                evict_warm(broker, domain);
                return false;
            }
            supply_export(broker, domain, pool_take(&broker->pool, shelf, false, i));
        }
    }
    return true;
}

/* False when descriptors are short; what is cold is not to be taken for useless then. */
static bool start_exports(struct broker *broker)
{
    list_for_each_safe (it, &broker->hungry)
        if (!start_exports_for(broker, container_of(it, struct broker_domain, hungry_link)))
            return false;
    return true;
}

/* While nobody waits, what is cold is made warm, a few at a time. */
static void export_ahead(struct broker *broker)
{
    while (list_is_empty(&broker->arrivals) && !list_is_empty(&broker->pool.cold_shelves) &&
           broker->n_exporting_ahead < broker->config.creating_max &&
           broker->pool.n_descriptors < broker_descriptors_max(broker)) {
        struct pool_shelf *shelf = list_first(&broker->pool.cold_shelves, struct pool_shelf, cold_link);
        unsigned class_index = 0;

        while (shelf->n[false][class_index] == 0)
            class_index++;
        supply_export(broker, NULL, pool_take(&broker->pool, shelf, false, class_index));
    }
}

/* ---- Creates ---- */

/* The first request, and of it the largest class, that misses an extent which is not on its way. */
static struct broker_request *next_item(struct broker *broker, struct broker_domain *domain,
                                        unsigned *ret_class)
{
    uint32_t before[BROKER_CLASSES_MAX] = {};

    list_for_each (it, &domain->queue) {
        struct broker_request *request = container_of(it, struct broker_request, link);

        for (unsigned i = broker->config.n_classes; i-- > 0;) {
            before[i] += request_missing(request, i);
            if (before[i] > domain->incoming[i]) {
                *ret_class = i;
                return request;
            }
        }
    }
    return NULL;
}

/* Whose turn is it? Each visit adds as much as the largest extent, so a second one always suffices. */
static struct broker_domain *next_turn(struct broker *broker, struct broker_request **ret_request,
                                       unsigned *ret_class)
{
    uint64_t quantum = broker->config.class_bytes[broker->config.n_classes - 1];
    bool again = true;

    while (again) {
        again = false;
        list_for_each_safe (it, &broker->hungry) {
            struct broker_domain *domain = container_of(it, struct broker_domain, hungry_link);

            if (domain->retry_ns > broker->now_ns)
                continue;
            *ret_request = next_item(broker, domain, ret_class);
            if (domain->deficit_bytes >= broker->config.class_bytes[*ret_class])
                return domain;
            domain->deficit_bytes += quantum;
            list_unlink(&domain->hungry_link);
            list_append(&broker->hungry, &domain->hungry_link);
            again = true;
        }
    }
    return NULL;
}

static uint64_t bytes_to_create(const struct broker *broker)
{
    uint64_t bytes = 0;

    list_for_each (it, &broker->hungry) {
        const struct broker_domain *domain = container_of(it, struct broker_domain, hungry_link);

        for (unsigned i = 0; i < broker->config.n_classes; i++)
            bytes += u64_sub_floor(domain->missing[i], domain->incoming[i]) * broker->config.class_bytes[i];
    }
    return bytes;
}

static uint64_t room(const struct broker *broker)
{
    return policy_room(broker->budget.bytes, ledger_held(&broker->ledger), broker->ledger.free_bytes,
                       broker->ledger.bytes[LEDGER_CREATING], broker->config.headroom_bytes);
}

static bool begin_create(struct broker *broker, struct broker_domain *domain, unsigned class_index)
{
    struct extent *extent;

    if (pool_extent_new(&broker->pool, class_index, &extent) < 0)
        return false;
    extent->state = EXTENT_CREATING;
    extent->holder = domain;
    ledger_charge_init(&broker->ledger, &extent->charge, NULL, LEDGER_CREATING,
                       extent_bytes(&broker->pool, extent));
    list_append(&broker->creates, &extent->link);
    broker->n_creating++;
    if (domain) {
        domain->deficit_bytes -= extent_bytes(&broker->pool, extent);
        domain->incoming[class_index]++;
        domain->n_incoming++;
        queue_update_hunger(broker, domain);
    }
    return true;
}

static void driver_failed(struct broker *broker, struct broker_domain *domain, struct broker_request *request)
{
    domain->retry_ns = broker->now_ns + broker->config.look_ns;
    broker->look_wanted = true;
    if (request)
        queue_stall(broker, request);
}

static bool look_is_stale(const struct broker *broker)
{
    return broker->now_ns - broker->looked_ns > broker->config.look_ns;
}

/* Extents that arrive and find nobody who wants them become free. */
static bool surplus_is_under_way(const struct broker *broker)
{
    if (!list_is_empty(&broker->ahead) || !list_is_empty(&broker->exports_ahead))
        return true;
    list_for_each (it, &broker->domains) {
        const struct broker_domain *domain = container_of(it, struct broker_domain, link);

        for (unsigned i = 0; i < broker->config.n_classes; i++)
            if (domain->incoming[i] > domain->missing[i])
                return true;
    }
    return false;
}

static bool help_is_under_way(const struct broker *broker, const struct broker_request *request)
{
    const struct broker_domain *domain = request_domain(request);

    if (request->reserves && !broker->blind && (broker->looking || broker->look_wanted))
        return true;
    for (unsigned i = 0; i < broker->config.n_classes; i++)
        if (request_missing(request, i) && domain->incoming[i])
            return true;
    return broker_coming(broker) > 0 || surplus_is_under_way(broker);
}

static void start_creates(struct broker *broker)
{
    struct broker_request *request;
    struct broker_domain *domain;
    unsigned class_index = 0;

    while (broker->n_creating < broker->config.creating_max &&
           (domain = next_turn(broker, &request, &class_index))) {
        if (look_is_stale(broker)) {
            broker->look_wanted = true;
            return;
        }
        if (room(broker) < broker->config.class_bytes[class_index]) {
            broker_trim(broker, &domain->shelf, bytes_to_create(broker));
            /* Offers that were withdrawn for it may have been all that it missed. */
            if (request->state == BROKER_REQUEST_WAITING && !help_is_under_way(broker, request))
                queue_stall(broker, request);
            return;
        }
        if (!begin_create(broker, domain, class_index))
            driver_failed(broker, domain, request);
    }
}

/* How much of a class is worth keeping ready, while what was asked for lately is not forgotten. */
static uint64_t reserve(const struct broker *broker, unsigned class_index)
{
    uint64_t demand = policy_demand_read(&broker->demand[class_index], broker->now_ns);

    return policy_reserve(demand, broker->config.reserve_bytes);
}

bool supply_expects(const struct broker *broker)
{
    if (broker->draining || broker->config.reserve_bytes == 0 ||
        broker->now_ns - broker->active_ns >= broker->config.idle_ns)
        return false;
    for (unsigned i = 0; i < broker->config.n_classes; i++)
        if (reserve(broker, i) >= broker->config.class_bytes[i])
            return true;
    return false;
}

/* Extents for a demand that is only expected: no one gives up anything for them, and one look's worth at a
 * time, so that the next look can end it. */
void supply_fill(struct broker *broker)
{
    if (!supply_expects(broker) || !list_is_empty(&broker->arrivals) || broker->n_creating ||
        broker->n_exporting_ahead)
        return;
    for (unsigned i = 0; i < broker->config.n_classes; i++) {
        uint64_t size = broker->config.class_bytes[i];
        uint64_t lacking = u64_sub_floor(reserve(broker, i), broker->pool.n_shelved[i] * size);

        while (lacking >= size && room(broker) >= size && broker->n_creating < broker->config.creating_max) {
            if (!begin_create(broker, NULL, i))
                return;
            lacking -= size;
        }
    }
}

/* ---- Answers ---- */

/* Of an extent that was being created or exported: for whom? */
static struct broker_domain *arrive(struct broker *broker, struct extent *extent)
{
    struct broker_domain *domain = extent->holder;

    if (domain) {
        domain->exporting[extent->class_index] -= extent->state == EXTENT_EXPORTING;
        domain->incoming[extent->class_index]--;
        domain->n_incoming--;
        queue_update_hunger(broker, domain);
    }
    list_unlink(&extent->link);
    extent->holder = NULL;
    extent->state = EXTENT_LOOSE;
    return domain;
}

void supply_created(struct broker *broker, struct extent *extent, bool ok)
{
    unsigned class_index = extent->class_index;
    struct broker_domain *domain = arrive(broker, extent);

    broker->n_creating--;
    if (!ok) {
        ledger_charge_deinit(&broker->ledger, &extent->charge);
        pool_extent_free(&broker->pool, extent);
        if (domain)
            driver_failed(broker, domain, queue_first_missing(domain, class_index));
    } else {
        ledger_created(&broker->ledger, extent_bytes(&broker->pool, extent));
        ledger_charge_move(&broker->ledger, &extent->charge, NULL, LEDGER_POOL);
        if (!queue_wants_export(domain, class_index) || !supply_export(broker, domain, extent))
            queue_offer(broker, NULL, extent);
    }
    if (domain)
        domain_collect(broker, domain);
}

void supply_exported(struct broker *broker, struct extent *extent, bool ok)
{
    unsigned class_index = extent->class_index;
    struct broker_domain *owner = shelf_domain(broker, extent->shelf);
    struct broker_domain *domain = arrive(broker, extent);

    if (!domain)
        broker->n_exporting_ahead--;
    if (ok) {
        queue_offer(broker, domain, extent);
    } else {
        pool_set_descriptor(&broker->pool, extent, false);
        extent_doom(broker, extent, NULL);
        if (domain)
            driver_failed(broker, domain, queue_first_missing(domain, class_index));
    }
    if (domain)
        domain_collect(broker, domain);
    if (owner && owner != domain)
        domain_collect(broker, owner);
}

void supply_look_failed(struct broker *broker)
{
    broker->blind = true;
    list_for_each (it, &broker->hungry) {
        struct broker_domain *domain = container_of(it, struct broker_domain, hungry_link);

        list_for_each (waiting, &domain->queue)
            queue_stall(broker, container_of(waiting, struct broker_request, link));
    }
}

/* Who was behind others then has waited in their turn, not in vain. */
void supply_looked(struct broker *broker)
{
    if (!broker->blind)
        return;
    broker->blind = false;
    list_for_each_safe (it, &broker->stalled)
        list_unlink(it);
}

/* ---- Patience ---- */

static struct broker_request *first_hopeless(struct broker *broker)
{
    list_for_each (it, &broker->stalled) {
        struct broker_request *request = container_of(it, struct broker_request, stall_link);

        if (broker->now_ns - request->stalled_ns < broker->config.patience_ns)
            return NULL;
        if (!help_is_under_way(broker, request))
            return request;
    }
    return NULL;
}

/* Judged after everything has been tried: what was lacking may have come this very moment. */
static bool refuse_hopeless(struct broker *broker)
{
    struct broker_request *request = first_hopeless(broker);

    if (!request)
        return false;
    queue_refuse(broker, request, BROKER_E_DRIVER);
    return true;
}

void supply_settle(struct broker *broker)
{
    do {
        queue_unpark(broker);
        if (start_exports(broker))
            start_creates(broker);
    } while (refuse_hopeless(broker));
    export_ahead(broker);
}
