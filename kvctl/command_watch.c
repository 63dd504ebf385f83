/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl watch: the list, again and again. On a terminal each takes the place of the one before; elsewhere
 * they follow each other, so that they can be kept.
 */

#include <errno.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "command.h"
#include "fleet.h"
#include "json.h"
#include "listing.h"

#define HOME_AND_CLEAR "\033[H\033[J"

static int print_table(const struct invocation *invocation, struct control *control)
{
    _cleanup_(control_listing_deinit) struct control_listing listing = {0};
    const struct table_style style = listing_style(stdout);
    int r;

    r = control_list(control, invocation->words, (size_t)invocation->n_words, &listing);
    if (r == CONTROL_E_REFUSED && control_refusal(control) == KVCACHED__ERROR__ERROR_NOT_FOUND) {
        printf("%s\n", control_reason(control)); /* it may come yet */
        return STATUS_DONE;
    }
    if (r)
        return command_fail(control, r);
    table_print(stdout, &style, listing.instances, listing.n);
    return STATUS_DONE;
}

static int print_json(const struct invocation *invocation, const struct fleet *fleet)
{
    cJSON *array = cJSON_CreateArray();
    char *text;

    for (size_t i = 0; i < fleet->n; i++) {
        _cleanup_(control_listing_deinit) struct control_listing listing = {0};
        const struct json_origin origin = fleet_origin(fleet->controls[i]);
        int r = control_list(fleet->controls[i], invocation->words, (size_t)invocation->n_words, &listing);

        if (r == CONTROL_E_REFUSED && control_refusal(fleet->controls[i]) == KVCACHED__ERROR__ERROR_NOT_FOUND)
            continue;
        if (r) {
            cJSON_Delete(array);
            return command_fail(fleet->controls[i], r);
        }
        if (!json_add_instances(array, listing.instances, listing.n, &origin))
            break;
    }
    text = array ? cJSON_PrintUnformatted(array) : NULL;
    cJSON_Delete(array);
    if (!text)
        return command_complain(STATUS_FAILED, "Out of memory");
    puts(text);
    cJSON_free(text);
    return STATUS_DONE;
}

static int print_tables(const struct invocation *invocation, const struct fleet *fleet)
{
    int status = STATUS_DONE;

    if (isatty(STDOUT_FILENO))
        fputs(HOME_AND_CLEAR, stdout);
    for (size_t i = 0; i < fleet->n && status == STATUS_DONE; i++) {
        if (fleet->n > 1)
            printf("%sGPU %u:\n", i ? "\n" : "", fleet_origin(fleet->controls[i]).gpu);
        status = print_table(invocation, fleet->controls[i]);
    }
    if (!isatty(STDOUT_FILENO))
        putchar('\n');
    return status;
}

static void pause_for(double seconds)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)((seconds - (double)(time_t)seconds) * (double)NSEC_PER_SEC);
    if (until.tv_nsec >= (long)NSEC_PER_SEC) {
        until.tv_sec++;
        until.tv_nsec -= (long)NSEC_PER_SEC;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

static int run(const struct invocation *invocation)
{
    _cleanup_(fleet_deinit) struct fleet fleet = {0};
    double seconds;
    int status;

    status = command_read_interval(invocation, &seconds);
    if (status == STATUS_DONE)
        status = fleet_connect(invocation, &fleet);
    while (status == STATUS_DONE) {
        status = invocation->options->given & OPTION_JSON ? print_json(invocation, &fleet)
                                                          : print_tables(invocation, &fleet);
        if (status == STATUS_DONE && (fflush(stdout) != 0 || ferror(stdout)))
            return STATUS_FAILED; /* main() says so */
        if (status == STATUS_DONE)
            pause_for(seconds);
    }
    return status;
}

const struct command command_watch = {
    .name = "watch",
    .arguments = "[-n <seconds>] [<ipc>...]",
    .summary = "show the list again and again",
    .help =
        "Shows what `kvctl list` shows, every second or as often as -n says, until Ctrl-C. On a terminal\n"
        "each list takes the place of the one before. With --json each is one line.\n",
    .options = OPTIONS_DAEMON | OPTION_ALL | OPTION_JSON | OPTION_INTERVAL,
    .min_words = 0,
    .max_words = -1,
    .run = run,
};
