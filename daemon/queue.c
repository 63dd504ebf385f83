/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The queue holds the requests that were accepted and not answered, and gives them extents.
 *
 * A request that finds everything warm is ready at once, unless an earlier one of its domain still misses an
 * extent of the same class. Others wait: within a domain in order of arrival. At most as many extents are
 * collected at once as the daemon may hold descriptors, or requests that each have half of theirs would wait
 * for each other forever; beyond that requests are parked, and the domains take turns in getting theirs out.
 *
 * What leases ask for out of courtesy is served only while nobody else waits for anything: the first request
 * that is not met at once makes it give way, with all that it had collected. So it needs no rank in any
 * queue, and can neither delay a need nor hold a part of one.
 *
 * Whatever becomes free passes through here: it is offered to those who may have it before it goes onto a
 * shelf, so that nothing warm lies on a shelf which somebody waiting could use.
 *
 * It makes nothing happen at the driver (supply.c does), and judges nobody's limit.
 */

#include "base/arith.h"
#include "broker-internal.h"

static bool is_hungry(const struct broker *broker, const struct broker_domain *domain)
{
    for (unsigned i = 0; i < broker->config.n_classes; i++)
        if (domain->missing[i] > domain->incoming[i])
            return true;
    return false;
}

void queue_update_hunger(struct broker *broker, struct broker_domain *domain)
{
    bool listed = !list_is_empty(&domain->hungry_link);

    if (is_hungry(broker, domain) == listed)
        return;
    if (!listed) {
        list_append(&broker->hungry, &domain->hungry_link);
        return;
    }
    list_unlink(&domain->hungry_link);
    domain->deficit_bytes = 0;
}

static void unstall(struct broker_request *request)
{
    list_unlink(&request->stall_link);
}

void queue_stall(struct broker *broker, struct broker_request *request)
{
    if (!list_is_empty(&request->stall_link))
        return;
    request->stalled_ns = broker->now_ns;
    list_append(&broker->stalled, &request->stall_link);
}

/* ---- Earmarks ---- */

/* Extents lie largest class first. */
static uint32_t first_of_class(const struct broker *broker, const struct broker_request *request,
                               unsigned class_index)
{
    uint32_t first = 0;

    for (unsigned i = class_index + 1; i < broker->config.n_classes; i++)
        first += request->counts[i];
    return first;
}

static void note_missing(struct broker *broker, struct broker_request *request, unsigned class_index, int n)
{
    struct broker_domain *domain = request_domain(request);

    domain->wanted[class_index] += n;
    if (request->state == BROKER_REQUEST_WAITING)
        domain->missing[class_index] += n;
}

static void become_ready(struct broker *broker, struct broker_request *request)
{
    list_unlink(&request->link);
    unstall(request);
    broker->n_needs -= !request->courtesy;
    request->state = BROKER_REQUEST_READY;
    list_append(&broker->answers, &request->link);
}

static void earmark(struct broker *broker, struct broker_request *request, struct extent *extent)
{
    unsigned class_index = extent->class_index;
    uint32_t slot = first_of_class(broker, request, class_index) + request->ready[class_index];

    extent->state = EXTENT_EARMARKED;
    extent->holder = request;
    broker->earmarked_bytes += extent_bytes(&broker->pool, extent);
    request->extents[slot] = extent_id(extent);
    request->ready[class_index]++;
    request->n_ready++;
    note_missing(broker, request, class_index, -1);
    unstall(request);
    if (request->n_ready == request->n_extents)
        become_ready(broker, request);
}

struct broker_request *queue_first_missing(struct broker_domain *domain, unsigned class_index)
{
    if (domain->missing[class_index] == 0)
        return NULL;
    list_for_each (it, &domain->queue) {
        struct broker_request *request = container_of(it, struct broker_request, link);

        if (request_missing(request, class_index))
            return request;
    }
    return NULL;
}

static struct broker_domain *first_hungry_for(struct broker *broker, unsigned class_index)
{
    list_for_each (it, &broker->hungry) {
        struct broker_domain *domain = container_of(it, struct broker_domain, hungry_link);

        if (domain->missing[class_index] > domain->incoming[class_index])
            return domain;
    }
    return NULL;
}

bool queue_wants_export(const struct broker_domain *domain, unsigned class_index)
{
    return domain && domain->missing[class_index] > domain->exporting[class_index];
}

static bool offer_to(struct broker *broker, struct broker_domain *domain, struct extent *extent)
{
    struct broker_request *request = queue_first_missing(domain, extent->class_index);

    if (!request)
        return false;
    earmark(broker, request, extent);
    queue_update_hunger(broker, domain);
    return true;
}

