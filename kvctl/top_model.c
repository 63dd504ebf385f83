/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A rate needs two looks at the same record: another one of the same name has another serial, and a daemon
 * that was started anew counts from zero. Where either is in doubt there is no rate until the next look.
 */

#include "top_model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"

static void instances_free(struct top_instance *instances, size_t n)
{
    for (size_t i = 0; instances && i < n; i++) {
        free(instances[i].name);
        free(instances[i].domain);
    }
    free(instances);
}

void top_model_deinit(struct top_model *model)
{
    for (size_t i = 0; i < model->n_gpus; i++) {
        instances_free(model->gpus[i].instances, model->gpus[i].n_instances);
        free(model->gpus[i].reason);
    }
    free(model->gpus);
    *model = (struct top_model){0};
}

/* The GPU's entry, made where there is none. NULL: no memory. */
static struct top_gpu *gpu_of(struct top_model *model, uint32_t index)
{
    struct top_gpu *gpus;
    size_t at = 0;

    while (at < model->n_gpus && model->gpus[at].index < index)
        at++;
    if (at < model->n_gpus && model->gpus[at].index == index)
        return &model->gpus[at];
    gpus = realloc(model->gpus, (model->n_gpus + 1) * sizeof(*gpus));
    if (!gpus)
        return NULL;
    memmove(&gpus[at + 1], &gpus[at], (model->n_gpus - at) * sizeof(*gpus));
    gpus[at] = (struct top_gpu){.index = index};
    model->gpus = gpus;
    model->n_gpus++;
    return &gpus[at];
}

/* ---- One look ---- */

static int compare_records(const void *a, const void *b)
{
    const struct top_instance *x = a, *y = b;
    int r = strcmp(x->name, y->name);

    return r ? r : strcmp(x->domain, y->domain);
}

static struct top_number known(uint64_t value)
{
    return (struct top_number){.known = true, .value = value};
}

static struct top_number rate(struct top_number before, struct top_number now, uint64_t elapsed_ns)
{
    if (!before.known || !now.known || now.value < before.value || elapsed_ns == 0)
        return (struct top_number){0};
    return known((uint64_t)((double)(now.value - before.value) * (double)NSEC_PER_SEC / (double)elapsed_ns));
}

static int read_instance(const Kvcached__InstanceInfo *info, uint32_t gpu, bool operations,
                         struct top_instance *ret)
{
    struct top_instance instance = {
        .name = strdup(info->instance),
        .domain = strdup(info->domain),
        .gpu = gpu,
        .limit_bytes = info->limit_bytes,
        .held_bytes = info->used_bytes,
        .over_limit = info->over_limit,
        .frozen = info->frozen,
    };

    if (operations) {
        uint64_t set_aside = u64_add_ceil(info->leased_bytes, info->reserved_bytes);
        uint64_t prealloc = u64_min(u64_add_ceil(info->cached_bytes, set_aside), info->used_bytes);

        instance.serial = info->serial;
        instance.prealloc_bytes = known(prealloc);
        instance.used_bytes = known(info->used_bytes - prealloc);
        instance.granted = known(info->total_granted_bytes);
        instance.returned = known(info->total_returned_bytes);
    }
    *ret = instance;
    return instance.name && instance.domain ? 0 : -ENOMEM;
}

/* Sorted: namesakes are neighbours. */
static void mark_namesakes(struct top_instance *instances, size_t n)
{
    for (size_t i = 1; i < n; i++)
        if (strcmp(instances[i - 1].name, instances[i].name) == 0)
            instances[i - 1].is_namesake = instances[i].is_namesake = true;
}

static void follow(struct top_instance *now, const struct top_instance *before, uint64_t elapsed_ns)
{
    if (before && before->serial == now->serial) {
        unsigned kept = before->n_history < TOP_HISTORY ? before->n_history : TOP_HISTORY - 1;

        now->marked = before->marked;
        memcpy(now->history, before->history + (before->n_history - kept), kept * sizeof(*now->history));
        now->n_history = kept;
        now->granted_rate = rate(before->granted, now->granted, elapsed_ns);
        now->returned_rate = rate(before->returned, now->returned, elapsed_ns);
        /* Where one was counted anew, so was the other. */
        if (!now->granted_rate.known || !now->returned_rate.known)
            now->granted_rate = now->returned_rate = (struct top_number){0};
    }
    now->history[now->n_history++] = now->held_bytes;
}

