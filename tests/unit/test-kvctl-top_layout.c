/* SPDX-License-Identifier: Apache-2.0 */
#include "top_layout.h"

#include <stdio.h>
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

static void look(struct top_model *model, uint32_t index, uint64_t now_s, Kvcached__InstanceInfo *info,
                 bool operations)
{
    Kvcached__InfoReply gpu = KVCACHED__INFO_REPLY__INIT;

    gpu.gpu_index = index;
    gpu.total_bytes = 80 * GIB;
    gpu.free_bytes = 20 * GIB;
    check_eq(top_model_look(model, now_s * NSEC_PER_SEC, &gpu, &info, info != NULL, operations), 0);
}

/* Trailing blanks apart. */
static void expect(const struct top_model *model, const struct top_view *view, unsigned width,
                   unsigned height, const char *text)
{
    _cleanup_(top_screen_freep) struct top_screen *screen = top_layout(model, view, width, height);
    char *printed = NULL;
    size_t size;
    FILE *out = open_memstream(&printed, &size);

    check(screen);
    for (unsigned row = 0; row < height; row++) {
        int n = (int)width;

        while (n > 0 && screen->text[row * width + (unsigned)n - 1] == ' ')
            n--;
        fprintf(out, "%.*s\n", n, screen->text + row * width);
    }
    fclose(out);
    check_str(printed, text);
    free(printed);
}

TEST(one_instance)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo info = instance("vllm", 60 * GIB, 15 * GIB);

    info.cached_bytes = 2 * GIB;
    info.leased_bytes = GIB;
    look(&model, 0, 1, &info, true);
    info.total_granted_bytes = 4 * GIB;
    look(&model, 0, 3, &info, true);
    expect(&model, &(struct top_view){0}, 80, 14,
           "KVCache Memory Usage\n"
           "\n"
           "IPC: vllm\n"
           "[===############---------------------------------------------]\n"
           "Prealloc: 3.00 GB | Used: 12.00 GB / 60.00 GB (25.0 %) | Free: 45.00 GB\n"
           "Granted/s: 2.00 GB | Returned/s: 0 B | ..\n"
           "\n"
           "GPU Memory Usage\n"
           "[#############################################---------------]\n"
           "Used: 60.00 GB / 80.00 GB (75.0 %) | Free: 20.00 GB\n"
           "\n"
           "\n"
           "\n"
           "Press 'q' to quit, 'h' for help; sorted by used\n");
}

TEST(namesakes_are_told_apart)
{
    _cleanup_(top_model_deinit) struct top_model model = {.sort = TOP_SORT_NAME};
    _cleanup_(top_screen_freep) struct top_screen *screen = NULL;
    Kvcached__InstanceInfo infos[] = {instance("a", GIB, 1), instance("b", GIB, 1), instance("a", GIB, 1)};
    Kvcached__InstanceInfo *pointers[] = {&infos[0], &infos[1], &infos[2]};
    Kvcached__InfoReply gpu = KVCACHED__INFO_REPLY__INIT;

    infos[0].domain = (char *)"tenant";
    check_eq(top_model_look(&model, 1, &gpu, pointers, 3, true), 0);
    screen = top_layout(&model, &(struct top_view){0}, 80, 24);
    check(strncmp(screen->text + (size_t)2 * 80, "IPC: tenant/a ", 14) == 0);
    check(strncmp(screen->text + (size_t)7 * 80, "IPC: uid-0/a ", 13) == 0);
    check(strncmp(screen->text + (size_t)12 * 80, "IPC: b ", 7) == 0);
}

TEST(unknown_is_no_number)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo info = instance("old\033[2J", 40 * GIB, 10 * GIB);

    info.over_limit = true;
    look(&model, 0, 1, &info, false);
    check_eq(top_model_lose(&model, 1, "The daemon has closed the connection"), 0);
    expect(&model, &(struct top_view){0}, 42, 14,
           "KVCache Memory Usage\n"
           "\n"
           "IPC: old\\x1b[2J  over limit\n"
           "[##########------------------------------]\n"
           "Prealloc: unknown | Held: 10.00 GB / 40.00\n"
           "Granted/s: unknown | Returned/s: unknown |\n"
           "\n"
           "GPU 0 Memory Usage\n"
           "[##############################----------]\n"
           "Used: 60.00 GB / 80.00 GB (75.0 %) | Free:\n"
           "\n"
           "GPU 1: unknown. The daemon has closed the\n"
           "\n"
           "Press 'q' to quit, 'h' for help; sorted by\n");
}