/* `domain`: for whom it was made, if for anybody. A coloured extent has no choice. */
void queue_offer(struct broker *broker, struct broker_domain *domain, struct extent *extent)
{
    struct broker_domain *owner = shelf_domain(broker, extent->shelf);

    if (broker->draining || (owner && owner->n_instances == 0)) {
        extent_doom(broker, extent, NULL);
        return;
    }
    if (!extent->descriptor && queue_wants_export(owner, extent->class_index) &&
        supply_export(broker, owner, extent))
        return;
    if (extent->descriptor) {
        domain = owner ? owner : domain;
        if (domain && offer_to(broker, domain, extent))
            return;
        domain = owner ? NULL : first_hungry_for(broker, extent->class_index);
        if (domain && offer_to(broker, domain, extent))
            return;
    }
    pool_put(&broker->pool, extent);
}

static void release_earmarks(struct broker *broker, struct broker_request *request)
{
    for (unsigned class_index = 0; class_index < broker->config.n_classes; class_index++) {
        uint32_t first = first_of_class(broker, request, class_index);

        for (uint32_t i = 0; i < request->ready[class_index]; i++) {
            struct extent *extent = pool_extent_find(&broker->pool, request->extents[first + i]);

            broker->earmarked_bytes -= extent_bytes(&broker->pool, extent);
            extent->state = EXTENT_LOOSE;
            queue_offer(broker, NULL, extent);
        }
        request->ready[class_index] = 0;
    }
    request->n_ready = 0;
}

/* ---- The queue ---- */

static struct extent *take_warm(struct broker *broker, struct broker_domain *domain, unsigned class_index)
{
    struct extent *extent = pool_take(&broker->pool, &domain->shelf, true, class_index);

    return extent ? extent : pool_take(&broker->pool, &broker->pool.clean, true, class_index);
}

static void collect_warm(struct broker *broker, struct broker_domain *domain)
{
    for (unsigned i = 0; i < broker->config.n_classes; i++) {
        struct extent *extent;

        while (domain->missing[i] && (extent = take_warm(broker, domain, i)))
            earmark(broker, queue_first_missing(domain, i), extent);
    }
}

/* Extents under way for nobody in particular are as good as ordered. */
static void adopt_ahead(struct broker *broker, struct broker_domain *domain)
{
    list_for_each_safe (it, &broker->ahead) {
        struct extent *extent = container_of(it, struct extent, link);
        struct broker_domain *owner = shelf_domain(broker, extent->shelf);
        unsigned class_index = extent->class_index;

        if ((owner && owner != domain) || domain->missing[class_index] <= domain->incoming[class_index])
            continue;
        if (extent->state == EXTENT_EXPORTING) {
            broker->n_exporting_ahead--;
            domain->exporting[class_index]++;
        }
        list_unlink(&extent->link);
        extent->holder = domain;
        domain->incoming[class_index]++;
        domain->n_incoming++;
    }
}

static void activate(struct broker *broker, struct broker_request *request)
{
    struct broker_domain *domain = request_domain(request);

    request->state = BROKER_REQUEST_WAITING;
    list_append(&domain->queue, &request->link);
    broker->n_active += request->n_extents;
    for (unsigned i = 0; i < broker->config.n_classes; i++)
        domain->missing[i] += request->counts[i];
    collect_warm(broker, domain);
    adopt_ahead(broker, domain);
    queue_update_hunger(broker, domain);
}

/* All warm, and nobody in this domain has waited for the same longer? */
static bool is_at_hand(const struct broker *broker, const struct broker_request *request)
{
    const struct broker_domain *domain = request_domain(request);

    for (unsigned i = 0; i < broker->config.n_classes; i++) {
        uint64_t n = (uint64_t)domain->shelf.n[true][i] + broker->pool.clean.n[true][i];

        if (request->counts[i] && (domain->wanted[i] || n < request->counts[i]))
            return false;
    }
    return true;
}

static bool fits_descriptors(const struct broker *broker, const struct broker_request *request)
{
    uint64_t n = (uint64_t)broker->n_active + broker->n_sending + broker->n_leased;

    return n + request->n_extents <= broker_descriptors_max(broker);
}

static void park(struct broker *broker, struct broker_request *request)
{
    struct broker_domain *domain = request_domain(request);

    request->state = BROKER_REQUEST_PARKED;
    list_append(&domain->parked, &request->link);
    if (list_is_empty(&domain->parked_link))
        list_append(&broker->parked, &domain->parked_link);
}

