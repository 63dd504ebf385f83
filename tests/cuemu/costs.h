/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What driver calls cost: per call, and per 2 MiB as a function of the size of the handle that the call works
 * on. Pure. The text format is described in README.md; the built-in tables are written in it too.
 */

#include <stddef.h>
#include <stdint.h>

enum cost {
    COST_RESERVE,
    COST_CREATE,
    COST_RELEASE,
    COST_MAP,
    COST_UNMAP,
    COST_ACCESS,
    COST_EXPORT,
    COST_IMPORT,
    COST_MEMSET,
    COST_N,
};

#define COST_POINTS_MAX 8

struct cost_curve {
    double call_us;
    unsigned n_points;
    struct {
        double granules;
        double us_per_granule;
    } points[COST_POINTS_MAX];
};

struct cost_table {
    struct cost_curve curves[COST_N];
};

/* "none", "a100" or "gb10": the text of that table; NULL for another name. */
const char *costs_builtin(const char *name);

/* 0, or -EINVAL with the number of the bad line in *ret_line. */
int costs_parse(const char *text, struct cost_table *ret_table, unsigned *ret_line);

uint64_t costs_of(const struct cost_table *table, enum cost cost, uint64_t bytes);
