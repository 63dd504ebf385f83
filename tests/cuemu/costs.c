/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The latency model. What a call costs per 2 MiB depends on the size of the handle far more than on the
 * number of handles in the call, so a table gives a curve over handle sizes: straight lines over the
 * logarithm of the size, level beyond the outermost points.
 *
 * Sources: a100 is one published table of single 2 MiB calls on an A100; the shares of larger handles are
 * those measured on a GB10, scaled, as nobody has published them for an A100; release is taken to scale as
 * unmap does. Import has no published number: 20 us is an assumption. memset is stream time, not the
 * caller's.
 */

#include "costs.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"

#define GRANULE (2.0 * MIB)

static const char *const call_names[COST_N] = {
    [COST_RESERVE] = "cuMemAddressReserve",
    [COST_CREATE] = "cuMemCreate",
    [COST_RELEASE] = "cuMemRelease",
    [COST_MAP] = "cuMemMap",
    [COST_UNMAP] = "cuMemUnmap",
    [COST_ACCESS] = "cuMemSetAccess",
    [COST_EXPORT] = "cuMemExportToShareableHandle",
    [COST_IMPORT] = "cuMemImportFromShareableHandle",
    [COST_MEMSET] = "cuMemset",
};

static const struct {
    const char *name, *text;
} builtins[] = {
    {"none", ""},
    {"a100", "cuMemAddressReserve call:19\n"
             "cuMemCreate 1:193 8:175 64:205 256:208\n"
             "cuMemRelease 1:23 8:16.4 64:10 256:9.4\n"
             "cuMemMap call:1.45\n"
             "cuMemUnmap 1:25.6 8:18.3 64:11.1 256:10.4\n"
             "cuMemSetAccess 1:36 8:20.4 64:13.2 256:12.5\n"
             "cuMemImportFromShareableHandle call:20\n"
             "cuMemset 1:7.7\n"},
    {"gb10", "cuMemAddressReserve call:19\n"
             "cuMemCreate 1:66 8:60 64:70 256:71\n"
             "cuMemRelease 1:32 8:22.8 64:13.9 256:13.1\n"
             "cuMemMap call:0.7\n"
             "cuMemUnmap 1:36 8:25.7 64:15.6 256:14.7\n"
             "cuMemSetAccess 1:36 8:20.4 64:13.2 256:12.5\n"
             "cuMemImportFromShareableHandle call:20\n"
             "cuMemset 1:7.7\n"},
};

const char *costs_builtin(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(builtins); i++)
        if (strcmp(builtins[i].name, name) == 0)
            return builtins[i].text;
    return NULL;
}

static int find_call(const char *name)
{
    for (int i = 0; i < COST_N; i++)
        if (strcmp(call_names[i], name) == 0)
            return i;
    return -EINVAL;
}

/* "call:20" or "64:13.2"; points come in rising order. */
static int parse_term(char *term, struct cost_curve *curve)
{
    char *colon = strchr(term, ':');
    double key, value;

    if (!colon)
        return -EINVAL;
    *colon = '\0';
    if (parse_decimal(colon + 1, &value) < 0)
        return -EINVAL;
    if (strcmp(term, "call") == 0) {
        curve->call_us = value;
        return 0;
    }
    if (parse_decimal(term, &key) < 0 || key <= 0 || curve->n_points == COST_POINTS_MAX)
        return -EINVAL;
    if (curve->n_points > 0 && curve->points[curve->n_points - 1].granules >= key)
        return -EINVAL;
    curve->points[curve->n_points].granules = key;
    curve->points[curve->n_points].us_per_granule = value;
    curve->n_points++;
    return 0;
}

static int parse_line(char *line, struct cost_table *table)
{
    char *rest, *word;
    int call;

    line[strcspn(line, "#")] = '\0';
    word = strtok_r(line, " \t\r", &rest);
    if (!word)
        return 0;
    call = find_call(word);
    if (call < 0)
        return call;
    table->curves[call] = (struct cost_curve){0};
    while ((word = strtok_r(NULL, " \t\r", &rest)))
        if (parse_term(word, &table->curves[call]) < 0)
            return -EINVAL;
    return 0;
}

int costs_parse(const char *text, struct cost_table *ret_table, unsigned *ret_line)
{
    struct cost_table table = {0};
    unsigned number = 1;

    for (; *text; number++) {
        size_t length = strcspn(text, "\n");
        char line[256];

        if (length >= sizeof(line) || snprintf(line, sizeof(line), "%.*s", (int)length, text) < 0 ||
            parse_line(line, &table) < 0) {
            *ret_line = number;
            return -EINVAL;
        }
        text += length + (text[length] == '\n');
    }
    *ret_table = table;
    return 0;
}

static double share_at(const struct cost_curve *curve, double granules)
{
    unsigned above = 0;
    double low, high, where;

    while (above < curve->n_points && curve->points[above].granules < granules)
        above++;
    if (above == 0)
        return curve->points[0].us_per_granule;
    if (above == curve->n_points)
        return curve->points[above - 1].us_per_granule;
    low = log2(curve->points[above - 1].granules);
    high = log2(curve->points[above].granules);
    where = (log2(granules) - low) / (high - low);
    return curve->points[above - 1].us_per_granule * (1 - where) +
           curve->points[above].us_per_granule * where;
}

uint64_t costs_of(const struct cost_table *table, enum cost cost, uint64_t bytes)
{
    const struct cost_curve *curve = &table->curves[cost];
    double granules = (double)bytes / GRANULE, us = curve->call_us;

    if (curve->n_points > 0 && bytes > 0)
        us += share_at(curve, granules) * granules;
    return (uint64_t)(us * 1000);
}
