/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Messages made from the broker's records, and nothing kept: what a message says is true when it is made. A
 * list is cut into pages that fit a frame; its cursor is an instance's serial number, so what comes and goes
 * between two pages is neither listed twice nor hides another.
 */

#include "snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"

#define PAGE_BYTES_MAX (FRAME_SIZE_MAX - 1024) /* room for what surrounds the instances */

/* ---- One instance ---- */

static Kvcached__PeerInfo *peer_info(const struct snapshot_peer *peer)
{
    Kvcached__PeerInfo *info = malloc(sizeof(*info));

    if (!info)
        return NULL;
    kvcached__peer_info__init(info);
    info->pid = peer->pid;
    info->role = peer->role;
    info->connected = peer->connected;
    info->program = (char *)peer->program;
    return info;
}

static int add_peers(const struct broker_instance *instance, Kvcached__InstanceInfo *info)
{
    size_t n = 0;

    list_for_each (it, &instance->peers)
        n++;
    if (n > SNAPSHOT_PEERS_MAX)
        n = SNAPSHOT_PEERS_MAX;
    if (n == 0)
        return 0;
    info->peers = calloc(n, sizeof(*info->peers));
    if (!info->peers)
        return -ENOMEM;
    list_for_each (it, &instance->peers) {
        if (info->n_peers == n)
            break;
        info->peers[info->n_peers] = peer_info(container_of(it, struct broker_peer, link)->owner);
        if (!info->peers[info->n_peers])
            return -ENOMEM;
        info->n_peers++;
    }
    return 0;
}

int snapshot_instance(struct broker *broker, const struct broker_instance *instance,
                      Kvcached__InstanceInfo **ret)
{
    _cleanup_(snapshot_instance_freep) Kvcached__InstanceInfo *info = malloc(sizeof(*info));
    const uint64_t *bytes = instance->account.bytes;
    struct broker_words words = broker_instance_words(broker, instance);
    enum broker_limit_source source;

    if (!info)
        return -ENOMEM;
    kvcached__instance_info__init(info);
    info->domain = (char *)broker_domain_name(instance->domain);
    info->instance = (char *)instance->name;
    info->limit_bytes = broker_limit(broker, instance, &source);
    info->limit_source = (Kvcached__LimitSource)source;
    info->used_bytes = broker_used(instance);
    info->granted_bytes = bytes[LEDGER_GRANTED];
    info->limbo_bytes = bytes[LEDGER_LIMBO] + bytes[LEDGER_DESTROYING];
    info->pending_bytes = bytes[LEDGER_PENDING];
    info->leased_bytes = bytes[LEDGER_LEASED];
    info->reserved_bytes = bytes[LEDGER_RESERVED];
    info->frozen = instance->frozen;
    info->missed_notice = instance->missed;
    info->cached_bytes = words.cached_bytes;
    info->pinned_bytes = words.pinned_bytes;
    info->wanted_bytes = broker_wanted(instance);
    info->total_granted_bytes = instance->total_granted_bytes;
    info->total_returned_bytes = instance->total_returned_bytes;
    info->refusals = instance->n_refused;
    info->serial = instance->serial;
    info->over_limit = info->used_bytes > info->limit_bytes;
    if (add_peers(instance, info) < 0)
        return -ENOMEM;
    *ret = steal_pointer(info);
    return 0;
}

/* Strings belong to the broker and its peers. */
Kvcached__InstanceInfo *snapshot_instance_free(Kvcached__InstanceInfo *info)
{
    if (!info)
        return NULL;
    for (size_t i = 0; i < info->n_peers; i++)
        free(info->peers[i]);
    free(info->peers);
    free(info);
    return NULL;
}

/* ---- Names ---- */

bool snapshot_split(const char *name, char ret_domain[static BROKER_DOMAIN_MAX + 1],
                    const char **ret_instance)
{
    const char *slash = strrchr(name, '/');
    const char *instance = slash ? slash + 1 : name;
    size_t length = slash ? (size_t)(slash - name) : 0;

    if ((slash && length == 0) || length > BROKER_DOMAIN_MAX || !*instance ||
        strlen(instance) > BROKER_NAME_MAX)
        return false;
    memcpy(ret_domain, name, length);
    ret_domain[length] = '\0';
    *ret_instance = instance;
    return true;
}

static bool has_name(const struct broker_instance *instance, const char *name)
{
    char domain[BROKER_DOMAIN_MAX + 1];
    const char *own;

    if (!snapshot_split(name, domain, &own) || strcmp(instance->name, own) != 0)
        return false;
    return !*domain || strcmp(broker_domain_name(instance->domain), domain) == 0;
}

static bool has_one_of(const struct broker_instance *instance, char *const *names, size_t n_names)
{
    for (size_t i = 0; i < n_names; i++) {
        if (has_name(instance, names[i]))
            return true;
    }
    return n_names == 0;
}

/* Without peers and bytes, an instance is worth a line only for the limit that somebody has set. */
bool snapshot_lists(const struct broker_instance *instance)
{
    return !list_is_empty(&instance->peers) || broker_used(instance) > 0 ||
           instance->has_limit[BROKER_LIMIT_ADMIN];
}

static bool exists(struct broker *broker, const char *name)
{
    struct broker_instance *instance = NULL;

    while ((instance = broker_instance_next(broker, instance))) {
        if (snapshot_lists(instance) && has_name(instance, name))
            return true;
    }
    return false;
}

