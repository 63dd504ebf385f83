/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The table of commands and what all of them do alike: connecting, complaining, failing.
 */

#include "command.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/parse.h"
#include "json.h"
#include "text.h"

#define INTERVAL_MIN_S 0.1
#define INTERVAL_MAX_S 86400.0

const struct command *const commands[] = {
    &command_list, &command_limit, &command_limit_percent, &command_watch,  &command_kvtop,   &command_delete,
    &command_info, &command_why,   &command_events,        &command_reload, &command_version, &command_shell,
    &command_help, NULL,
};

const struct command *command_find(const char *name)
{
    for (const struct command *const *c = commands; *c; c++)
        if (strcmp((*c)->name, name) == 0)
            return *c;
    return NULL;
}

int command_complain(int status, const char *format, ...)
{
    char raw[TEXT_MAX], clean[TEXT_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(raw, sizeof(raw), format, args);
    va_end(args);
    fprintf(stderr, "kvctl: %s\n", text_clean(clean, raw));
    return status;
}

int command_connect(const struct invocation *invocation, struct control **ret)
{
    const struct control_options options = {
        .socket = invocation->options->socket,
        .gpu = invocation->options->gpu,
    };
    _cleanup_(control_freep) struct control *control = NULL;
    int r;

    /* A variable that a script forgot to set must not mean another daemon. */
    if (options.socket && !*options.socket)
        return command_complain(STATUS_USAGE, "--socket needs a value");
    if (options.gpu && !control_names_gpu(options.gpu))
        return command_complain(STATUS_USAGE, "%s is neither the number of a GPU nor a UUID", options.gpu);
    if (control_new(&control) < 0)
        return command_complain(STATUS_FAILED, "Out of memory");
    r = control_connect(control, &options);
    if (r)
        return command_fail(control, r);
    *ret = steal_pointer(control);
    return STATUS_DONE;
}

int command_fail(const struct control *control, int r)
{
    return command_complain(r == CONTROL_E_NO_DAEMON ? STATUS_NO_DAEMON : STATUS_FAILED, "%s",
                            control_reason(control));
}

int command_fail_unless_elsewhere(const struct invocation *invocation, const struct control *control, int r)
{
    if (invocation->options->given & OPTION_ALL && r == CONTROL_E_REFUSED &&
        control_refusal(control) == KVCACHED__ERROR__ERROR_NOT_FOUND)
        return STATUS_DONE;
    return command_fail(control, r);
}

int command_read_interval(const struct invocation *invocation, double *ret_seconds)
{
    const char *text = invocation->options->interval;
    double seconds = 1;

    if (text && (parse_decimal(text, &seconds) < 0 || seconds < INTERVAL_MIN_S || seconds > INTERVAL_MAX_S))
        return command_complain(STATUS_USAGE, "%s is not a number of seconds from %g to %g", text,
                                INTERVAL_MIN_S, INTERVAL_MAX_S);
    *ret_seconds = seconds;
    return STATUS_DONE;
}

/* Deletes both. */
static int print_text(cJSON *value, char *text)
{
    cJSON_Delete(value);
    if (!text)
        return command_complain(STATUS_FAILED, "Out of memory");
    puts(text);
    cJSON_free(text);
    return STATUS_DONE;
}

int command_print_json(cJSON *value)
{
    return print_text(value, value ? cJSON_Print(value) : NULL);
}

int command_print_json_line(cJSON *value)
{
    return print_text(value, value ? cJSON_PrintUnformatted(value) : NULL);
}

int command_add_json(cJSON *array, cJSON *item)
{
    return json_append(array, item) ? STATUS_DONE : command_complain(STATUS_FAILED, "Out of memory");
}

int command_flush(void)
{
    return fflush(stdout) != 0 || ferror(stdout) ? STATUS_FAILED : STATUS_DONE;
}