TEST(of_a_lost_gpu_only_names_are_left)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    Kvcached__InstanceInfo infos[] = {instance("pear", GIB, 1), instance("apple", GIB, 0)};
    Kvcached__InstanceInfo *pointers[] = {&infos[0], &infos[1]};
    Kvcached__InfoReply gpu = KVCACHED__INFO_REPLY__INIT;

    gpu.total_bytes = 80 * GIB;
    infos[0].over_limit = true;
    check_eq(top_model_look(&model, 1, &gpu, pointers, 2, true), 0);
    check_eq(top_model_lose(&model, 0, "It is silent"), 0);
    expect(&model, &(struct top_view){0}, 60, 8,
           "KVCache Memory Usage\n"
           "\n"
           "GPU 0: unknown. It is silent; trying again\n"
           "IPC: apple  unknown\n"
           "IPC: pear  unknown\n"
           "\n"
           "\n"
           "Press 'q' to quit, 'h' for help; sorted by used\n");
    strcpy(model.filter, "ear");
    expect(&model, &(struct top_view){0}, 40, 6,
           "KVCache Memory Usage\n\n"
           "GPU 0: unknown. It is silent; trying aga\n"
           "IPC: pear  unknown\n"
           "\n"
           "Filter: ear\n");
}

TEST(bars_show_what_is_little_or_too_much)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    _cleanup_(top_screen_freep) struct top_screen *little = NULL, *much = NULL;
    Kvcached__InstanceInfo info = instance("a", 80 * GIB, 1);

    look(&model, 0, 1, &info, true);
    little = top_layout(&model, &(struct top_view){0}, 80, 14);
    check(strncmp(little->text + 240, "[#-", 3) == 0);
    check_eq(little->style[241], TOP_USED);
    check_eq(little->style[242], TOP_FREE);
    info = instance("a", GIB, 3 * GIB);
    info.leased_bytes = GIB;
    look(&model, 0, 2, &info, true);
    much = top_layout(&model, &(struct top_view){0}, 80, 14);
    check(strncmp(much->text + 240, "[############################################################]", 62) ==
          0);
}

TEST(scrolling_stops_at_the_end)
{
    _cleanup_(top_model_deinit) struct top_model model = {0};
    _cleanup_(top_screen_freep) struct top_screen *screen = NULL;

    look(&model, 0, 1, NULL, true);
    expect(&model, &(struct top_view){.scroll = 1}, 40, 6,
           "KVCache Memory Usage\n\n"
           "GPU Memory Usage\n"
           "[############################----------]\n"
           "Used: 60.00 GB / 80.00 GB (75.0 %) | Fre\n"
           "Press 'q' to quit, 'h' for help; sorted\n");
    screen = top_layout(&model, &(struct top_view){.scroll = 99}, 40, 6);
    check_eq(screen->scrolled, 2);
}

TEST(filter_help_and_small_terminals)
{
    _cleanup_(top_model_deinit) struct top_model model = {.filter = "x"};
    _cleanup_(top_screen_freep) struct top_screen *nothing = NULL;

    look(&model, 0, 1, NULL, true);
    expect(&model, &(struct top_view){.typing = true}, 40, 6,
           "KVCache Memory Usage\n\nNo instance has such a name\nGPU Memory Usage\n"
           "[############################----------]\nFilter: x_\n");
    expect(&model, &(struct top_view){.help = true}, 40, 6,
           "KVCache Memory Usage\n\nq             quit\nu n p r       sort by use, name, share o\n"
           "/             filter by a part of the na\nFilter: x\n");
    expect(&model, &(struct top_view){0}, 39, 2, "Too small for kvtop\n\n");
    expect(&model, &(struct top_view){0}, 9, 1, "Too small\n");
    nothing = top_layout(&model, &(struct top_view){0}, 0, 0);
    check(nothing);
}

