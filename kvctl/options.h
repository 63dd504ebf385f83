/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Options of kvctl's command line. They may stand before, between and after the words of the command; "--"
 * ends them. Pure.
 */

enum {
    OPTION_SOCKET = 1 << 0,
    OPTION_GPU = 1 << 1,
    OPTION_JSON = 1 << 2,
    OPTION_FORCE = 1 << 3,
    OPTION_HELP = 1 << 4,
    OPTION_VERSION = 1 << 5,
    OPTION_ALL = 1 << 6,
    OPTION_FOLLOW = 1 << 7,
    OPTION_INTERVAL = 1 << 8,
};

enum {
    _OPTIONS_E_SUCCESS,
    OPTIONS_E_UNKNOWN,  /* no such option */
    OPTIONS_E_MISSING,  /* it needs a value */
    OPTIONS_E_UNWANTED, /* it takes none */
};

struct options {
    unsigned given; /* OPTION_* */
    const char *socket;
    const char *gpu;
    const char *interval; /* seconds */
    int n_words;
    char **words; /* into argv, which is reordered */
};

/* On failure *ret_offender is the argument that cannot be. */
int options_parse(int argc, char **argv, struct options *ret, const char **ret_offender);

/* "--json", of one OPTION_*. */
const char *options_name(unsigned option);