static void name_candidates(struct broker *broker, const char *name, char *reason)
{
    struct broker_instance *instance = NULL;
    int used = snprintf(reason, SNAPSHOT_REASON_MAX, "%s exists in several domains:", name);

    while ((instance = broker_instance_next(broker, instance)) && used < SNAPSHOT_REASON_MAX) {
        if (snapshot_lists(instance) && has_name(instance, name))
            used += snprintf(reason + used, (size_t)(SNAPSHOT_REASON_MAX - used), " %s/%s",
                             broker_domain_name(instance->domain), instance->name);
    }
}

int snapshot_find(struct broker *broker, const char *name, struct broker_instance **ret,
                  char reason[static SNAPSHOT_REASON_MAX])
{
    struct broker_instance *instance = NULL, *found = NULL;

    while ((instance = broker_instance_next(broker, instance))) {
        if (!snapshot_lists(instance) || !has_name(instance, name))
            continue;
        if (found) {
            name_candidates(broker, name, reason);
            return SNAPSHOT_E_AMBIGUOUS;
        }
        found = instance;
    }
    if (!found) {
        snprintf(reason, SNAPSHOT_REASON_MAX, "There is no instance %.200s", name);
        return SNAPSHOT_E_NOT_FOUND;
    }
    *ret = found;
    return 0;
}

/* ---- Pages ---- */

static int append(Kvcached__ListReply *reply, Kvcached__InstanceInfo *info, size_t *capacity)
{
    Kvcached__InstanceInfo **grown;

    if (reply->n_instances == *capacity) {
        *capacity = *capacity ? *capacity * 2 : 16;
        grown = reallocarray(reply->instances, *capacity, sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        reply->instances = grown;
    }
    reply->instances[reply->n_instances++] = info;
    return 0;
}

/* Bytes that the message takes inside another: itself, its tag and a length of up to three bytes. */
static size_t size_inside(const Kvcached__InstanceInfo *info)
{
    return kvcached__instance_info__get_packed_size(info) + 4;
}

static int fill_page(struct broker *broker, char *const *names, size_t n_names, uint64_t cursor,
                     Kvcached__ListReply *reply)
{
    struct broker_instance *instance = NULL;
    size_t capacity = 0, size = 0;

    while ((instance = broker_instance_next(broker, instance))) {
        _cleanup_(snapshot_instance_freep) Kvcached__InstanceInfo *info = NULL;

        if (instance->serial < cursor || !snapshot_lists(instance) || !has_one_of(instance, names, n_names))
            continue;
        if (snapshot_instance(broker, instance, &info) < 0)
            return -ENOMEM;
        size += size_inside(info);
        if (size > PAGE_BYTES_MAX) {
            reply->next = instance->serial;
            return 0;
        }
        if (append(reply, info, &capacity) < 0)
            return -ENOMEM;
        steal_pointer(info);
    }
    return 0;
}

int snapshot_list(struct broker *broker, char *const *names, size_t n_names, uint64_t cursor,
                  Kvcached__ListReply **ret, const char **ret_missing)
{
    _cleanup_(snapshot_list_freep) Kvcached__ListReply *reply = NULL;

    for (size_t i = 0; i < n_names && cursor == 0; i++) {
        if (!exists(broker, names[i])) {
            *ret_missing = names[i];
            return SNAPSHOT_E_NOT_FOUND;
        }
    }
    reply = malloc(sizeof(*reply));
    if (!reply)
        return -ENOMEM;
    kvcached__list_reply__init(reply);
    if (fill_page(broker, names, n_names, cursor, reply) < 0)
        return -ENOMEM;
    *ret = steal_pointer(reply);
    return 0;
}

Kvcached__ListReply *snapshot_list_free(Kvcached__ListReply *reply)
{
    if (!reply)
        return NULL;
    for (size_t i = 0; i < reply->n_instances; i++)
        snapshot_instance_free(reply->instances[i]);
    free(reply->instances);
    free(reply);
    return NULL;
}

void snapshot_totals(struct broker *broker, Kvcached__InfoReply *reply)
{
    struct broker_instance *instance = NULL;
    struct broker_totals totals;

    broker_totals(broker, &totals);
    reply->total_bytes = totals.total_bytes;
    reply->free_bytes = totals.free_bytes;
    reply->foreign_bytes = totals.foreign_bytes;
    reply->budget_bytes = totals.budget_bytes;
    reply->headroom_bytes = totals.headroom_bytes;
    reply->pool_bytes = totals.pool_bytes;
    reply->warm_bytes = totals.warm_bytes;
    reply->leased_bytes = totals.leased_bytes;
    reply->granted_bytes = totals.granted_bytes;
    reply->limbo_bytes = totals.limbo_bytes;
    reply->destroying_bytes = totals.destroying_bytes;
    reply->creating_bytes = totals.creating_bytes;
    reply->held_bytes = totals.held_bytes;
    reply->reserved_bytes = totals.reserved_bytes;
    reply->expected_bytes = totals.expected_bytes;
    reply->instances = totals.n_instances;
    reply->peers = totals.n_peers;
    while ((instance = broker_instance_next(broker, instance))) {
        reply->cached_bytes += broker_instance_words(broker, instance).cached_bytes;
        reply->wanted_bytes += broker_wanted(instance);
    }
}
