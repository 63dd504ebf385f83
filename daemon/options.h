/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Options: the command line and the environment variables that stand for parts of it. What is given here wins
 * over the configuration file.
 */

#include <stdbool.h>
#include <stdint.h>

#include "config.h"

#define OPTIONS_ERROR_MAX CONFIG_ERROR_MAX

enum {
    _OPTIONS_E_SUCCESS,
    OPTIONS_E_HELP,    /* --help was asked for */
    OPTIONS_E_VERSION, /* --version was asked for */
};

/* Strings are borrowed from argv and the environment. */
struct options {
    const char *gpu;     /* number in PCI order, or UUID; NULL: the first */
    const char *emulate; /* sizes of the emulated devices; NULL: the real driver */
    const char *socket;
    const char *config; /* NULL: the default file, if there is one */
    const char *state_dir;
    const char *metrics_listen;
    uint64_t budget_bytes;    /* CONFIG_UNSET: not given */
    uint64_t utilization_ppm; /* CONFIG_UNSET: not given */
    uint64_t log_level;       /* CONFIG_UNSET: not given */
    bool check_config;
};

extern const char options_help[];

/* 0, OPTIONS_E_*, or -EINVAL with one sentence in `error`. */
int options_parse(int argc, char **argv, struct options *ret, char error[static OPTIONS_ERROR_MAX]);

/* Where it is, or would be. */
const char *options_config_file(const struct options *options);

/* Reads the configuration file. 0, or negative with one sentence in `error`. */
int options_load_config(const struct options *options, struct config **ret,
                        char error[static CONFIG_ERROR_MAX]);

/* Makes it what the daemon of that GPU goes by: config_for_gpu(), with the options laid over it. 0 or
 * -ENOMEM, with a sentence. */
int options_settle(const struct options *options, unsigned gpu_index, const char *gpu_uuid,
                   struct config *config, char error[static CONFIG_ERROR_MAX]);
