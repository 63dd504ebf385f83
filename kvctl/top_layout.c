/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The first line is the title, the last one the keys; between them is a list of lines that scrolls: each
 * instance has a name, a bar and its numbers, then the GPU has a bar. A bar's cells are rounded down, but
 * what there is has one cell at least.
 */

#include "top_layout.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"
#include "text.h"

#define BAR_MAX 60

static const char *const sort_names[] = {
    [TOP_SORT_USED] = "used",
    [TOP_SORT_NAME] = "name",
    [TOP_SORT_SHARE] = "share",
    [TOP_SORT_RATE] = "rate",
};

static const char *const help_lines[] = {
    "q             quit",
    "u n p r       sort by use, name, share of the limit, rate",
    "/             filter by a part of the name; Enter ends, Esc clears",
    "Up Down       scroll; also j and k, Page Up and Page Down",
    "Mouse         the wheel scrolls, a click marks an instance, or changes the order",
    "h ?           this help, and back",
    "",
    "[==##--]      = kept in reserve (cached, leased, reserved), # used, - free",
};

/* Where the next line of the list goes: the list may begin above the screen and end below it. */
struct pen {
    struct top_screen *screen;
    long row, first, last;               /* row on the screen; the list's are first to last */
    const struct top_instance *instance; /* that the lines are about */
};

static void put(struct top_screen *screen, long row, unsigned column, enum top_style style, const char *text)
{
    for (; *text && column < screen->width; text++, column++) {
        size_t at = (size_t)row * screen->width + column;

        screen->text[at] = *text;
        screen->style[at] = (unsigned char)style;
    }
}

/* Whether the line can be seen. */
static bool is_seen(const struct pen *pen)
{
    if (pen->row < pen->first || pen->row > pen->last)
        return false;
    pen->screen->rows[pen->row] = pen->instance;
    return true;
}

__attribute__((format(printf, 3, 4))) static void line(struct pen *pen, enum top_style style,
                                                       const char *format, ...)
{
    char raw[TEXT_MAX], clean[TEXT_MAX];
    va_list args;

    if (is_seen(pen)) {
        va_start(args, format);
        vsnprintf(raw, sizeof(raw), format, args);
        va_end(args);
        put(pen->screen, pen->row, 0, style, text_clean(clean, raw));
    }
    pen->row++;
}

/* ---- Bars ---- */

static unsigned cells_of(uint64_t bytes, uint64_t of_bytes, unsigned width)
{
    unsigned cells;

    if (bytes == 0 || of_bytes == 0)
        return bytes ? width : 0;
    cells = (unsigned)((double)u64_min(bytes, of_bytes) / (double)of_bytes * (double)width);
    return cells ? cells : 1;
}

static void bar(struct pen *pen, uint64_t prealloc, uint64_t used, uint64_t of_bytes)
{
    unsigned width = pen->screen->width - 2 < BAR_MAX ? pen->screen->width - 2 : BAR_MAX;
    unsigned n_prealloc = cells_of(prealloc, of_bytes, width), n_used = cells_of(used, of_bytes, width);
    char cells[BAR_MAX + 1];

    if (is_seen(pen)) {
        n_used = n_used < width ? n_used : width;
        n_prealloc = n_prealloc < width - n_used ? n_prealloc : width - n_used;
        memset(cells, '-', width);
        cells[width] = '\0';
        put(pen->screen, pen->row, 0, TOP_TITLE, "[");
        put(pen->screen, pen->row, 1, TOP_FREE, cells);
        put(pen->screen, pen->row, width + 1, TOP_TITLE, "]");
        memset(cells, '#', n_used);
        cells[n_used] = '\0';
        put(pen->screen, pen->row, 1 + n_prealloc, TOP_USED, cells);
        memset(cells, '=', n_prealloc);
        cells[n_prealloc] = '\0';
        put(pen->screen, pen->row, 1, TOP_PREALLOC, cells);
    }
    pen->row++;
}

static const char *sparkline(char buf[static TOP_HISTORY + 1], const struct top_instance *instance)
{
    static const char levels[] = "_.-=*#";
    uint64_t top = instance->limit_bytes;

    for (unsigned i = 0; i < instance->n_history; i++)
        top = u64_max(top, instance->history[i]);
    for (unsigned i = 0; i < instance->n_history; i++)
        buf[i] = levels[cells_of(instance->history[i], top, sizeof(levels) - 2)];
    buf[instance->n_history] = '\0';
    return buf;
}

