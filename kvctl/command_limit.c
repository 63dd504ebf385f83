/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl limit: how many bytes an instance may have.
 */

#include "base/parse.h"
#include "command.h"
#include "limit.h"

static int run(const struct invocation *invocation)
{
    _cleanup_(control_freep) struct control *control = NULL;
    const char *instance = invocation->words[0];
    struct message reply;
    uint64_t bytes;
    int status, r;

    if (parse_size(invocation->words[1], &bytes) < 0)
        return command_complain(STATUS_USAGE, "%s is not a size; write for example 512M, 2G or 1.5T",
                                invocation->words[1]);
    status = command_connect(invocation, &control);
    if (status)
        return status;
    r = control_set_limit_bytes(control, instance, bytes, &reply);
    if (r)
        return command_fail(control, r);
    return limit_report(invocation, control, bytes, &reply);
}

const struct command command_limit = {
    .name = "limit",
    .arguments = "<ipc> <size>",
    .summary = "set the limit of an instance in bytes",
    .help = "Sets how much memory the instance may have: 1024, 512M, 512MB, 2G, 2GB, 1.5G, 1T. K, M, G and T "
            "are\n"
            "powers of 1024. 0 is a limit, too. The limit holds at once, whatever the instance is doing: one "
            "that\n"
            "uses more is asked to give back, and gets nothing new until it has. The limit outlives the\n"
            "instance and the daemon, until `kvctl delete`; the daemon's budget caps it.\n",
    .options = OPTIONS_DAEMON | OPTION_JSON,
    .min_words = 2,
    .max_words = 2,
    .run = run,
};
