/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl list: who may have how much, and has.
 */

#include <stdio.h>
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

static int run(const struct invocation *invocation)
{
    _cleanup_(control_freep) struct control *control = NULL;
    _cleanup_(control_listing_deinit) struct control_listing listing = {0};
    struct table_style style = terminal_style();
    int status, r;

    status = command_connect(invocation, &control);
    if (status)
        return status;
    r = control_list(control, invocation->words, (size_t)invocation->n_words, &listing);
    if (r)
        return command_fail(control, r);
    if (invocation->options->given & OPTION_JSON)
        return command_print_json(json_instances(listing.instances, listing.n));
    table_print(stdout, &style, listing.instances, listing.n);
    return STATUS_DONE;
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