/* ---- Instances and GPUs ---- */

static const char *number(char buf[static FORMAT_SIZE_MAX], struct top_number bytes)
{
    return bytes.known ? format_size(buf, bytes.value) : "unknown";
}

static const char *name_of(char buf[static TEXT_MAX], const struct top_instance *instance)
{
    snprintf(buf, TEXT_MAX, "%s%s%s", instance->is_namesake ? instance->domain : "",
             instance->is_namesake ? "/" : "", instance->name);
    return buf;
}

static void instance_lines(struct pen *pen, const struct top_instance *instance)
{
    char prealloc[FORMAT_SIZE_MAX], used[FORMAT_SIZE_MAX], limit[FORMAT_SIZE_MAX], left[FORMAT_SIZE_MAX];
    char granted[FORMAT_SIZE_MAX], returned[FORMAT_SIZE_MAX], percent[TEXT_PERCENT_MAX];
    char history[TOP_HISTORY + 1], name[TEXT_MAX];
    bool split = instance->used_bytes.known;
    enum top_style style = TOP_TITLE;
    uint64_t in_use = split ? instance->used_bytes.value : instance->held_bytes;

    pen->instance = instance;
    if (instance->over_limit || instance->frozen)
        style = TOP_WARNING;
    line(pen, instance->marked ? TOP_MARKED : style, "IPC: %s%s%s", name_of(name, instance),
         instance->over_limit ? "  over limit" : "", instance->frozen ? "  frozen" : "");
    bar(pen, split ? instance->prealloc_bytes.value : 0, in_use, instance->limit_bytes);
    /* Without the split, what is held is not what is used. */
    line(pen, TOP_PLAIN, "Prealloc: %s | %s: %s / %s (%s) | Free: %s",
         number(prealloc, instance->prealloc_bytes), split ? "Used" : "Held", format_size(used, in_use),
         format_size(limit, instance->limit_bytes),
         text_percent(percent, instance->held_bytes, instance->limit_bytes),
         format_size(left, u64_sub_floor(instance->limit_bytes, instance->held_bytes)));
    line(pen, TOP_DIM, "Granted/s: %s | Returned/s: %s | %s", number(granted, instance->granted_rate),
         number(returned, instance->returned_rate), sparkline(history, instance));
    pen->instance = NULL;
    line(pen, TOP_PLAIN, "%s", "");
}

/* Who was there at the last look; nothing of that look's figures need hold any more. */
static void lost_lines(struct pen *pen, const struct top_gpu *gpu,
                       const struct top_instance *const *instances, size_t n)
{
    line(pen, TOP_WARNING, "GPU %u: unknown. %s; trying again", gpu->index, gpu->reason);
    for (size_t i = 0; i < n; i++) {
        char name[TEXT_MAX];

        pen->instance = instances[i];
        line(pen, instances[i]->marked ? TOP_MARKED : TOP_DIM, "IPC: %s  unknown",
             name_of(name, instances[i]));
    }
    pen->instance = NULL;
    line(pen, TOP_PLAIN, "%s", "");
}

static bool gpu_lines(struct pen *pen, const struct top_model *model, const struct top_gpu *gpu)
{
    const struct top_instance **instances = calloc(gpu->n_instances + 1, sizeof(*instances));
    char used[FORMAT_SIZE_MAX], total[FORMAT_SIZE_MAX], left[FORMAT_SIZE_MAX], percent[TEXT_PERCENT_MAX];
    uint64_t used_bytes = u64_sub_floor(gpu->total_bytes, gpu->free_bytes);
    size_t n;

    if (!instances)
        return false;
    n = top_model_view(model, gpu, instances);
    if (gpu->lost) {
        lost_lines(pen, gpu, instances, n);
        free(instances);
        return true;
    }
    if (n == 0)
        line(pen, TOP_DIM, "%s", model->filter[0] ? "No instance has such a name" : "No instances to show");
    for (size_t i = 0; i < n; i++)
        instance_lines(pen, instances[i]);
    free(instances);
    if (model->n_gpus > 1)
        line(pen, TOP_TITLE, "GPU %u Memory Usage", gpu->index);
    else
        line(pen, TOP_TITLE, "GPU Memory Usage");
    bar(pen, 0, used_bytes, gpu->total_bytes);
    line(pen, TOP_PLAIN, "Used: %s / %s (%s) | Free: %s", format_size(used, used_bytes),
         format_size(total, gpu->total_bytes), text_percent(percent, used_bytes, gpu->total_bytes),
         format_size(left, gpu->free_bytes));
    line(pen, TOP_PLAIN, "%s", "");
    return true;
}

