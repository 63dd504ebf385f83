/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The report on a changed limit. The limit that the user asked for is in force at once; that it cannot hold
 * yet, or that the budget holds less, is no failure, but has to be said.
 */

#include "limit.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/parse.h"
#include "fleet.h"
#include "json.h"
#include "text.h"

static void print_report(uint64_t asked_bytes, const Kvcached__InstanceInfo *instance)
{
    char name[TEXT_MAX], domain[TEXT_MAX], size[FORMAT_SIZE_MAX], over[FORMAT_SIZE_MAX];

    text_instance(name, instance, false);
    printf("Updated kv cache limit for %s to %s (%" PRIu64 " bytes)\n", name, format_size(size, asked_bytes),
           asked_bytes);
    if (instance->n_peers == 0 && instance->used_bytes == 0)
        printf("Nobody runs under that name now; the limit waits for who will, in the trust domain %s.\n",
               text_clean(domain, instance->domain));
    if (instance->limit_bytes < asked_bytes)
        printf("The daemon's budget is smaller: at present %s may use %s.\n", name,
               format_size(size, instance->limit_bytes));
    if (instance->used_bytes > instance->limit_bytes)
        printf("%s uses %s, %s more than that: it gets nothing new until it has returned as much.\n", name,
               format_size(size, instance->used_bytes),
               format_size(over, instance->used_bytes - instance->limit_bytes));
}

int limit_report(const struct invocation *invocation, const struct control *control, uint64_t asked_bytes,
                 struct message *limit_reply)
{
    const struct json_origin origin = fleet_origin(control);
    const Kvcached__LimitReply *reply = (const Kvcached__LimitReply *)limit_reply->body;
    int status = STATUS_DONE;

    if (!reply->instance)
        status = command_complain(STATUS_FAILED, "The daemon didn't say which limit it has set");
    else if (invocation->options->given & OPTION_JSON)
        status = command_print_json(json_instance(reply->instance, &origin));
    else
        print_report(asked_bytes, reply->instance);
    message_deinit(limit_reply);
    return status;
}
