/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl info: all that the daemon tells about itself and its GPU, or about one instance.
 */

#include <stdio.h>

#include "command.h"
#include "describe.h"
#include "json.h"

static int print_daemon(const struct control *control, const Kvcached__InfoReply *reply, bool json)
{
    if (json)
        return command_print_json(json_daemon(reply, control_path(control)));
    describe_daemon(stdout, reply, control_path(control));
    return STATUS_DONE;
}

static int print_instance(const Kvcached__InstanceInfo *instance, bool json)
{
    if (!instance)
        return command_complain(STATUS_FAILED, "The daemon said nothing about the instance");
    if (json)
        return command_print_json(json_instance(instance));
    describe_instance(stdout, instance);
    return STATUS_DONE;
}

static int run(const struct invocation *invocation)
{
    _cleanup_(control_freep) struct control *control = NULL;
    const char *instance = invocation->n_words ? invocation->words[0] : NULL;
    bool json = invocation->options->given & OPTION_JSON;
    const Kvcached__InfoReply *reply;
    struct message message;
    int status, r;

    status = command_connect(invocation, &control);
    if (status)
        return status;
    r = control_info(control, instance, &message);
    if (r)
        return command_fail(control, r);
    reply = (const Kvcached__InfoReply *)message.body;
    if (instance)
        status = print_instance(reply->instance, json);
    else
        status = print_daemon(control, reply, json);
    message_deinit(&message);
    return status;
}

const struct command command_info = {
    .name = "info",
    .arguments = "[<ipc>]",
    .summary = "show all about the daemon, or about one instance",
    .help = "Without a name: the GPU, the daemon, and where the GPU's memory is. With one: the instance's "
            "limit and\n"
            "where that comes from, what it uses, and its processes.\n",
    .options = OPTIONS_DAEMON | OPTION_JSON,
    .min_words = 0,
    .max_words = 1,
    .run = run,
};
