/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Members: the trust domains, the instances in them, their peers and their limits.
 *
 * An instance exists while it has peers, bytes or a limit set by an administrator, and a domain while it has
 * instances, or extents under way. Nothing is freed under the caller's feet: an instance that has become vain
 * is named by a FORGET action first. A domain that ends takes its colour with it, so what lies on its shelf
 * is destroyed.
 *
 * A name belongs to the identity that opened it until neither engines nor their bytes are left. So long it
 * also stays frozen, once it is; a limit that keeps the record must not keep the next engine of that name
 * out. Those who reserve memory for a name open nothing: their promises are to whoever does.
 */

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "broker-internal.h"

_Static_assert((int)BROKER_LIMIT_ADMIN == (int)POLICY_ADMIN &&
                   (int)BROKER_LIMIT_CONFIG == (int)POLICY_CONFIG &&
                   (int)BROKER_LIMIT_ENGINE == (int)POLICY_ENGINE &&
                   (int)BROKER_LIMIT_BUDGET == (int)POLICY_BUDGET,
               "sources of limits are the same everywhere");

/* ---- Domains ---- */

const char *broker_domain_name(const struct broker_domain *domain)
{
    return domain->name;
}

struct broker_domain *shelf_domain(const struct broker *broker, struct pool_shelf *shelf)
{
    return shelf == &broker->pool.clean ? NULL : container_of(shelf, struct broker_domain, shelf);
}

static struct broker_domain *domain_find(struct broker *broker, const char *name)
{
    list_for_each (it, &broker->domains) {
        struct broker_domain *domain = container_of(it, struct broker_domain, link);

        if (strcmp(domain->name, name) == 0)
            return domain;
    }
    return NULL;
}

static int domain_new(struct broker *broker, const char *name, struct broker_domain **ret)
{
    struct broker_domain *domain = calloc(1, sizeof(*domain));

    if (!domain)
        return -ENOMEM;
    strcpy(domain->name, name);
    list_init(&domain->hungry_link);
    list_init(&domain->parked_link);
    list_init(&domain->queue);
    list_init(&domain->parked);
    pool_shelf_init(&domain->shelf);
    list_append(&broker->domains, &domain->link);
    *ret = domain;
    return 0;
}

void domain_collect(struct broker *broker, struct broker_domain *domain)
{
    if (domain->n_instances || domain->n_incoming || domain->shelf.n_coloured)
        return;
    assert(list_is_empty(&domain->queue) && list_is_empty(&domain->parked) &&
           list_is_empty(&domain->hungry_link));
    pool_shelf_deinit(&domain->shelf);
    list_unlink(&domain->link);
    free(domain);
}

static void domain_drop_instance(struct broker *broker, struct broker_domain *domain)
{
    if (--domain->n_instances)
        return;
    shelf_empty(broker, &domain->shelf);
    domain_collect(broker, domain);
}

/* ---- Instances ---- */

void instance_touch(struct broker *broker, struct broker_instance *instance)
{
    instance->touched = ++broker->n_touches;
    if ((instance->missed || !list_is_empty(&instance->pressed_link)) && broker_over_limit(instance) == 0) {
        instance->missed = false;
        list_unlink(&instance->pressed_link);
    }
    if (list_is_empty(&instance->dirty_link))
        list_append(&broker->dirty, &instance->dirty_link);
}

bool instance_is_vain(const struct broker_instance *instance)
{
    return list_is_empty(&instance->peers) && !instance->has_limit[BROKER_LIMIT_ADMIN] &&
           broker_used(instance) == 0;
}

static struct broker_instance *instance_find(struct broker *broker, const struct broker_domain *domain,
                                             const char *name)
{
    list_for_each (it, &broker->instances) {
        struct broker_instance *instance = container_of(it, struct broker_instance, link);

        if (instance->domain == domain && strcmp(instance->name, name) == 0)
            return instance;
    }
    return NULL;
}

static int instance_new(struct broker *broker, struct broker_domain *domain, const char *name,
                        struct broker_instance **ret)
{
    struct broker_instance *instance = calloc(1, sizeof(*instance));

    if (!instance)
        return -ENOMEM;
    strcpy(instance->name, name);
    list_init(&instance->dirty_link);
    list_init(&instance->peers);
    list_init(&instance->leases);
    list_init(&instance->reservations);
    list_init(&instance->pressed_link);
    instance->domain = domain;
    instance->serial = ++broker->serial;
    instance->has_limit[BROKER_LIMIT_BUDGET] = true;
    domain->n_instances++;
    broker->n_instances++;
    list_append(&broker->instances, &instance->link);
    instance_touch(broker, instance);
    *ret = instance;
    return 0;
}

struct broker_instance *instance_free(struct broker *broker, struct broker_instance *instance)
{
    struct broker_domain *domain;

    if (!instance)
        return NULL;
    domain = instance->domain;
    ledger_account_deinit(&instance->account);
    list_unlink(&instance->link);
    list_unlink(&instance->dirty_link);
    list_unlink(&instance->pressed_link);
    broker->n_instances--;
    free(instance);
    domain_drop_instance(broker, domain);
    return NULL;
}

