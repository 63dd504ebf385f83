/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl info: all that the daemon tells about itself and its GPU, or about one instance.
 */

#include <stdio.h>

#include "command.h"
#include "describe.h"
#include "fleet.h"
#include "json.h"

/* Several daemons' objects make an array. */
static int print_json(cJSON *object, cJSON *array)
{
    return array ? command_add_json(array, object) : command_print_json(object);
}

static int print_daemon(const struct control *control, const Kvcached__InfoReply *reply, bool json,
                        cJSON *array)
{
    const struct json_origin origin = fleet_origin(control);

    if (json)
        return print_json(json_daemon(reply, control_path(control), &origin), array);
    describe_daemon(stdout, reply, control_path(control));
    return STATUS_DONE;
}

static int print_instance(const struct control *control, const Kvcached__InstanceInfo *instance, bool json,
                          cJSON *array)
{
    const struct json_origin origin = fleet_origin(control);

    if (!instance)
        return command_complain(STATUS_FAILED, "The daemon said nothing about the instance");
    if (json)
        return print_json(json_instance(instance, &origin), array);
    describe_instance(stdout, instance);
    return STATUS_DONE;
}

static int info_of(const struct invocation *invocation, struct control *control, void *userdata)
{
    const char *instance = invocation->n_words ? invocation->words[0] : NULL;
    bool json = invocation->options->given & OPTION_JSON;
    const Kvcached__InfoReply *reply;
    struct message message;
    int status, r;

    r = control_info(control, instance, &message);
    if (r)
        return command_fail_unless_elsewhere(invocation, control, r);
    reply = (const Kvcached__InfoReply *)message.body;
    if (instance)
        status = print_instance(control, reply->instance, json, userdata);
    else
        status = print_daemon(control, reply, json, userdata);
    message_deinit(&message);
    return status;
}

/* One daemon's object stands by itself. */
static int run(const struct invocation *invocation)
{
    if (invocation->options->given & OPTION_ALL)
        return fleet_report(invocation, true, info_of);
    return fleet_each(invocation, false, info_of, NULL);
}

const struct command command_info = {
    .name = "info",
    .arguments = "[<ipc>]",
    .summary = "show all about the daemon, or about one instance",
    .help = "Without a name: the GPU, the daemon, and where the GPU's memory is. With one: the instance's "
            "limit and\n"
            "where that comes from, what it uses, and its processes.\n",
    .options = OPTIONS_DAEMON | OPTION_ALL | OPTION_JSON,
    .min_words = 0,
    .max_words = 1,
    .run = run,
};
