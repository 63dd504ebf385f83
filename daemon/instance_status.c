/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One status page per instance, written whenever the broker says that its numbers changed. Peers read it
 * without a message; they cannot write it.
 */

#include "instance_status.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"
#include "base/parse.h"
#include "chronicle.h"
#include "log.h"
#include "server.h"

static int instance_status_new(struct instance_status **ret)
{
    struct instance_status *instance = calloc(1, sizeof(*instance));
    int r;

    if (!instance)
        return -ENOMEM;
    r = status_page_new(&instance->page, &instance->page_fd);
    if (r < 0) {
        free(instance);
        return r;
    }
    list_init(&instance->orders);
    list_init(&instance->attaching);
    *ret = instance;
    return 0;
}

struct instance_status *instance_status_free(struct instance_status *instance)
{
    if (!instance)
        return NULL;
    status_page_free(instance->page);
    close_fd(instance->page_fd);
    free(instance);
    return NULL;
}

int instance_status_of(struct server *server, struct broker_instance *broker_instance,
                       struct instance_status **ret)
{
    struct instance_status *instance;
    int r;

    if (!broker_instance->owner) {
        r = instance_status_new(&instance);
        if (r < 0)
            return r;
        broker_instance->owner = instance;
        instance_status_write(server, broker_instance);
    }
    *ret = broker_instance->owner;
    return 0;
}

int instance_status_share(const struct instance_status *instance, struct fdset *fds)
{
    return fdset_dup(fds, instance->page_fd);
}

/* ---- What began or ended ---- */

static void note_limit(struct server *server, const struct broker_instance *instance, uint64_t now_ns)
{
    struct explain_times *times = &((struct instance_status *)instance->owner)->times;
    uint64_t limit_bytes = broker_limit(server->broker, instance, NULL), used_bytes = broker_used(instance);
    char used[FORMAT_SIZE_MAX], limit[FORMAT_SIZE_MAX];

    if (since_note(&times->over_limit, used_bytes > limit_bytes, now_ns)) {
        if (times->over_limit.holds)
            chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_OVER_LIMIT, instance, 0,
                           used_bytes - limit_bytes, "It uses %s, and its limit is %s now",
                           format_size(used, used_bytes), format_size(limit, limit_bytes));
        else
            chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_WITHIN_LIMIT, instance, 0, 0,
                           "It uses %s, which is within its limit of %s", format_size(used, used_bytes),
                           format_size(limit, limit_bytes));
    }
    if (since_note(&times->missed, instance->missed, now_ns) && instance->missed)
        chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_MISSED_NOTICE, instance, 0,
                       u64_sub_floor(used_bytes, limit_bytes),
                       "It was asked to give memory back, and is still above its limit");
}

static void note_changes(struct server *server, const struct broker_instance *instance)
{
    struct explain_times *times = &((struct instance_status *)instance->owner)->times;
    const uint64_t *bytes = instance->account.bytes;
    uint64_t now_ns = uv_now(&server->loop) * NSEC_PER_MSEC;

    note_limit(server, instance, now_ns);
    since_note(&times->frozen, instance->frozen, now_ns);
    since_note(&times->destroying, bytes[LEDGER_DESTROYING] > 0, now_ns);
    if (since_note(&times->gone, bytes[LEDGER_DESTROYING] + bytes[LEDGER_LIMBO] > 0, now_ns) &&
        !times->gone.holds)
        chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_FREED, instance, 0, 0,
                       "All that its lost processes held is free");
}

void instance_status_write(struct server *server, const struct broker_instance *broker_instance)
{
    struct instance_status *instance = broker_instance->owner;
    struct status_values values;

    if (!instance)
        return;
    note_changes(server, broker_instance);
    values = (struct status_values){
        .limit_bytes = broker_limit(server->broker, broker_instance, NULL),
        .used_bytes = broker_used(broker_instance),
        .budget_bytes = broker_budget(server->broker),
        .pressure_bytes = broker_pressure(broker_instance),
    };
    if (values.used_bytes > values.limit_bytes)
        values.flags |= STATUS_FLAG_OVER_LIMIT;
    if (broker_instance->frozen)
        values.flags |= STATUS_FLAG_FROZEN;
    status_page_write(instance->page, &values);
}

void instance_status_note_refusal(struct server *server, const struct broker_instance *broker_instance,
                                  const char *reason)
{
    const char *domain = broker_domain_name(broker_instance->domain);
    struct instance_status *instance = broker_instance->owner;

    if (!instance || instance->refused)
        return;
    instance->refused = true;
    chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_REFUSED, broker_instance, 0, 0, "It got no memory: %s",
                   reason);
    if (chronicle_may_log(server, domain))
        log_info("%s/%s was refused memory: %s", domain, broker_instance->name, reason);
}

void instance_status_note_grant(const struct broker_instance *broker_instance)
{
    struct instance_status *instance = broker_instance->owner;

    if (instance)
        instance->refused = false;
}
