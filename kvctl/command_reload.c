/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl reload: the daemon reads its configuration again.
 */

#include <stdio.h>

#include "command.h"
#include "fleet.h"
#include "json.h"
#include "text.h"

static int reload_one(const struct invocation *invocation, struct control *control, void *array)
{
    const struct json_origin origin = fleet_origin(control);
    const Kvcached__Reloaded *reply;
    struct message message;
    char warning[TEXT_MAX];
    int status = STATUS_DONE, r;

    r = control_reload(control, &message);
    if (r)
        return command_fail(control, r);
    reply = (const Kvcached__Reloaded *)message.body;
    if (array) {
        status = command_add_json(array, json_reloaded(reply, &origin));
    } else {
        printf("The daemon of GPU %u has read its configuration\n", origin.gpu);
        for (size_t i = 0; i < reply->n_warnings; i++)
            printf("%s\n", text_clean(warning, reply->warnings[i]));
    }
    message_deinit(&message);
    return status;
}

static int run(const struct invocation *invocation)
{
    return fleet_report(invocation, false, reload_one);
}

const struct command command_reload = {
    .name = "reload",
    .arguments = "",
    .summary = "have the daemon read its configuration again",
    .help =
        "The daemon reads its configuration file again, as SIGHUP has it do. An error in the file changes\n"
        "nothing, and is told with its place. Needs root, the daemon's user or the admin group.\n",
    .options = OPTIONS_DAEMON | OPTION_ALL | OPTION_JSON,
    .min_words = 0,
    .max_words = 0,
    .run = run,
};