/* Finds or makes domain and instance, or leaves nothing behind. */
static int instance_open(struct broker *broker, const char *domain_name, const char *name,
                         struct broker_instance **ret)
{
    struct broker_domain *domain;
    int r;

    if (strlen(domain_name) > BROKER_DOMAIN_MAX || strlen(name) > BROKER_NAME_MAX)
        return BROKER_E_INVALID;
    domain = domain_find(broker, domain_name);
    if (!domain) {
        r = domain_new(broker, domain_name, &domain);
        if (r < 0)
            return r;
    }
    *ret = instance_find(broker, domain, name);
    if (*ret)
        return 0;
    r = instance_new(broker, domain, name, ret);
    if (r < 0)
        domain_collect(broker, domain);
    return r;
}

struct broker_instance *broker_instance_find(struct broker *broker, const char *domain_name, const char *name)
{
    struct broker_domain *domain = domain_find(broker, domain_name);

    return domain ? instance_find(broker, domain, name) : NULL;
}

struct broker_instance *broker_instance_next(struct broker *broker, struct broker_instance *previous_or_null)
{
    struct list *next = previous_or_null ? previous_or_null->link.next : broker->instances.next;

    return next == &broker->instances ? NULL : container_of(next, struct broker_instance, link);
}

uint64_t broker_used(const struct broker_instance *instance)
{
    return ledger_account_used(&instance->account);
}

int broker_instance_delete(struct broker *broker, struct broker_instance *instance)
{
    if (!list_is_empty(&instance->peers))
        return BROKER_E_HAS_PEERS;
    instance->has_limit[BROKER_LIMIT_ADMIN] = false;
    instance_touch(broker, instance);
    return 0;
}

static bool is_charged(const struct broker_request *request)
{
    return request->state == BROKER_REQUEST_PARKED || request->state == BROKER_REQUEST_WAITING ||
           request->state == BROKER_REQUEST_PREPARING ||
           (request->state == BROKER_REQUEST_READY && !request->promised);
}

/* The youngest request that is charged with more than leases hold, of one instance or of all. */
static struct broker_request *youngest(struct broker *broker, const struct broker_instance *instance)
{
    for (struct list *it = broker->arrivals.prev; it != &broker->arrivals; it = it->prev) {
        struct broker_request *request = container_of(it, struct broker_request, arrival_link);

        if (is_charged(request) && (!instance || request->peer->instance == instance))
            return request;
    }
    return NULL;
}

void broker_instance_freeze(struct broker *broker, struct broker_instance *instance)
{
    instance->frozen = true;
    list_for_each_safe (it, &broker->arrivals) {
        struct broker_request *request = container_of(it, struct broker_request, arrival_link);

        if (request->peer->instance == instance && request->state < BROKER_REQUEST_REFUSED)
            queue_refuse(broker, request, BROKER_E_FROZEN);
    }
    leases_withdraw(broker, instance, NULL, UINT64_MAX);
    instance_touch(broker, instance);
    broker_settle(broker, broker->now_ns);
}

/* ---- Limits ---- */

uint64_t broker_limit(const struct broker *broker, const struct broker_instance *instance,
                      enum broker_limit_source *ret_source)
{
    enum policy_source source;
    uint64_t limit = policy_limit(instance->has_limit, instance->limit_of, &source);

    if (ret_source)
        *ret_source = (enum broker_limit_source)source;
    return u64_min(limit, broker->budget.bytes);
}

static void apply_limit(struct broker_instance *instance, enum broker_limit_source source, uint64_t bytes)
{
    instance->has_limit[source] = bytes != UINT64_MAX;
    instance->limit_of[source] = bytes;
}

/* What waits gives way, the youngest first, then what is offered; the rest can only be given back. */
static void enforce_limit(struct broker *broker, struct broker_instance *instance)
{
    struct broker_request *request;

    while (broker_over_limit(instance) && (request = youngest(broker, instance)))
        queue_refuse(broker, request, BROKER_E_LIMIT);
    leases_withdraw(broker, instance, NULL, broker_over_limit(instance));
    notices_limit(broker, instance);
}

static void enforce_budget(struct broker *broker)
{
    struct broker_request *request;

    while (broker_over_budget(broker) && (request = youngest(broker, NULL)))
        queue_refuse(broker, request, BROKER_E_BUDGET);
    leases_withdraw(broker, NULL, NULL, broker_over_budget(broker));
    if (broker_over_budget(broker))
        notices_budget(broker, broker_over_budget(broker));
}

void members_budget_changed(struct broker *broker)
{
    enforce_budget(broker);
    list_for_each (it, &broker->instances)
        instance_touch(broker, container_of(it, struct broker_instance, link));
}

int broker_set_limit(struct broker *broker, const char *domain, const char *name,
                     enum broker_limit_source source, uint64_t bytes)
{
    struct broker_instance *instance = broker_instance_find(broker, domain, name);
    int r;

