/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Printing results.
 */

#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "base/parse.h"
#include "stats.h"

/* What is said of one engine, or of all together. */
struct row {
    const char *name, *trace;
    uint64_t requests;
    struct engine_counts counts;
    uint64_t refusals, promised, stamps, retries;
    struct ttft_summary ttft;
    const char *error;
};

static int summarize(const struct slot *slots, size_t n, struct ttft_summary *ret)
{
    const double *series[ENGINES_MAX];
    size_t lengths[ENGINES_MAX];

    for (size_t i = 0; i < n; i++) {
        series[i] = slots[i].ttft;
        lengths[i] = slots[i].n_ttft;
    }
    return ttft_summarize(series, lengths, n, ret);
}

static int engine_row(const struct slot *slot, struct row *ret)
{
    *ret = (struct row){
        .name = slot->instance,
        .trace = slot->spec,
        .requests = slot->trace->n,
        .counts = slot->counts,
        .refusals = slot->borrow.refusals,
        .promised = slot->borrow.promised,
        .stamps = slot->borrow.stamps,
        .retries = slot->borrow.retries,
        .error = *slot->error ? slot->error : NULL,
    };
    return summarize(slot, 1, &ret->ttft);
}

static int sum_row(const struct board *board, struct row *ret)
{
    struct row sum = {.name = "all", .trace = ""};

    for (size_t i = 0; i < board->n; i++) {
        const struct slot *slot = &board->slots[i];

        sum.requests += slot->trace->n;
        sum.counts.served += slot->counts.served;
        sum.counts.refused += slot->counts.refused;
        sum.counts.preempted += slot->counts.preempted;
        sum.counts.steps += slot->counts.steps;
        sum.refusals += slot->borrow.refusals;
        sum.promised += slot->borrow.promised;
        sum.stamps += slot->borrow.stamps;
        sum.retries += slot->borrow.retries;
    }
    *ret = sum;
    return summarize(board->slots, board->n, &ret->ttft);
}

static void print_seconds(double s)
{
    if (isnan(s))
        printf("%10s", "-");
    else
        printf("%10.2f", s);
}

static void print_row(const struct board *board, const struct row *row)
{
    char bytes[FORMAT_SIZE_MAX];

    printf("%-12s%10" PRIu64 "%10" PRIu64 "%10" PRIu64 "%11" PRIu64, row->name, row->requests,
           row->counts.served, row->counts.refused, row->counts.preempted);
    print_seconds(row->ttft.p50_s);
    print_seconds(row->ttft.p90_s);
    print_seconds(row->ttft.p99_s);
    if (row->counts.peak_blocks)
        printf("%12s", format_size(bytes, row->counts.peak_blocks * board_block_bytes(board)));
    printf("%s%s\n", *row->trace ? "  " : "", row->trace);
}

static void print_heading(const struct board *board)
{
    const struct options *o = board->options;
    char bytes[FORMAT_SIZE_MAX], speed[32] = "";

    if (o->live)
        snprintf(speed, sizeof(speed), ", %g times as fast", o->speed);
    printf("%s, %s%s: %.0f s in %.1f s; %s; budget %s%s\n", o->elastic ? "elastic" : "static",
           o->live ? "live" : "virtual time", speed, board->replayed_s, board->wall_s, o->model.name,
           format_size(bytes, board->budget_bytes), board->interrupted ? "; INTERRUPTED" : "");
    printf("%-12s%10s%10s%10s%11s%10s%10s%10s%12s  %s\n", "engine", "requests", "served", "refused",
           "preempted", "TTFT p50", "p90", "p99", "KV peak", "trace");
}

static void print_footing(const struct row *all)
{
    printf("%" PRIu64 " stamps checked; %" PRIu64 " requests for memory refused", all->stamps, all->refusals);
    if (all->retries)
        printf("; %" PRIu64 " failed driver calls made again", all->retries);
    putchar('\n');
}

