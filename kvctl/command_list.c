/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl list: who may have how much, and has.
 */

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "command.h"
#include "json.h"
#include "table.h"

static struct table_style terminal_style(void)
{
    const char *no_color = getenv("NO_COLOR");
    struct table_style style = {0};
    struct winsize size;

    if (!isatty(STDOUT_FILENO))
        return style;
    style.colour = !no_color || !*no_color;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0)
        style.width = size.ws_col;
    return style;
}

static bool is_called(const Kvcached__InstanceInfo *instance, const char *name)
{
    size_t domain_length = strlen(instance->domain);

    if (strcmp(instance->instance, name) == 0)
        return true;
    return strncmp(instance->domain, name, domain_length) == 0 && name[domain_length] == '/' &&
           strcmp(instance->instance, name + domain_length + 1) == 0;
}

/* Whoever asks for a name wants to hear that there is none. */
static int check_found(const struct invocation *invocation, const struct control_listing *listing)
{
    int status = STATUS_DONE;

    for (int w = 0; w < invocation->n_words; w++) {
        bool found = false;

        for (size_t i = 0; !found && i < listing->n; i++)
            found = is_called(listing->instances[i], invocation->words[w]);
        if (!found)
            status = command_complain(STATUS_FAILED, "There is no instance called %s.", invocation->words[w]);
    }
    return status;
}

static int run(const struct invocation *invocation)
{
    _cleanup_(control_freep) struct control *control = NULL;
    _cleanup_(control_listing_deinit) struct control_listing listing = {0};
    struct table_style style = terminal_style();
    int status, found, r;

    status = command_connect(invocation, &control);
    if (status)
        return status;
    r = control_list(control, invocation->words, (size_t)invocation->n_words, &listing);
    if (r)
        return command_fail(control, r, NULL);
    found = check_found(invocation, &listing);
    if (invocation->options->given & OPTION_JSON)
        status = command_print_json(json_instances(listing.instances, listing.n));
    else if (listing.n > 0 || invocation->n_words == 0)
        table_print(stdout, &style, listing.instances, listing.n);
    return found ? found : status;
}

const struct command command_list = {
    .name = "list",
    .arguments = "[<ipc>...]",
    .summary = "show instances, their limits and what they use",
    .help =
        "Shows one line for each instance: its limit, what it uses, and that as a share of the limit.\n"
        "With names, only those instances. Names that several trust domains have are shown as\n"
        "<domain>/<ipc>. An instance that has neither processes nor memory is listed only while it has a\n"
        "limit that kvctl has set.\n",
    .options = OPTIONS_DAEMON | OPTION_JSON,
    .min_words = 0,
    .max_words = -1,
    .run = run,
};
