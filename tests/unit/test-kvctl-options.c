/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <string.h>

#include "test.h"

#define ARGUMENTS_MAX 16

/* Options are parsed from a copy, since parsing reorders. */
#define parse(ret, offender, ...)                                                                            \
    ({                                                                                                       \
        static const char *const parse_given[] = {"kvctl", __VA_ARGS__};                                     \
        static char *parse_argv[ARGUMENTS_MAX];                                                              \
        int parse_n = (int)(sizeof(parse_given) / sizeof(parse_given[0]));                                   \
        memcpy(parse_argv, parse_given, sizeof(parse_given));                                                \
        options_parse(parse_n, parse_argv, ret, offender);                                                   \
    })

TEST(nothing)
{
    struct options options;
    char *argv[] = {(char *)"kvctl", NULL};

    check_eq(options_parse(1, argv, &options, NULL), 0);
    check_eq(options.n_words, 0);
    check_eq(options.given, 0);
    check(!options.socket && !options.gpu);
}

TEST(options_stand_anywhere)
{
    struct options options;
    const char *offender;

    check_eq(parse(&options, &offender, "--json", "list", "--socket", "/s", "a", "--gpu=1", "b", "-h"), 0);
    check_eq(options.given, OPTION_JSON | OPTION_SOCKET | OPTION_GPU | OPTION_HELP);
    check_str(options.socket, "/s");
    check_str(options.gpu, "1");
    check_eq(options.n_words, 3);
    check_str(options.words[0], "list");
    check_str(options.words[1], "a");
    check_str(options.words[2], "b");
}

TEST(two_dashes_end_options)
{
    struct options options;
    const char *offender;

    check_eq(parse(&options, &offender, "--json", "--", "--force", "-", "--"), 0);
    check_eq(options.given, OPTION_JSON);
    check_eq(options.n_words, 3);
    check_str(options.words[0], "--force");
    check_str(options.words[1], "-");
    check_str(options.words[2], "--");
}

TEST(the_last_value_counts)
{
    struct options options;
    const char *offender;

    check_eq(parse(&options, &offender, "--socket", "a", "--socket="), 0);
    check_str(options.socket, "");
}

TEST(refused)
{
    struct options options = {.n_words = 42};
    const char *offender = NULL;

    check_eq(parse(&options, &offender, "list", "--jsn"), OPTIONS_E_UNKNOWN);
    check_str(offender, "--jsn");
    check_eq(parse(&options, &offender, "--js"), OPTIONS_E_UNKNOWN);
    check_str(offender, "--js");
    check_eq(parse(&options, &offender, "limit-percent", "x", "-5"), OPTIONS_E_UNKNOWN);
    check_str(offender, "-5");
    check_eq(parse(&options, &offender, "-hh"), OPTIONS_E_UNKNOWN);
    check_eq(parse(&options, &offender, "--=1"), OPTIONS_E_UNKNOWN);
    check_eq(parse(&options, &offender, "list", "--socket"), OPTIONS_E_MISSING);
    check_str(offender, "--socket");
    check_eq(parse(&options, &offender, "--json=yes"), OPTIONS_E_UNWANTED);
    check_str(offender, "--json=yes");
    check_eq(options.n_words, 42);
}

TEST(names)
{
    check_str(options_name(OPTION_FORCE), "--force");
    check_str(options_name(OPTION_VERSION), "--version");
}
