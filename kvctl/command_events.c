/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl events: what has happened, and with --follow what happens.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "fleet.h"
#include "json.h"
#include "text.h"

static bool has_name(const Kvcached__Event *event, const char *name)
{
    const char *slash = strrchr(name, '/');
    size_t length = slash ? (size_t)(slash - name) : 0;

    if (strcmp(event->instance, slash ? slash + 1 : name) != 0)
        return false;
    return !slash || (strlen(event->domain) == length && strncmp(event->domain, name, length) == 0);
}

static bool is_asked_for(const struct invocation *invocation, const Kvcached__Event *event)
{
    for (int i = 0; i < invocation->n_words; i++) {
        if (has_name(event, invocation->words[i]))
            return true;
    }
    return invocation->n_words == 0;
}

/* "2026-11-30 08:15:03.120 +0000", of this machine's time zone. */
static void print_time(uint64_t realtime_ms)
{
    time_t seconds = (time_t)(realtime_ms / 1000);
    char text[40], zone[8];
    struct tm local;

    if (!localtime_r(&seconds, &local)) {
        printf("%" PRIu64 " ms", realtime_ms);
        return;
    }
    strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local);
    strftime(zone, sizeof(zone), "%z", &local);
    printf("%s.%03u %s", text, (unsigned)(realtime_ms % 1000), zone);
}

static int print_event(const struct invocation *invocation, const Kvcached__Event *event,
                       const struct json_origin *origin)
{
    char name[TEXT_MAX], domain[TEXT_MAX], text[TEXT_MAX];

    if (!is_asked_for(invocation, event))
        return STATUS_DONE;
    if (invocation->options->given & OPTION_JSON)
        return command_print_json_line(json_event(event, origin));
    print_time(event->realtime_ms);
    printf("  %-16s", text_event_kind(event->kind));
    if (event->instance[0])
        printf("  %s/%s", text_clean(domain, event->domain), text_clean(name, event->instance));
    if (event->pid)
        printf("  pid %d", event->pid);
    printf("  %s\n", text_clean(text, event->text));
    return STATUS_DONE;
}

/* What others pushed out of the daemon's memory before a follower asked for it. */
static void complain_of_missing(const Kvcached__EventsReply *reply, uint64_t after)
{
    uint64_t n = 0;

    for (size_t i = 0; i < reply->n_events; i++) {
        n += reply->events[i]->number - after - 1;
        after = reply->events[i]->number;
    }
    if (n)
        command_complain(STATUS_DONE, "%" PRIu64 " events came too fast and are missing here", n);
}

static int print_events(const struct invocation *invocation, const Kvcached__EventsReply *reply,
                        const struct json_origin *origin, uint64_t *after)
{
    int status = STATUS_DONE;

    for (size_t i = 0; i < reply->n_events && status == STATUS_DONE; i++) {
        status = print_event(invocation, reply->events[i], origin);
        *after = reply->events[i]->number;
    }
    return status;
}

static int events_of(const struct invocation *invocation, struct control *control, void *userdata)
{
    const struct json_origin origin = fleet_origin(control);
    bool follow = invocation->options->given & OPTION_FOLLOW, caught_up = false;
    int status = STATUS_DONE, r;
    uint64_t after = 0, last;
    struct message message;

    do {
        const Kvcached__EventsReply *reply;

        r = control_events(control, after, follow && caught_up, &message);
        if (r)
            return command_fail(control, r);
        reply = (const Kvcached__EventsReply *)message.body;
        if (caught_up)
            complain_of_missing(reply, after);
        last = reply->last;
        status = print_events(invocation, reply, &origin, &after);
        if (reply->n_events == 0)
            after = last; /* nothing was kept of them */
        caught_up |= after >= last;
        message_deinit(&message);
        if (status == STATUS_DONE)
            status = command_flush();
    } while (status == STATUS_DONE && (follow || after < last));
    return status;
}

static int run(const struct invocation *invocation)
{
    if (invocation->options->given & OPTION_ALL && invocation->options->given & OPTION_FOLLOW)
        return command_complain(STATUS_USAGE, "--follow follows one daemon; leave out --all");
    return fleet_each(invocation, !(invocation->options->given & OPTION_JSON), events_of, NULL);
}

const struct command command_events = {
    .name = "events",
    .arguments = "[--follow] [<ipc>...]",
    .summary = "show what has happened",
    .help = "Shows what the daemon remembers of what has happened, one line each: processes that came and\n"
            "went, limits that were set, exceeded and met, refusals, what the driver failed at. With names,\n"
            "only what is about those instances. --follow goes on with what happens, until Ctrl-C.\n",
    .options = OPTIONS_DAEMON | OPTION_ALL | OPTION_JSON | OPTION_FOLLOW,
    .min_words = 0,
    .max_words = -1,
    .run = run,
};