/* ---- Screens ---- */

static bool list(struct pen *pen, const struct top_model *model, const struct top_view *view)
{
    if (view->help) {
        for (size_t i = 0; i < ARRAY_SIZE(help_lines); i++)
            line(pen, TOP_PLAIN, "%s", help_lines[i]);
        return true;
    }
    for (size_t i = 0; i < model->n_gpus; i++)
        if (!gpu_lines(pen, model, &model->gpus[i]))
            return false;
    return true;
}

static void last_line(struct pen *pen, const struct top_model *model, const struct top_view *view)
{
    static const char keys[] = "Press 'q' to quit, 'h' for help; ";

    if (view->typing || model->filter[0]) {
        line(pen, TOP_DIM, "Filter: %s%s", model->filter, view->typing ? "_" : "");
        return;
    }
    line(pen, TOP_DIM, "%ssorted by %s", keys, sort_names[model->sort]);
    pen->screen->sort_column = sizeof(keys) - 1;
    pen->screen->sort_length = (unsigned)(strlen("sorted by ") + strlen(sort_names[model->sort]));
}

static bool fill(struct top_screen *screen, const struct top_model *model, const struct top_view *view)
{
    const long visible = (long)screen->height - 3;
    struct pen pen = {.screen = screen, .row = 0, .first = 1, .last = 0}; /* the first time nothing is seen */
    long n_lines;

    if (!list(&pen, model, view))
        return false;
    n_lines = pen.row;
    if (n_lines > visible && view->scroll)
        screen->scrolled =
            (unsigned)(n_lines - visible < (long)view->scroll ? n_lines - visible : view->scroll);
    pen = (struct pen){.screen = screen, .row = 2 - (long)screen->scrolled, .first = 2, .last = 1 + visible};
    put(screen, 0, 0, TOP_TITLE, "KVCache Memory Usage");
    if (!list(&pen, model, view))
        return false;
    pen = (struct pen){.screen = screen, .row = screen->height - 1, .last = screen->height - 1};
    last_line(&pen, model, view);
    return true;
}

struct top_screen *top_layout(const struct top_model *model, const struct top_view *view, unsigned width,
                              unsigned height)
{
    _cleanup_(top_screen_freep) struct top_screen *screen = calloc(1, sizeof(*screen));
    size_t n = (size_t)width * height;

    if (!screen)
        return NULL;
    screen->width = width;
    screen->height = height;
    screen->text = malloc(n + 1);
    screen->style = calloc(n + 1, 1);
    screen->rows = calloc((size_t)height + 1, sizeof(*screen->rows));
    if (!screen->text || !screen->style || !screen->rows)
        return NULL;
    memset(screen->text, ' ', n);
    screen->text[n] = '\0';
    if (width < TOP_WIDTH_MIN || height < TOP_HEIGHT_MIN) {
        if (height > 0)
            put(screen, 0, 0, TOP_WARNING, "Too small for kvtop");
        return steal_pointer(screen);
    }
    return fill(screen, model, view) ? steal_pointer(screen) : NULL;
}

struct top_screen *top_screen_free(struct top_screen *screen)
{
    if (!screen)
        return NULL;
    free(screen->text);
    free(screen->style);
    free(screen->rows);
    free(screen);
    return NULL;
}

enum top_action top_layout_click(const struct top_screen *screen, unsigned column, unsigned row,
                                 const struct top_instance **ret_instance)
{
    if (column >= screen->width || row >= screen->height)
        return TOP_ACTION_NONE;
    if (screen->rows[row]) {
        *ret_instance = screen->rows[row];
        return TOP_ACTION_MARK;
    }
    if (row == screen->height - 1 && column >= screen->sort_column &&
        column - screen->sort_column < screen->sort_length)
        return TOP_ACTION_SORT;
    return TOP_ACTION_NONE;
}