void queue_enqueue(struct broker *broker, struct broker_request *request)
{
    struct broker_domain *domain = request_domain(request);
    bool at_hand = is_at_hand(broker, request);

    if (!at_hand && !request->courtesy) {
        queue_yield(broker, NULL);
        at_hand = is_at_hand(broker, request);
    }
    broker->n_needs += !request->courtesy;
    broker->n_courtesies += request->courtesy;
    if (request->lease)
        lease_count(broker, request->peer->instance, 0, (int)request->n_extents);
    for (unsigned i = 0; i < broker->config.n_classes; i++)
        domain->wanted[i] += request->counts[i];
    if (at_hand || (list_is_empty(&broker->parked) && fits_descriptors(broker, request)))
        activate(broker, request);
    else
        park(broker, request);
}

void queue_unpark(struct broker *broker)
{
    while (!list_is_empty(&broker->parked)) {
        struct broker_domain *domain = list_first(&broker->parked, struct broker_domain, parked_link);
        struct broker_request *request = list_first(&domain->parked, struct broker_request, link);

        if (!fits_descriptors(broker, request))
            return;
        list_unlink(&request->link);
        list_unlink(&domain->parked_link);
        if (!list_is_empty(&domain->parked))
            list_append(&broker->parked, &domain->parked_link);
        activate(broker, request);
    }
}

/* It stands for nothing any more, whatever has become of it. */
static void discharge(struct broker *broker, struct broker_request *request)
{
    ledger_charge_deinit(&broker->ledger, &request->charge);
    broker->n_courtesies -= request->courtesy;
    if (request->lease)
        lease_count(broker, request->peer->instance, 0, -(int)request->n_extents);
}

void queue_complete(struct broker *broker, struct broker_request *request)
{
    broker->n_active -= request->n_extents;
    discharge(broker, request);
}

void queue_promise(struct broker *broker, struct broker_request *request)
{
    broker->n_active += request->n_extents;
    request->state = BROKER_REQUEST_READY;
    list_append(&broker->arrivals, &request->arrival_link);
    list_append(&broker->answers, &request->link);
}

/* Who lacks nothing but room in its own limit waits for its own instance only. */
bool queue_is_at_ease(const struct broker *broker, const struct broker_request *request)
{
    return broker->n_needs == 0 && broker->n_undecided == 0 && request->peer->instance->n_undecided == 0;
}

/* There are some only while nobody else waits for what they could take, so this looks at few others. */
bool queue_yield(struct broker *broker, const struct broker_instance *instance)
{
    bool any = false;

    list_for_each_safe (it, &broker->arrivals) {
        struct broker_request *request = container_of(it, struct broker_request, arrival_link);

        if (broker->n_courtesies == 0)
            break;
        if (!request->courtesy || request->state >= BROKER_REQUEST_REFUSED ||
            (instance && request->peer->instance != instance))
            continue;
        queue_refuse(broker, request, BROKER_E_BUDGET);
        any = true;
    }
    return any;
}

void queue_withdraw(struct broker *broker, struct broker_request *request)
{
    struct broker_domain *domain = request_domain(request);

    list_unlink(&request->arrival_link);
    if (request->state == BROKER_REQUEST_UNDECIDED)
        admission_forget(broker, request);
    list_unlink(&request->link);
    unstall(request);
    if (request->state == BROKER_REQUEST_REFUSED || request->state == BROKER_REQUEST_UNDECIDED)
        return;
    if (request->reserves) {
        reservation_end(broker, request);
        return;
    }
    for (unsigned i = 0; i < broker->config.n_classes; i++)
        note_missing(broker, request, i, -(int)request_missing(request, i));
    if (request->state == BROKER_REQUEST_PARKED && list_is_empty(&domain->parked))
        list_unlink(&domain->parked_link);
    if (request->state != BROKER_REQUEST_PARKED)
        broker->n_active -= request->n_extents;
    if (request->state != BROKER_REQUEST_READY)
        broker->n_needs -= !request->courtesy;
    discharge(broker, request);
    if (request->drawn_bytes)
        reservations_restore(broker, request);
    instance_touch(broker, request->peer->instance);
    queue_update_hunger(broker, domain);
    release_earmarks(broker, request);
}

void queue_refuse(struct broker *broker, struct broker_request *request, int error)
{
    queue_withdraw(broker, request);
    request->state = BROKER_REQUEST_REFUSED;
    request->error = error;
    list_append(&broker->answers, &request->link);
}
