/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * kvreplay's command line.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model.h"
#include "trace.h"

#define ENGINES_MAX 16

enum {
    OPTIONS_E_HELP = 1, /* and version: printed, nothing else to be done */
    OPTIONS_E_USAGE,    /* a sentence is on stderr */
};

struct options {
    bool elastic; /* else a limit of an equal share for each engine */
    bool live;    /* else in virtual time */
    double speed;
    unsigned workers; /* of each engine, as processes of their own; 0: one, in the engine's process */
    bool reserves;    /* the library keeps memory ready */
    bool hold;        /* each engine takes all it may have at the start, and keeps it */
    struct trace_options trace;
    uint64_t seed;
    struct model model;
    bool per_layer;
    uint64_t page_bytes; /* 0: as small as can be */
    const char *socket;  /* NULL: as libkvclient finds it */
    const char *prefix;  /* of the engines' names */
    bool json;
    const char *write_folder; /* write the traces there and do nothing else; or NULL */
    const char *specs[ENGINES_MAX];
    size_t n_specs;
};

int options_parse(int argc, char **argv, struct options *ret);