    if (source < BROKER_LIMIT_ADMIN || source >= BROKER_LIMIT_BUDGET)
        return BROKER_E_INVALID;
    if (!instance) {
        if (source != BROKER_LIMIT_ADMIN || bytes == UINT64_MAX)
            return BROKER_E_NOT_FOUND;
        r = instance_open(broker, domain, name, &instance);
        if (r)
            return r;
    }
    apply_limit(instance, source, bytes);
    enforce_limit(broker, instance);
    instance_touch(broker, instance);
    broker_settle(broker, broker->now_ns);
    return 0;
}

/* ---- Peers ---- */

/* Those who reserve for it are there before it opens, and when it is gone. */
static bool has_engines(const struct broker_instance *instance)
{
    list_for_each (it, &instance->peers)
        if (!container_of(it, struct broker_peer, link)->controls)
            return true;
    return false;
}

static void apply_limits(struct broker_instance *instance, const uint64_t limits[static 5], bool controls)
{
    apply_limit(instance, BROKER_LIMIT_CONFIG, limits[BROKER_LIMIT_CONFIG]);
    if (!controls)
        apply_limit(instance, BROKER_LIMIT_ENGINE, limits[BROKER_LIMIT_ENGINE]);
    if (limits[BROKER_LIMIT_ADMIN] != UINT64_MAX)
        apply_limit(instance, BROKER_LIMIT_ADMIN, limits[BROKER_LIMIT_ADMIN]);
}

static int instance_admit(struct broker_instance *instance, uint64_t identity,
                          const uint64_t limits[static 5], bool controls)
{
    bool first = !has_engines(instance);
    bool vacant = first && broker_used(instance) == instance->reserved_bytes;

    if (vacant)
        instance->frozen = false;
    if (instance->frozen)
        return BROKER_E_FROZEN;
    if (vacant && !controls)
        instance->identity = identity;
    if (!controls && instance->identity != identity)
        return BROKER_E_IDENTITY;
    if (first)
        apply_limits(instance, limits, controls);
    return 0;
}

static int join(struct broker *broker, const char *domain, const char *name, uint64_t identity,
                const uint64_t limits[static 5], bool controls, struct broker_peer **ret)
{
    _cleanup_free_ struct broker_peer *peer = calloc(1, sizeof(*peer));
    struct broker_instance *instance;
    int r;

    if (!peer)
        return -ENOMEM;
    r = instance_open(broker, domain, name, &instance);
    if (r)
        return r;
    r = instance_admit(instance, identity, limits, controls);
    if (r)
        return r;
    list_init(&peer->extents);
    list_init(&peer->requests);
    list_init(&peer->leases);
    list_init(&peer->listener_link);
    list_init(&peer->notice_link);
    peer->instance = instance;
    peer->controls = controls;
    list_append(&instance->peers, &peer->link);
    broker->n_peers++;
    instance_touch(broker, instance);
    *ret = steal_pointer(peer);
    return 0;
}

int broker_peer_new(struct broker *broker, const char *domain, const char *name, uint64_t identity,
                    const uint64_t limits[static 5], struct broker_peer **ret)
{
    return join(broker, domain, name, identity, limits, false, ret);
}

int broker_controller_new(struct broker *broker, const char *domain, const char *name,
                          const uint64_t limits[static 5], struct broker_peer **ret)
{
    return join(broker, domain, name, 0, limits, true, ret);
}

/* An action that is out belongs to the server. */
static void abandon_request(struct broker *broker, struct broker_request *request)
{
    if (request->state != BROKER_REQUEST_ANSWERED) {
        request_end(broker, request);
        return;
    }
    if (request->reserves)
        reservation_end(broker, request);
    list_unlink(&request->peer_link);
    request->peer = NULL;
    request->lease = NULL;
}

static void lose(struct broker *broker, struct broker_peer *peer)
{
    peer->lost = true;
    list_for_each_safe (it, &peer->requests)
        abandon_request(broker, container_of(it, struct broker_request, peer_link));
    leases_lose(broker, peer);
    notices_lose(peer);
    list_for_each (it, &peer->extents) {
        struct extent *extent = container_of(it, struct extent, link);

        extent->state = EXTENT_LIMBO;
        ledger_charge_move(&broker->ledger, &extent->charge, &peer->instance->account, LEDGER_LIMBO);
    }
    instance_touch(broker, peer->instance);
}

void broker_peer_lost(struct broker *broker, struct broker_peer *peer, uint64_t now_ns)
{
    if (!peer->lost) {
        peer->lost_ns = now_ns;
        lose(broker, peer);
    }
    broker_settle(broker, now_ns);
}

void broker_peer_dead(struct broker *broker, struct broker_peer *peer, uint64_t now_ns)
{
    struct broker_instance *instance = peer->instance;

    if (!peer->lost)
        lose(broker, peer);
    list_for_each_safe (it, &peer->extents) {
        struct extent *extent = container_of(it, struct extent, link);

        list_unlink(&extent->link);
        extent->state = EXTENT_LOOSE;
        extent_doom(broker, extent, &instance->account);
    }
    list_unlink(&peer->link);
    broker->n_peers--;
    free(peer);
    instance_touch(broker, instance);
    broker_settle(broker, now_ns);
}
