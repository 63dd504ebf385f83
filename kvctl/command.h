/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Commands: what each file command_*.c provides, and what it may count on. A command runs with options that
 * its mask accepts and as many words as it says, and returns the exit status.
 */

#include <stdbool.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "control.h"
#include "options.h"

enum {
    STATUS_DONE = 0,
    STATUS_FAILED = 1, /* refused, or failed */
    STATUS_USAGE = 2,
    STATUS_NO_DAEMON = 3,
};

struct invocation {
    const struct options *options;
    int n_words; /* after the command's name */
    char **words;
};

struct command {
    const char *name;
    const char *arguments;    /* "<ipc> <size>" */
    const char *summary;      /* half a sentence */
    const char *help;         /* paragraphs */
    unsigned options;         /* OPTION_* beside --help */
    int min_words, max_words; /* -1: any number */
    bool is_program;          /* kvctl, called by its name, is it */
    int (*run)(const struct invocation *invocation);
};

#define OPTIONS_DAEMON (OPTION_SOCKET | OPTION_GPU)

extern const struct command command_list;
extern const struct command command_limit;
extern const struct command command_limit_percent;
extern const struct command command_delete;
extern const struct command command_info;
extern const struct command command_watch;
extern const struct command command_kvtop;
extern const struct command command_why;
extern const struct command command_events;
extern const struct command command_reload;
extern const struct command command_version;
extern const struct command command_shell;
extern const struct command command_help;

/* The table; the last entry is NULL. */
extern const struct command *const commands[];

const struct command *command_find(const char *name);

/* "Usage: …", its help, its options. */
void command_print_help(FILE *out, const struct command *command);
void command_print_overview(FILE *out);

/* One sentence on stderr, cleaned of what could disturb a terminal. Returns the status. */
int command_complain(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Connects as the options say. Exit status; says itself what went wrong. */
int command_connect(const struct invocation *invocation, struct control **ret);

/* Says why a call failed; returns the exit status. */
int command_fail(const struct control *control, int r);

/* The same; but of several daemons each need not know an instance that one of them has. */
int command_fail_unless_elsewhere(const struct invocation *invocation, const struct control *control, int r);

/* -n, --refresh: one second where nothing is said. Exit status. */
int command_read_interval(const struct invocation *invocation, double *ret_seconds);

/* Print and delete the value, on several lines or on one; whole, or not at all. NULL: no memory. Exit
 * status. */
int command_print_json(cJSON *value);
int command_print_json_line(cJSON *value);

/* Appends it, or deletes it and complains. Exit status. */
int command_add_json(cJSON *array, cJSON *item);

/* So that who reads along has it. Exit status; of a failure main() tells. */
int command_flush(void);
