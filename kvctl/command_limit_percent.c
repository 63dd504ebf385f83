/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl limit-percent: which part of the GPU's memory an instance may have.
 */

#include "base/parse.h"
#include "command.h"
#include "limit.h"

#define PPM_PER_PERCENT 10000

/* Rounds to millionths, in which the daemon counts. */
static bool parse_percent(const char *text, uint32_t *ret_ppm)
{
    double percent;

    if (parse_decimal(text, &percent) < 0 || percent > 100)
        return false;
    *ret_ppm = (uint32_t)(percent * PPM_PER_PERCENT + 0.5);
    return true;
}

static uint64_t share(uint64_t total_bytes, uint32_t ppm)
{
    const uint64_t whole = 100 * PPM_PER_PERCENT;

    return total_bytes / whole * ppm + total_bytes % whole * ppm / whole;
}

static int run(const struct invocation *invocation)
{
    _cleanup_(control_freep) struct control *control = NULL;
    const char *instance = invocation->words[0];
    struct message reply;
    uint32_t ppm;
    int status, r;

    if (!parse_percent(invocation->words[1], &ppm))
        return command_complain(STATUS_USAGE, "%s is not a percentage; write a number from 0 to 100",
                                invocation->words[1]);
    status = command_connect(invocation, &control);
    if (status)
        return status;
    r = control_set_limit_ppm(control, instance, ppm, &reply);
    if (r)
        return command_fail(control, r);
    return limit_report(invocation, control, share(control_welcome(control)->total_bytes, ppm), &reply);
}

const struct command command_limit_percent = {
    .name = "limit-percent",
    .arguments = "<ipc> <pct>",
    .summary = "set the limit of an instance as a percentage of the GPU's memory",
    .help = "As `kvctl limit`, in percent of all the memory that the GPU has: from 0 to 100, with as many "
            "decimals\n"
            "as four: 80, 33.3333.\n",
    .options = OPTIONS_DAEMON | OPTION_JSON,
    .min_words = 2,
    .max_words = 2,
    .run = run,
};
