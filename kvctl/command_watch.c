/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl watch: the list, again and again. On a terminal each takes the place of the one before; elsewhere
 * they follow each other, so that they can be kept. Where several daemons are watched, one that is lost has
 * its reason in its place, and is tried again each time. All are asked together; one that has hung holds up
 * one look, for as long as we are patient, and no look after that: it stays in its place until it says
 * something.
 */

#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "command.h"
#include "fleet.h"
#include "json.h"
#include "listing.h"
#include "source.h"
#include "text.h"

#define HOME_AND_CLEAR "\033[H\033[J"

/* Of one daemon. While a look at it goes on, what the one before has brought. */
struct view {
    struct source source;
    bool is_over; /* the look */
    int r;        /* of it, as source_turn() says */
    bool is_lost;
    bool complained;
    char reason[TEXT_MAX]; /* of r; clean */
};

struct watch {
    const struct invocation *invocation;
    bool all;
    struct fleet fleet;
    struct view *views; /* of the fleet's members */
    struct pollfd *pollfds;
};

static void watch_deinit(struct watch *watch)
{
    for (size_t i = 0; watch->views && i < watch->fleet.n; i++)
        source_rest(&watch->views[i].source, 0);
    free(watch->views);
    free(watch->pollfds);
    fleet_deinit(&watch->fleet);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

/* ---- Looking ---- */

static void turn(struct view *view)
{
    int r;

    if (view->is_over)
        return;
    r = source_turn(&view->source, now_ns());
    if (r == CONTROL_E_PENDING)
        return;
    view->is_over = true;
    view->r = r;
    view->is_lost = view->source.member->r;
    if (r)
        text_clean(view->reason, control_reason(view->source.member->control));
}

/* For what the daemons say, or until one has been silent for too long, or the time is over. */
static void await(struct watch *watch, uint64_t until_ns)
{
    uint64_t now = now_ns();
    int timeout_ms = (int)u64_min(u64_sub_floor(until_ns, now) / NSEC_PER_MSEC + 1, INT_MAX);

    for (size_t i = 0; i < watch->fleet.n; i++) {
        int one = INT_MAX;

        watch->pollfds[i] = (struct pollfd){.fd = -1};
        if (!watch->views[i].is_over)
            one = source_wait(&watch->views[i].source, now, &watch->pollfds[i]);
        timeout_ms = one < timeout_ms ? one : timeout_ms;
    }
    (void)poll(watch->pollfds, watch->fleet.n, timeout_ms);
    for (size_t i = 0; i < watch->fleet.n; i++)
        turn(&watch->views[i]);
}

/* One that was silent before is not. */
static bool is_awaited(const struct watch *watch)
{
    for (size_t i = 0; i < watch->fleet.n; i++)
        if (!watch->views[i].is_over && watch->views[i].r != CONTROL_E_SILENT)
            return true;
    return false;
}

static void look(struct watch *watch)
{
    for (size_t i = 0; i < watch->fleet.n; i++) {
        struct view *view = &watch->views[i];

        if (view->is_over)
            source_rest(&view->source, 0);
        view->is_over = false;
        turn(view);
    }
    while (is_awaited(watch))
        await(watch, UINT64_MAX);
}

/* Who was silent may say something meanwhile, and want an answer soon. */
static void pause_until(struct watch *watch, uint64_t until_ns)
{
    while (now_ns() < until_ns)
        await(watch, until_ns);
}

/* ---- Telling ---- */

static int print_table(const struct watch *watch, const struct view *view)
{
    const struct fleet_member *member = view->source.member;
    const struct table_style style = listing_style(stdout);

    if (view->is_lost && !watch->all)
        return command_fail(member->control, view->r);
    if (view->is_lost)
        printf("GPU %" PRIu32 ": unknown. %s; trying again\n", member->gpu, view->reason);
    else if (watch->fleet.n > 1)
        printf("GPU %" PRIu32 ":\n", member->gpu);
    if (view->r == 0)
        table_print(stdout, &style, view->source.listing.instances, view->source.listing.n);
    else if (!view->is_lost)
        printf("%s\n", view->reason); /* there is no such instance; it may come yet */
    return STATUS_DONE;
}

static int print_tables(const struct watch *watch)
{
    int status = STATUS_DONE;

    if (isatty(STDOUT_FILENO))
        fputs(HOME_AND_CLEAR, stdout);
    for (size_t i = 0; i < watch->fleet.n && status == STATUS_DONE; i++) {
        if (i > 0)
            putchar('\n');
        status = print_table(watch, &watch->views[i]);
    }
    if (!isatty(STDOUT_FILENO))
        putchar('\n');
    return status;
}

/* The array has no place for it: it goes to stderr, once for each time that it is lost. */
static int complain(const struct watch *watch, struct view *view)
{
    if (!watch->all)
        return command_fail(view->source.member->control, view->r);
    if (!view->complained)
        command_complain(STATUS_DONE, "GPU %" PRIu32 ": %s", view->source.member->gpu, view->reason);
    view->complained = true;
    return STATUS_DONE;
}

static int add_instances(const struct watch *watch, struct view *view, cJSON *array)
{
    struct json_origin origin;

    if (view->is_lost)
        return complain(watch, view);
    view->complained = false;
    if (view->r)
        return STATUS_DONE; /* there is no such instance; it may come yet */
    origin = fleet_origin(view->source.member->control);
    if (!json_add_instances(array, view->source.listing.instances, view->source.listing.n, &origin))
        return command_complain(STATUS_FAILED, "Out of memory");
    return STATUS_DONE;
}

static int print_json(const struct watch *watch)
{
    cJSON *array = cJSON_CreateArray();
    int status = STATUS_DONE;

    for (size_t i = 0; i < watch->fleet.n && status == STATUS_DONE; i++)
        status = add_instances(watch, &watch->views[i], array);
    if (status == STATUS_DONE)
        return command_print_json_line(array);
    cJSON_Delete(array);
    return status;
}

/* ---- The loop ---- */

static int begin(struct watch *watch)
{
    const struct invocation *invocation = watch->invocation;
    int status = fleet_begin(invocation, watch->all ? SOURCE_PATIENCE_MS : 0, &watch->fleet);

    if (status)
        return status;
    watch->views = calloc(watch->fleet.n, sizeof(*watch->views));
    watch->pollfds = calloc(watch->fleet.n, sizeof(*watch->pollfds));
    if (!watch->views || !watch->pollfds)
        return command_complain(STATUS_FAILED, "Out of memory");
    for (size_t i = 0; i < watch->fleet.n; i++)
        watch->views[i].source = (struct source){
            .member = &watch->fleet.members[i],
            .n_names = (size_t)invocation->n_words,
            .names = invocation->words,
        };
    return STATUS_DONE;
}

static int run(const struct invocation *invocation)
{
    _cleanup_(watch_deinit) struct watch watch = {
        .invocation = invocation,
        .all = invocation->options->given & OPTION_ALL,
    };
    double seconds;
    int status;

    status = command_read_interval(invocation, &seconds);
    if (status == STATUS_DONE)
        status = begin(&watch);
    while (status == STATUS_DONE) {
        look(&watch);
        status = invocation->options->given & OPTION_JSON ? print_json(&watch) : print_tables(&watch);
        if (status == STATUS_DONE)
            status = command_flush();
        if (status == STATUS_DONE)
            pause_until(&watch, now_ns() + (uint64_t)(seconds * (double)NSEC_PER_SEC));
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
