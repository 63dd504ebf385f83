/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The command line's grammar. By hand rather than by getopt_long(), which takes any unique beginning of an
 * option for the option itself: with that, an option that is added later breaks scripts that were right
 * before.
 *
 * Whether an option makes sense for the command is for the caller.
 */

#include "options.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/arith.h"

static const struct option {
    unsigned flag;
    const char *name;
    char letter;
    bool takes_value;
} options[] = {
    {OPTION_SOCKET, "--socket", 0, true},
    {OPTION_GPU, "--gpu", 0, true},
    {OPTION_JSON, "--json", 0, false},
    {OPTION_FORCE, "--force", 0, false},
    {OPTION_HELP, "--help", 'h', false},
    {OPTION_VERSION, "--version", 0, false},
    {OPTION_ALL, "--all", 0, false},
    {OPTION_FOLLOW, "--follow", 'f', false},
    {OPTION_INTERVAL, "--interval", 'n', true},
    {OPTION_INTERVAL, "--refresh", 'r', true},
};

const char *options_name(unsigned option)
{
    for (size_t i = 0; i < ARRAY_SIZE(options); i++)
        if (options[i].flag == option)
            return options[i].name;
    return "";
}

static const struct option *find(const char *argument)
{
    size_t length = strcspn(argument, "=");

    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        const struct option *option = &options[i];

        if (strlen(option->name) == length && strncmp(option->name, argument, length) == 0)
            return option;
        if (option->letter && argument[1] == option->letter && argument[2] == '\0')
            return option;
    }
    return NULL;
}

static void note(struct options *parsed, const struct option *option, const char *value)
{
    parsed->given |= option->flag;
    if (option->flag == OPTION_SOCKET)
        parsed->socket = value;
    if (option->flag == OPTION_GPU)
        parsed->gpu = value;
    if (option->flag == OPTION_INTERVAL)
        parsed->interval = value;
}

/* Reads the option at argv[*i], and moves *i to its last argument. */
static int parse_one(int argc, char **argv, int *i, struct options *parsed)
{
    const char *argument = argv[*i];
    const char *equals = strchr(argument, '=');
    const struct option *option = find(argument);

    if (!option)
        return OPTIONS_E_UNKNOWN;
    if (!option->takes_value) {
        if (equals)
            return OPTIONS_E_UNWANTED;
        note(parsed, option, NULL);
        return 0;
    }
    if (!equals && *i + 1 >= argc)
        return OPTIONS_E_MISSING;
    note(parsed, option, equals ? equals + 1 : argv[++*i]);
    return 0;
}

int options_parse(int argc, char **argv, struct options *ret, const char **ret_offender)
{
    struct options parsed = {.words = argv + 1};
    bool ended = false;

    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        int r;

        if (!ended && strcmp(argument, "--") == 0) {
            ended = true;
            continue;
        }
        if (ended || argument[0] != '-' || argument[1] == '\0') {
            parsed.words[parsed.n_words++] = argv[i];
            continue;
        }
        r = parse_one(argc, argv, &i, &parsed);
        if (r) {
            *ret_offender = argument;
            return r;
        }
    }
    *ret = parsed;
    return 0;
}
