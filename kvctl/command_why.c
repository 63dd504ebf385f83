/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl why: each byte of an instance explained.
 */

#include <stdio.h>

#include "command.h"
#include "describe.h"
#include "fleet.h"
#include "json.h"

static int run(const struct invocation *invocation)
{
    _cleanup_(control_freep) struct control *control = NULL;
    const Kvcached__WhyReply *reply;
    struct json_origin origin;
    struct message message;
    int status, r;

    status = command_connect(invocation, &control);
    if (status)
        return status;
    r = control_why(control, invocation->words[0], &message);
    if (r)
        return command_fail(control, r);
    reply = (const Kvcached__WhyReply *)message.body;
    origin = fleet_origin(control);
    if (!reply->instance)
        status = command_complain(STATUS_FAILED, "The daemon said nothing about the instance");
    else if (invocation->options->given & OPTION_JSON)
        status = command_print_json(json_why(reply, &origin));
    else
        describe_why(stdout, reply);
    message_deinit(&message);
    return status;
}

const struct command command_why = {
    .name = "why",
    .arguments = "<ipc>",
    .summary = "explain what an instance uses, byte by byte",
    .help =
        "Shows what the memory is that is charged to an instance: used, cached (free pages that it keeps\n"
        "ready, as its library says), pinned (what it cannot return now), leased (set aside for it),\n"
        "pending (promised to requests that wait), reserved (promised to what it asks for next), limbo (of\n"
        "a process that has disconnected and still runs), destroying (of ended processes, until the driver\n"
        "shows it free); with which process, and for how long there has been some. And why its limit is\n"
        "what it is, and since when it is over it.\n",
    .options = OPTIONS_DAEMON | OPTION_JSON,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
