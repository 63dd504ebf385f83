/* SPDX-License-Identifier: Apache-2.0 */
#include "top_model.h"

#include <string.h>

#include "base/arith.h"
#include "test.h"

static Kvcached__InstanceInfo instance(const char *name, uint64_t limit, uint64_t used)
{
    Kvcached__InstanceInfo info = KVCACHED__INSTANCE_INFO__INIT;

    info.domain = (char *)"uid-0";
    info.instance = (char *)name;
    info.limit_bytes = limit;
    info.used_bytes = used;
    info.serial = 1;
    return info;
}

static void look(struct top_model *model, uint64_t now_s, Kvcached__InstanceInfo *infos, size_t n,
                 bool operations)
{
    Kvcached__InfoReply gpu = KVCACHED__INFO_REPLY__INIT;
    Kvcached__InstanceInfo *pointers[8];

    gpu.total_bytes = 80 * GIB;
    gpu.free_bytes = 20 * GIB;
    check(n <= ARRAY_SIZE(pointers));
    for (size_t i = 0; i < n; i++)
        pointers[i] = &infos[i];
    check_eq(top_model_look(model, now_s * NSEC_PER_SEC, &gpu, pointers, n, operations), 0);
}

TEST(prealloc_is_cached_leased_and_reserved)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo info = instance("a", GIB, 100 * MIB);

    info.cached_bytes = 10 * MIB;
    info.leased_bytes = 3 * MIB;
    info.reserved_bytes = 2 * MIB;
    look(&model, 1, &info, 1, true);
    check(model.gpus[0].instances[0].prealloc_bytes.known);
    check_eq(model.gpus[0].instances[0].prealloc_bytes.value, 15 * MIB);
    check_eq(model.gpus[0].instances[0].used_bytes.value, 85 * MIB);
    /* What processes say of their caches may be ahead of what is charged. */
    info.cached_bytes = 200 * MIB;
    look(&model, 2, &info, 1, true);
    check_eq(model.gpus[0].instances[0].prealloc_bytes.value, 100 * MIB);
    check_eq(model.gpus[0].instances[0].used_bytes.value, 0);
}

TEST(old_daemons_leave_numbers_unknown)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo info = instance("a", GIB, 100 * MIB);

    look(&model, 1, &info, 1, false);
    look(&model, 2, &info, 1, false);
    check_eq(model.gpus[0].instances[0].held_bytes, 100 * MIB);
    check(!model.gpus[0].instances[0].prealloc_bytes.known);
    check(!model.gpus[0].instances[0].used_bytes.known);
    check(!model.gpus[0].instances[0].granted_rate.known);
}

TEST(rates_need_two_looks_at_one_record)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo info = instance("a", GIB, 0);

    look(&model, 1, &info, 1, true);
    check(!model.gpus[0].instances[0].granted_rate.known);
    info.total_granted_bytes = 40 * MIB;
    info.total_returned_bytes = 10 * MIB;
    look(&model, 3, &info, 1, true);
    check(model.gpus[0].instances[0].granted_rate.known);
    check_eq(model.gpus[0].instances[0].granted_rate.value, 20 * MIB);
    check_eq(model.gpus[0].instances[0].returned_rate.value, 5 * MIB);
    check_eq(model.gpus[0].instances[0].n_history, 2);
    info.serial = 2; /* deleted, and come again */
    look(&model, 4, &info, 1, true);
    check(!model.gpus[0].instances[0].granted_rate.known);
    check_eq(model.gpus[0].instances[0].n_history, 1);
    info.total_granted_bytes = 0; /* counted anew */
    look(&model, 5, &info, 1, true);
    check(!model.gpus[0].instances[0].granted_rate.known);
    check(!model.gpus[0].instances[0].returned_rate.known);
}

TEST(no_rate_over_an_outage)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo info = instance("a", GIB, 0);

    look(&model, 1, &info, 1, true);
    check_eq(top_model_lose(&model, 0, "No answer"), 0);
    check(model.gpus[0].lost);
    info.total_granted_bytes = MIB;
    look(&model, 60, &info, 1, true);
    check(!model.gpus[0].lost);
    check(!model.gpus[0].instances[0].granted_rate.known);
    check_eq(model.gpus[0].instances[0].n_history, 1);
}

TEST(a_daemon_started_anew_is_another)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo info = instance("a", GIB, MIB), *pointer = &info;
    Kvcached__InfoReply gpu = KVCACHED__INFO_REPLY__INIT;

    gpu.life = 1;
    check_eq(top_model_look(&model, NSEC_PER_SEC, &gpu, &pointer, 1, true), 0);
    gpu.life = 2;
    info.total_granted_bytes = MIB;
    check_eq(top_model_look(&model, 2 * NSEC_PER_SEC, &gpu, &pointer, 1, true), 0);
    check(!model.gpus[0].instances[0].granted_rate.known);
    check_eq(model.gpus[0].instances[0].n_history, 1);
    info.total_granted_bytes = 3 * MIB;
    check_eq(top_model_look(&model, 3 * NSEC_PER_SEC, &gpu, &pointer, 1, true), 0);
    check(model.gpus[0].instances[0].granted_rate.known);
    check_eq(model.gpus[0].instances[0].granted_rate.value, 2 * MIB);
}

TEST(history_keeps_the_latest)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};

    for (uint64_t i = 0; i < TOP_HISTORY + 3; i++) {
        Kvcached__InstanceInfo info = instance("a", GIB, i);

        look(&model, i + 1, &info, 1, true);
    }
    check_eq(model.gpus[0].instances[0].n_history, TOP_HISTORY);
    check_eq(model.gpus[0].instances[0].history[0], 3);
    check_eq(model.gpus[0].instances[0].history[TOP_HISTORY - 1], TOP_HISTORY + 2);
}

TEST(sorting_and_filter)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo infos[] = {instance("big", 100 * GIB, 9), instance("alone", 10, 8),
                                      instance("cut", 0, 1)};
    const struct top_instance *shown[3];

    look(&model, 1, infos, 3, true);
    infos[2].total_granted_bytes = MIB;
    look(&model, 2, infos, 3, true);
    check_eq(top_model_view(&model, &model.gpus[0], shown), 3);
    check_str(shown[0]->name, "big");
    check_str(shown[2]->name, "cut");
    model.sort = TOP_SORT_NAME;
    top_model_view(&model, &model.gpus[0], shown);
    check_str(shown[0]->name, "alone");
    model.sort = TOP_SORT_SHARE;
    top_model_view(&model, &model.gpus[0], shown);
    check_str(shown[0]->name, "cut");
    check_str(shown[1]->name, "alone");
    model.sort = TOP_SORT_RATE;
    top_model_view(&model, &model.gpus[0], shown);
    check_str(shown[0]->name, "cut");
    model.filter[0] = 'b';
    check_eq(top_model_view(&model, &model.gpus[0], shown), 1);
    check_str(shown[0]->name, "big");
}
