/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The options that a command accepts, and how many words it wants, stand in its table entry. No command at
 * all is the shell.
 */

#include "dispatch.h"

#include <stdio.h>
#include <string.h>

#include "command.h"

#define SHELL_OPTIONS OPTIONS_DAEMON

static int complain_option(int r, const char *offender)
{
    switch (r) {
    case OPTIONS_E_MISSING:
        return command_complain(STATUS_USAGE, "%s needs a value", offender);
    case OPTIONS_E_UNWANTED:
        return command_complain(STATUS_USAGE, "%s: this option takes no value", offender);
    default:
        return command_complain(STATUS_USAGE, "There is no option %s; `kvctl help` lists them", offender);
    }
}

static int check_options(const struct command *command, unsigned given)
{
    unsigned stray = given & ~(command->options | OPTION_HELP);

    if (stray)
        return command_complain(STATUS_USAGE, "`kvctl %s` has no option %s", command->name,
                                options_name(stray & -stray));
    if ((given & OPTIONS_DAEMON) == OPTIONS_DAEMON)
        return command_complain(STATUS_USAGE, "Give either --socket or --gpu");
    if (given & OPTION_ALL && given & OPTIONS_DAEMON)
        return command_complain(STATUS_USAGE, "Give either --all or one daemon");
    return STATUS_DONE;
}

static int check_words(const struct command *command, const struct invocation *invocation)
{
    int n_words = invocation->n_words;

    if (n_words < command->min_words || (command->max_words >= 0 && n_words > command->max_words))
        return command_complain(STATUS_USAGE, "Usage: kvctl %s %s", command->name, command->arguments);
    for (int i = 0; i < n_words; i++)
        if (!*invocation->words[i])
            return command_complain(STATUS_USAGE, "An argument of `kvctl %s` is empty", command->name);
    return STATUS_DONE;
}

static int run_command(const struct options *options)
{
    const struct command *command = command_find(options->words[0]);
    const struct invocation invocation = {
        .options = options,
        .n_words = options->n_words - 1,
        .words = options->words + 1,
    };
    int status;

    if (!command)
        return command_complain(STATUS_USAGE, "There is no command %s; `kvctl help` lists them",
                                options->words[0]);
    if (options->given & OPTION_HELP) {
        command_print_help(stdout, command);
        return STATUS_DONE;
    }
    status = check_options(command, options->given);
    if (status)
        return status;
    status = check_words(command, &invocation);
    if (status)
        return status;
    return command->run(&invocation);
}

/* Some commands are programs of their own, too: kvctl by another name. */
static void heed_program(char **argv, struct options *options)
{
    const char *slash = strrchr(argv[0], '/');
    const struct command *command = command_find(slash ? slash + 1 : argv[0]);

    if (!command || !command->is_program)
        return;
    options->words = argv; /* the words stand from argv[1] on */
    options->words[0] = (char *)command->name;
    options->n_words++;
}

int dispatch(int argc, char **argv)
{
    struct options options;
    const struct invocation shell = {.options = &options};
    const char *offender;
    int r;

    r = options_parse(argc, argv, &options, &offender);
    if (r)
        return complain_option(r, offender);
    if (options.given & OPTION_VERSION) {
        puts("kvctl " KVCACHED_VERSION);
        return STATUS_DONE;
    }
    if (argc > 0)
        heed_program(argv, &options);
    if (options.n_words > 0)
        return run_command(&options);
    if (options.given & OPTION_HELP) {
        command_print_overview(stdout);
        return STATUS_DONE;
    }
    if (options.given & ~SHELL_OPTIONS)
        return command_complain(STATUS_USAGE, "%s needs a command; `kvctl help` lists them",
                                options_name(options.given & ~SHELL_OPTIONS));
    return command_shell.run(&shell);
}
