/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl list: who may have how much, and has.
 */

#include <stdio.h>

#include "command.h"
#include "fleet.h"
#include "json.h"
#include "listing.h"

struct list_run {
    cJSON *array; /* NULL: a table for people */
    unsigned n_unknown, n_asked;
};

/* With several daemons, a name need not be known to each. */
static int list_one(const struct invocation *invocation, struct control *control, void *userdata)
{
    _cleanup_(control_listing_deinit) struct control_listing listing = {0};
    const struct json_origin origin = fleet_origin(control);
    const struct table_style style = listing_style(stdout);
    struct list_run *run = userdata;
    int r;

    run->n_asked++;
    r = control_list(control, invocation->words, (size_t)invocation->n_words, &listing);
    if (r == CONTROL_E_REFUSED && control_refusal(control) == KVCACHED__ERROR__ERROR_NOT_FOUND)
        run->n_unknown++;
    if (r)
        return command_fail_unless_elsewhere(invocation, control, r);
    if (!run->array)
        table_print(stdout, &style, listing.instances, listing.n);
    else if (!json_add_instances(run->array, listing.instances, listing.n, &origin))
        return command_complain(STATUS_FAILED, "Out of memory");
    return STATUS_DONE;
}

static int run(const struct invocation *invocation)
{
    bool json = invocation->options->given & OPTION_JSON;
    struct list_run run = {.array = json ? cJSON_CreateArray() : NULL};
    int status;

    if (json && !run.array)
        return command_complain(STATUS_FAILED, "Out of memory");
    status = fleet_each(invocation, !json, list_one, &run);
    if (status == STATUS_DONE && run.n_unknown > 0 && run.n_unknown == run.n_asked)
        status = command_complain(STATUS_FAILED, "No daemon has all of these instances");
    if (status == STATUS_DONE && json)
        return command_print_json(run.array);
    cJSON_Delete(run.array);
    return status;
}

const struct command command_list = {
    .name = "list",
    .arguments = "[<ipc>...]",
    .summary = "show instances, their limits and what they use",
    .help =
        "Shows one line for each instance: its limit, what it uses, and that as a share of the limit; and\n"
        "where there is any, what of it is reserved for what the instance asks for next.\n"
        "With names, only those instances. Names that several trust domains have are shown as\n"
        "<domain>/<ipc>. An instance that has neither processes nor memory is listed only while it has a\n"
        "limit that kvctl has set.\n",
    .options = OPTIONS_DAEMON | OPTION_ALL | OPTION_JSON,
    .min_words = 0,
    .max_words = -1,
    .run = run,
};