/* Where on a screen of 80 by 14 with one instance, and what that means. */
TEST(clicks)
{
    static const struct {
        unsigned column, row;
        enum top_action action;
    } clicks[] = {
        {0, 0, TOP_ACTION_NONE},   {0, 1, TOP_ACTION_NONE},
        {0, 2, TOP_ACTION_MARK},   {79, 2, TOP_ACTION_MARK},
        {5, 5, TOP_ACTION_MARK},   {0, 6, TOP_ACTION_NONE},
        {0, 7, TOP_ACTION_NONE},   {0, 8, TOP_ACTION_NONE},
        {32, 13, TOP_ACTION_NONE}, {33, 13, TOP_ACTION_SORT},
        {46, 13, TOP_ACTION_SORT}, {47, 13, TOP_ACTION_NONE},
        {33, 12, TOP_ACTION_NONE}, {80, 2, TOP_ACTION_NONE},
        {0, 14, TOP_ACTION_NONE},  {UINT32_MAX, UINT32_MAX, TOP_ACTION_NONE},
    };
    _cleanup_(top_model_deinit) struct top_model model = {0};
    _cleanup_(top_screen_freep) struct top_screen *screen = NULL;
    Kvcached__InstanceInfo info = instance("a", GIB, 1);

    look(&model, 0, 1, &info, true);
    screen = top_layout(&model, &(struct top_view){0}, 80, 14);
    check(strncmp(screen->text + (size_t)13 * 80 + 33, "sorted by used ", 15) == 0);
    for (size_t i = 0; i < ARRAY_SIZE(clicks); i++) {
        const struct top_instance *clicked = NULL;

        check_eq(top_layout_click(screen, clicks[i].column, clicks[i].row, &clicked), clicks[i].action);
        check(clicked == (clicks[i].action == TOP_ACTION_MARK ? &model.gpus[0].instances[0] : NULL));
    }
}

TEST(clicks_on_what_is_scrolled_lost_or_something_else)
{
    _cleanup_(top_model_deinit) struct top_model model = {.sort = TOP_SORT_NAME};
    _cleanup_(top_screen_freep) struct top_screen *scrolled = NULL, *lost = NULL, *help = NULL, *tiny = NULL;
    Kvcached__InstanceInfo infos[] = {instance("a", GIB, 1), instance("b", GIB, 1)};
    Kvcached__InstanceInfo *pointers[] = {&infos[0], &infos[1]};
    Kvcached__InfoReply gpu = KVCACHED__INFO_REPLY__INIT;
    const struct top_instance *clicked = NULL;

    check_eq(top_model_look(&model, 1, &gpu, pointers, 2, true), 0);
    scrolled = top_layout(&model, &(struct top_view){.scroll = 4}, 80, 9);
    check_eq(top_layout_click(scrolled, 0, 2, &clicked), TOP_ACTION_NONE); /* the line below a */
    check_eq(top_layout_click(scrolled, 0, 3, &clicked), TOP_ACTION_MARK);
    check_str(clicked->name, "b");
    help = top_layout(&model, &(struct top_view){.help = true}, 80, 24);
    check_eq(top_layout_click(help, 0, 2, &clicked), TOP_ACTION_NONE);
    tiny = top_layout(&model, &(struct top_view){0}, 9, 3);
    check_eq(top_layout_click(tiny, 0, 2, &clicked), TOP_ACTION_NONE);
    check_eq(top_model_lose(&model, 0, "It is silent"), 0);
    strcpy(model.filter, "b");
    lost = top_layout(&model, &(struct top_view){0}, 80, 24);
    check_eq(top_layout_click(lost, 0, 2, &clicked), TOP_ACTION_NONE);
    check_eq(top_layout_click(lost, 9, 3, &clicked), TOP_ACTION_MARK);
    check_str(clicked->name, "b");
    check_eq(top_layout_click(lost, 35, 23, &clicked), TOP_ACTION_NONE); /* there stands the filter */
}

TEST(one_mark_at_most)
{
    _cleanup_(top_model_deinit) struct top_model model = {.sort = TOP_SORT_NAME};
    _cleanup_(top_screen_freep) struct top_screen *screen = NULL;
    Kvcached__InstanceInfo infos[] = {instance("a", GIB, 1), instance("b", GIB, 2)};
    Kvcached__InstanceInfo *pointers[] = {&infos[0], &infos[1]};
    Kvcached__InfoReply gpu = KVCACHED__INFO_REPLY__INIT;

    check_eq(top_model_look(&model, 1, &gpu, pointers, 2, true), 0);
    top_model_mark(&model, &model.gpus[0].instances[0]);
    top_model_mark(&model, &model.gpus[0].instances[1]);
    check(!model.gpus[0].instances[0].marked);
    model.sort = TOP_SORT_USED;
    check_eq(top_model_look(&model, 2, &gpu, pointers, 2, true), 0); /* the mark stays with its record */
    screen = top_layout(&model, &(struct top_view){0}, 80, 24);
    check(strncmp(screen->text + (size_t)2 * 80, "IPC: b ", 7) == 0);
    check_eq(screen->style[2 * 80], TOP_MARKED);
    check_eq(screen->style[7 * 80], TOP_TITLE);
    top_model_mark(&model, &model.gpus[0].instances[1]);
    check(!model.gpus[0].instances[1].marked);
}