int report_table(const struct board *board)
{
    struct row row;
    int r;

    print_heading(board);
    for (size_t i = 0; i < board->n; i++) {
        r = engine_row(&board->slots[i], &row);
        if (r < 0)
            return r;
        print_row(board, &row);
    }
    r = sum_row(board, &row);
    if (r < 0)
        return r;
    print_row(board, &row);
    print_footing(&row);
    return fflush(stdout) == 0 ? 0 : -errno;
}

/* To the last bit, for who compares: the library's own way of printing numbers forgives the last one. */
static void add_seconds(cJSON *object, const char *name, double s)
{
    char text[32];

    snprintf(text, sizeof(text), "%.17g", s);
    if (isnan(s))
        cJSON_AddNullToObject(object, name);
    else
        cJSON_AddRawToObject(object, name, text);
}

static void add_count(cJSON *object, const char *name, uint64_t n)
{
    cJSON_AddNumberToObject(object, name, (double)n);
}

static void add_row(cJSON *object, const struct row *row)
{
    cJSON *ttft;

    add_count(object, "requests", row->requests);
    add_count(object, "served", row->counts.served);
    add_count(object, "refused", row->counts.refused);
    add_count(object, "preempted", row->counts.preempted);
    add_count(object, "steps", row->counts.steps);
    ttft = cJSON_AddObjectToObject(object, "ttft_s");
    add_seconds(ttft, "p50", row->ttft.p50_s);
    add_seconds(ttft, "p90", row->ttft.p90_s);
    add_seconds(ttft, "p99", row->ttft.p99_s);
    add_count(object, "memory_refusals", row->refusals);
    add_count(object, "promised_blocks", row->promised);
    add_count(object, "stamps_checked", row->stamps);
    add_count(object, "driver_retries", row->retries);
}

static void add_engine(cJSON *array, const struct board *board, const struct row *row)
{
    cJSON *object = cJSON_CreateObject();

    cJSON_AddItemToArray(array, object);
    cJSON_AddStringToObject(object, "instance", row->name);
    cJSON_AddStringToObject(object, "trace", row->trace);
    add_row(object, row);
    add_count(object, "peak_blocks", row->counts.peak_blocks);
    add_count(object, "peak_bytes", row->counts.peak_blocks * board_block_bytes(board));
    if (row->error)
        cJSON_AddStringToObject(object, "error", row->error);
    else
        cJSON_AddNullToObject(object, "error");
}

static int fill(cJSON *root, const struct board *board)
{
    const struct options *o = board->options;
    struct row row;
    cJSON *engines;
    int r;

    cJSON_AddStringToObject(root, "sharing", o->elastic ? "elastic" : "static");
    cJSON_AddStringToObject(root, "time", o->live ? "live" : "virtual");
    cJSON_AddStringToObject(root, "model", o->model.name);
    add_count(root, "block_bytes", board_block_bytes(board));
    add_count(root, "budget_bytes", board->budget_bytes);
    cJSON_AddNumberToObject(root, "replayed_s", board->replayed_s);
    cJSON_AddNumberToObject(root, "wall_s", board->wall_s);
    cJSON_AddBoolToObject(root, "interrupted", board->interrupted);
    engines = cJSON_AddArrayToObject(root, "engines");
    for (size_t i = 0; i < board->n; i++) {
        r = engine_row(&board->slots[i], &row);
        if (r < 0)
            return r;
        add_engine(engines, board, &row);
    }
    r = sum_row(board, &row);
    if (r < 0)
        return r;
    add_row(cJSON_AddObjectToObject(root, "all"), &row);
    return 0;
}

int report_json(const struct board *board)
{
    cJSON *root = cJSON_CreateObject();
    char *text = NULL;
    int r;

    r = fill(root, board);
    if (r == 0)
        text = cJSON_Print(root);
    cJSON_Delete(root);
    if (r < 0)
        return r;
    if (!text)
        return -ENOMEM;
    r = puts(text) >= 0 && fflush(stdout) == 0 ? 0 : -EIO;
    cJSON_free(text);
    return r;
}
