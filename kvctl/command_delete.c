/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl delete: forgets an instance and its limit, or throws its processes out.
 */

#include <stdio.h>

#include "command.h"
#include "json.h"
#include "text.h"

/* "pid 12 (vllm), pid 13 (vllm)", as far as it goes. */
static const char *join_peers(char buf[static TEXT_MAX], Kvcached__PeerInfo *const *peers, size_t n)
{
    char peer[TEXT_MAX];
    size_t length = 0;

    buf[0] = '\0';
    for (size_t i = 0; i < n && length < TEXT_MAX; i++)
        length += (size_t)snprintf(buf + length, TEXT_MAX - length, "%s%s", i ? ", " : "",
                                   text_peer(peer, peers[i]));
    return buf;
}

static int complain_busy(struct control *control, const char *instance)
{
    struct message reply;
    const Kvcached__InstanceInfo *info;
    char peers[TEXT_MAX];
    int r;

    r = control_info(control, instance, &reply);
    if (r)
        return command_fail(control, r);
    info = ((const Kvcached__InfoReply *)reply.body)->instance;
    command_complain(STATUS_FAILED, "%s is in use by %s; --force disconnects them", instance,
                     info && info->n_peers ? join_peers(peers, info->peers, info->n_peers)
                                           : "processes that just left");
    message_deinit(&reply);
    return STATUS_FAILED;
}

static void print_report(const char *instance, const Kvcached__DeleteReply *reply)
{
    char name[TEXT_MAX], peers[TEXT_MAX];

    text_clean(name, instance);
    if (reply->n_peers == 0)
        printf("Deleted %s\n", name);
    else
        printf("Disconnected %s from %s\nWhat they hold stays charged to it until they exit.\n",
               join_peers(peers, reply->peers, reply->n_peers), name);
}

static int run(const struct invocation *invocation)
{
    _cleanup_(control_freep) struct control *control = NULL;
    const char *instance = invocation->words[0];
    const Kvcached__DeleteReply *reply;
    struct message message;
    int status, r;

    status = command_connect(invocation, &control);
    if (status)
        return status;
    r = control_delete(control, instance, invocation->options->given & OPTION_FORCE, &message);
    if (r == CONTROL_E_REFUSED && control_refusal(control) == KVCACHED__ERROR__ERROR_BUSY)
        return complain_busy(control, instance);
    if (r)
        return command_fail(control, r);
    reply = (const Kvcached__DeleteReply *)message.body;
    if (invocation->options->given & OPTION_JSON)
        status = command_print_json(json_deletion(instance, reply));
    else
        print_report(instance, reply);
    message_deinit(&message);
    return status;
}

const struct command command_delete = {
    .name = "delete",
    .arguments = "<ipc>",
    .summary = "forget an instance and its limit",
    .help = "Forgets an instance that has no processes, and the limit that kvctl has set for it. An instance "
            "with\n"
            "processes is left alone, and they are named.\n"
            "\n"
            "--force freezes such an instance and disconnects its processes. They keep what they have "
            "mapped, and\n"
            "it stays charged, until they exit: no one can take memory from under a running kernel.\n",
    .options = OPTIONS_DAEMON | OPTION_JSON | OPTION_FORCE,
    .min_words = 1,
    .max_words = 1,
    .run = run,
};
