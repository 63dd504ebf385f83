/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl watch: the list, again and again. On a terminal each takes the place of the one before; elsewhere
 * they follow each other, so that they can be kept. Where several daemons are watched, one that is lost has
 * its reason in its place, and is tried again each time.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "command.h"
#include "fleet.h"
#include "json.h"
#include "listing.h"
#include "text.h"

#define HOME_AND_CLEAR "\033[H\033[J"
#define TIMEOUT_MS 1000 /* with --all: one that hangs must not hold up the others */

/* Asks a member; one that is lost stays so. */
static int ask(const struct invocation *invocation, struct fleet_member *member,
               struct control_listing *ret_listing)
{
    int r = member->r
                ?: control_list(member->control, invocation->words, (size_t)invocation->n_words, ret_listing);

    if (r != CONTROL_E_REFUSED || control_refusal(member->control) != KVCACHED__ERROR__ERROR_NOT_FOUND)
        member->r = r;
    return r;
}

static int print_table(const struct invocation *invocation, struct fleet_member *member, bool heading)
{
    _cleanup_(control_listing_deinit) struct control_listing listing = {0};
    const struct table_style style = listing_style(stdout);
    char reason[TEXT_MAX];
    int r;

    r = ask(invocation, member, &listing);
    if (member->r && !(invocation->options->given & OPTION_ALL))
        return command_fail(member->control, r);
    text_clean(reason, control_reason(member->control));
    if (member->r)
        printf("GPU %" PRIu32 ": unknown. %s; trying again\n", member->gpu, reason);
    else if (heading)
        printf("GPU %" PRIu32 ":\n", member->gpu);
    if (r == 0)
        table_print(stdout, &style, listing.instances, listing.n);
    else if (!member->r)
        printf("%s\n", reason); /* there is no such instance; it may come yet */
    return STATUS_DONE;
}

static int print_tables(const struct invocation *invocation, struct fleet *fleet)
{
    int status = STATUS_DONE;

    if (isatty(STDOUT_FILENO))
        fputs(HOME_AND_CLEAR, stdout);
    for (size_t i = 0; i < fleet->n && status == STATUS_DONE; i++) {
        if (i > 0)
            putchar('\n');
        status = print_table(invocation, &fleet->members[i], fleet->n > 1);
    }
    if (!isatty(STDOUT_FILENO))
        putchar('\n');
    return status;
}

/* The array has no place for it: it goes to stderr, once for each time that it is lost. */
static int complain(const struct invocation *invocation, struct fleet_member *member)
{
    if (!(invocation->options->given & OPTION_ALL))
        return command_fail(member->control, member->r);
    if (!member->complained)
        command_complain(STATUS_DONE, "GPU %" PRIu32 ": %s", member->gpu, control_reason(member->control));
    member->complained = true;
    return STATUS_DONE;
}

static int add_instances(const struct invocation *invocation, struct fleet_member *member, cJSON *array)
{
    _cleanup_(control_listing_deinit) struct control_listing listing = {0};
    struct json_origin origin;
    int r;

    r = ask(invocation, member, &listing);
    if (member->r)
        return complain(invocation, member);
    member->complained = false;
    if (r)
        return STATUS_DONE; /* there is no such instance; it may come yet */
    origin = fleet_origin(member->control);
    if (!json_add_instances(array, listing.instances, listing.n, &origin))
        return command_complain(STATUS_FAILED, "Out of memory");
    return STATUS_DONE;
}

static int print_json(const struct invocation *invocation, struct fleet *fleet)
{
    cJSON *array = cJSON_CreateArray();
    int status = STATUS_DONE;

    for (size_t i = 0; i < fleet->n && status == STATUS_DONE; i++)
        status = add_instances(invocation, &fleet->members[i], array);
    if (status == STATUS_DONE)
        return command_print_json_line(array);
    cJSON_Delete(array);
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
    bool all = invocation->options->given & OPTION_ALL;
    int timeout_ms = all ? TIMEOUT_MS : 0;
    double seconds;
    int status;

    status = command_read_interval(invocation, &seconds);
    if (status == STATUS_DONE)
        status = fleet_connect(invocation, timeout_ms, &fleet);
    while (status == STATUS_DONE) {
        status = invocation->options->given & OPTION_JSON ? print_json(invocation, &fleet)
                                                          : print_tables(invocation, &fleet);
        if (status == STATUS_DONE)
            status = command_flush();
        if (status == STATUS_DONE) {
            pause_for(seconds);
            if (all)
                fleet_reconnect(&fleet, timeout_ms);
        }
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