int top_model_look(struct top_model *model, uint64_t now_ns, const Kvcached__InfoReply *info,
                   Kvcached__InstanceInfo *const *instances, size_t n, bool operations)
{
    struct top_instance *fresh = calloc(n ? n : 1, sizeof(*fresh));
    struct top_gpu *gpu = gpu_of(model, info->gpu_index);
    /* Between the looks before and after an outage nobody knows what went on. */
    bool same_life = gpu && !gpu->lost && gpu->life == info->life;
    uint64_t elapsed_ns = same_life ? u64_sub_floor(now_ns, gpu->seen_ns) : 0;
    int r = fresh && gpu ? 0 : -ENOMEM;

    for (size_t i = 0; r == 0 && i < n; i++)
        r = read_instance(instances[i], info->gpu_index, operations, &fresh[i]);
    if (r < 0) {
        instances_free(fresh, n);
        return r;
    }
    qsort(fresh, n, sizeof(*fresh), compare_records);
    mark_namesakes(fresh, n);
    /* Another daemon may count its records from the same number on. */
    for (size_t i = 0; i < n; i++)
        follow(&fresh[i],
               same_life && gpu->instances
                   ? bsearch(&fresh[i], gpu->instances, gpu->n_instances, sizeof(*fresh), compare_records)
                   : NULL,
               elapsed_ns);
    instances_free(gpu->instances, gpu->n_instances);
    free(gpu->reason);
    *gpu = (struct top_gpu){
        .index = info->gpu_index,
        .life = info->life,
        .total_bytes = info->total_bytes,
        .free_bytes = info->free_bytes,
        .seen_ns = now_ns,
        .instances = fresh,
        .n_instances = n,
    };
    return 0;
}

int top_model_lose(struct top_model *model, uint32_t index, const char *reason)
{
    struct top_gpu *gpu = gpu_of(model, index);
    char *copy = strdup(reason);

    if (!gpu || !copy) {
        free(copy);
        return -ENOMEM;
    }
    free(gpu->reason);
    gpu->reason = copy;
    gpu->lost = true;
    return 0;
}

/* ---- What is shown ---- */

void top_model_mark(struct top_model *model, const struct top_instance *instance)
{
    for (size_t i = 0; i < model->n_gpus; i++)
        for (size_t j = 0; j < model->gpus[i].n_instances; j++) {
            struct top_instance *one = &model->gpus[i].instances[j];

            one->marked = one == instance && !one->marked;
        }
}

static int by_number(double x, double y)
{
    return (x < y) - (x > y);
}

static int compare_used(const void *a, const void *b)
{
    const struct top_instance *x = *(const struct top_instance *const *)a;
    const struct top_instance *y = *(const struct top_instance *const *)b;

    return by_number((double)x->held_bytes, (double)y->held_bytes) ?: compare_records(x, y);
}

static int compare_name(const void *a, const void *b)
{
    return compare_records(*(const struct top_instance *const *)a, *(const struct top_instance *const *)b);
}

/* More than any other where something is held of a limit of nothing. */
static double share(const struct top_instance *instance)
{
    if (instance->limit_bytes == 0)
        return instance->held_bytes ? 1e30 : 0;
    return (double)instance->held_bytes / (double)instance->limit_bytes;
}

static int compare_share(const void *a, const void *b)
{
    const struct top_instance *x = *(const struct top_instance *const *)a;
    const struct top_instance *y = *(const struct top_instance *const *)b;

    return by_number(share(x), share(y)) ?: compare_records(x, y);
}

static double traffic(const struct top_instance *instance)
{
    if (!instance->granted_rate.known || !instance->returned_rate.known)
        return -1;
    return (double)instance->granted_rate.value + (double)instance->returned_rate.value;
}

static int compare_rate(const void *a, const void *b)
{
    const struct top_instance *x = *(const struct top_instance *const *)a;
    const struct top_instance *y = *(const struct top_instance *const *)b;

    return by_number(traffic(x), traffic(y)) ?: compare_records(x, y);
}

size_t top_model_view(const struct top_model *model, const struct top_gpu *gpu,
                      const struct top_instance **ret_instances)
{
    static int (*const orders[])(const void *, const void *) = {
        [TOP_SORT_USED] = compare_used,
        [TOP_SORT_NAME] = compare_name,
        [TOP_SORT_SHARE] = compare_share,
        [TOP_SORT_RATE] = compare_rate,
    };
    size_t n = 0;

    for (size_t i = 0; i < gpu->n_instances; i++)
        if (strstr(gpu->instances[i].name, model->filter))
            ret_instances[n++] = &gpu->instances[i];
    if (n > 1)
        qsort(ret_instances, n, sizeof(*ret_instances), gpu->lost ? compare_name : orders[model->sort]);
    return n;
}
