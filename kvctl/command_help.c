/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl help: the commands, or one of them.
 */

#include <stdio.h>

#include "base/arith.h"
#include "command.h"

static const struct {
    unsigned flag;
    const char *usage, *text;
} option_help[] = {
    {OPTION_SOCKET, "--socket PATH", "the daemon's socket; kvctl talks to the one called PATH.ctl"},
    {OPTION_GPU, "--gpu N", "the daemon of GPU N, in PCI bus order, or with that UUID"},
    {OPTION_ALL, "--all", "every daemon that listens in the usual folders"},
    {OPTION_INTERVAL, "-n, --refresh S", "seconds from one look to the next (1)"},
    {OPTION_FOLLOW, "-f, --follow", "go on with what happens, until Ctrl-C"},
    {OPTION_JSON, "--json", "print JSON (docs/KVCTL-JSON.md)"},
    {OPTION_FORCE, "--force", "freeze the instance and disconnect its processes"},
    {OPTION_HELP, "--help", "this text"},
    {OPTION_VERSION, "--version", "the version of kvctl"},
};

static void print_options(FILE *out, unsigned mask)
{
    fputs("\nOptions:\n", out);
    for (size_t i = 0; i < ARRAY_SIZE(option_help); i++)
        if (option_help[i].flag & mask)
            fprintf(out, "  %-16s%s\n", option_help[i].usage, option_help[i].text);
}

void command_print_help(FILE *out, const struct command *command)
{
    fprintf(out, "Usage: kvctl %s %s\n\n%s", command->name, command->arguments, command->help);
    print_options(out, command->options | OPTION_HELP);
}

void command_print_overview(FILE *out)
{
    fputs("Usage: kvctl [OPTIONS] [COMMAND ...]\n\n"
          "Shows and limits how much GPU memory the engines of a kvcached daemon use.\n\nCommands:\n",
          out);
    for (const struct command *const *c = commands; *c; c++) {
        char left[40];

        snprintf(left, sizeof(left), "%s %s", (*c)->name, (*c)->arguments);
        fprintf(out, "  %-32s%s\n", left, (*c)->summary);
    }
    fputs("\n"
          "In the shell also:\n"
          "  !<command>                      run a command of the system\n"
          "  exit | quit                     end the shell\n",
          out);
    print_options(out, OPTIONS_DAEMON | OPTION_ALL | OPTION_JSON | OPTION_HELP | OPTION_VERSION);
    fputs(
        "\n<ipc> is the name of an instance, or <domain>/<ipc> where several trust domains have that name.\n"
        "Without --socket and --gpu: $KVCACHED_SOCKET, else the daemon of GPU 0.\n"
        "Exit status: 0 done, 1 refused or failed, 2 usage, 3 no daemon.\n",
        out);
}

static int run(const struct invocation *invocation)
{
    const struct command *command;

    if (invocation->n_words == 0) {
        command_print_overview(stdout);
        return STATUS_DONE;
    }
    command = command_find(invocation->words[0]);
    if (!command)
        return command_complain(STATUS_USAGE, "There is no command %s; `kvctl help` lists them",
                                invocation->words[0]);
    command_print_help(stdout, command);
    return STATUS_DONE;
}

const struct command command_help = {
    .name = "help",
    .arguments = "[command]",
    .summary = "show this text, or a command's",
    .help = "Shows the commands, or what one of them does.\n",
    .options = 0,
    .min_words = 0,
    .max_words = 1,
    .run = run,
};
