/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl version: of kvctl itself, and of the daemons that run.
 */

#include <stdio.h>

#include "command.h"
#include "fleet.h"
#include "json.h"
#include "text.h"

static int print_one(const struct invocation *invocation, struct control *control, void *array)
{
    const Kvcached__Welcome *welcome = control_welcome(control);
    const struct json_origin origin = fleet_origin(control);
    char version[TEXT_MAX];

    if (array)
        return command_add_json(array, json_version(welcome->daemon_version, welcome->version, &origin));
    printf("kvcachedd %s, GPU %u, protocol %u\n", text_clean(version, welcome->daemon_version), origin.gpu,
           welcome->version);
    return STATUS_DONE;
}

static int run(const struct invocation *invocation)
{
    if (!(invocation->options->given & OPTION_JSON)) {
        puts("kvctl " KVCACHED_VERSION);
        fflush(stdout);
    }
    return fleet_report(invocation, false, print_one);
}

const struct command command_version = {
    .name = "version",
    .arguments = "",
    .summary = "show the versions of kvctl and of the daemon",
    .help = "Shows the version of kvctl, and of the daemon and the protocol that both speak.\n",
    .options = OPTIONS_DAEMON | OPTION_ALL | OPTION_JSON,
    .min_words = 0,
    .max_words = 0,
    .run = run,
};
