/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl kvtop: the loop of looking, laying out, drawing and reading keys. It waits for all at once, so that
 * no daemon holds up the keyboard or the others. One that is lost is tried again at each look; meanwhile
 * its numbers are gone from the screen.
 */

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "command.h"
#include "fleet.h"
#include "source.h"
#include "top_draw.h"
#include "top_layout.h"
#include "top_model.h"

#define WHEEL_LINES 3

struct top {
    const struct invocation *invocation;
    struct fleet fleet;
    struct source *sources; /* of the fleet's members */
    struct pollfd *pollfds; /* of the sources, and of the terminal */
    struct top_model model;
    struct top_view view;
    struct top_screen *screen; /* the last one, which is what a click is at */
    uint64_t period_ns;
};

static volatile sig_atomic_t ended_by;

static void note_signal(int number)
{
    ended_by = number;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

static void top_deinit(struct top *top)
{
    top_screen_free(top->screen);
    for (size_t i = 0; top->sources && i < top->fleet.n; i++)
        source_rest(&top->sources[i], 0);
    free(top->sources);
    free(top->pollfds);
    fleet_deinit(&top->fleet);
    top_model_deinit(&top->model);
}

/* ---- Looking ---- */

static bool is_asked_for(const struct invocation *invocation, const Kvcached__InstanceInfo *instance)
{
    size_t length = strlen(instance->domain);

    for (int i = 0; i < invocation->n_words; i++) {
        const char *word = invocation->words[i];

        if (strcmp(word, instance->instance) == 0)
            return true;
        if (strncmp(word, instance->domain, length) == 0 && word[length] == '/' &&
            strcmp(word + length + 1, instance->instance) == 0)
            return true;
    }
    return invocation->n_words == 0;
}

/* Of all, because a daemon that is asked for several refuses while one of them is missing. */
static size_t keep_asked_for(const struct invocation *invocation, const struct control_listing *listing)
{
    size_t kept = 0;

    for (size_t i = 0; i < listing->n; i++)
        if (is_asked_for(invocation, listing->instances[i]))
            listing->instances[kept++] = listing->instances[i];
    return kept;
}

static void look(struct top *top, struct source *source)
{
    const struct fleet_member *member = source->member;
    int r = source_turn(source, now_ns());

    if (r == CONTROL_E_PENDING)
        return;
    if (r == 0)
        top_model_look(&top->model, now_ns(), (const Kvcached__InfoReply *)source->info.body,
                       source->listing.instances, keep_asked_for(top->invocation, &source->listing),
                       control_knows_operations(member->control));
    else
        top_model_lose(&top->model, member->gpu, control_reason(member->control));
    source_rest(source, top->period_ns);
}

/* ---- Keys ---- */

static void type(struct top *top, int key)
{
    char *filter = top->model.filter;
    size_t length = strlen(filter);

    if (key == TOP_KEY_ENTER || key == TOP_KEY_ESCAPE)
        top->view.typing = false;
    if (key == TOP_KEY_ESCAPE)
        filter[0] = '\0';
    else if (key == TOP_KEY_ERASE && length > 0)
        filter[length - 1] = '\0';
    else if (key < TOP_KEY_UP && length + 1 < sizeof(top->model.filter))
        memcpy(filter + length, (const char[]){(char)key, '\0'}, 2);
}

static void scroll_by(struct top *top, int lines)
{
    top->view.scroll =
        lines < 0 && top->view.scroll < (unsigned)-lines ? 0 : top->view.scroll + (unsigned)lines;
}

static void click(struct top *top)
{
    const struct top_instance *instance;
    unsigned column, row;

    if (!top->screen)
        return;
    top_draw_clicked(&column, &row);
    switch (top_layout_click(top->screen, column, row, &instance)) {
    case TOP_ACTION_NONE:
        break;
    case TOP_ACTION_MARK:
        top_model_mark(&top->model, instance);
        break;
    case TOP_ACTION_SORT:
        top->model.sort = (top->model.sort + 1) % _TOP_SORT_MAX;
        break;
    }
}

/* Whether it goes on. */
static bool heed(struct top *top, int key, int page)
{
    if (key == TOP_KEY_NONE)
        return true;
    if (top->view.typing && key != TOP_KEY_GONE) {
        type(top, key);
        return true;
    }
    switch (key) {
    case TOP_KEY_GONE:
    case 'q':
        return false;
    case 'h':
    case '?':
        top->view.help = !top->view.help;
        top->view.scroll = 0;
        break;
    case '/':
        top->view.typing = true;
        break;
    case TOP_KEY_ESCAPE:
        top->view.help = false;
        top->model.filter[0] = '\0';
        break;
    case 'u':
        top->model.sort = TOP_SORT_USED;
        break;
    case 'n':
        top->model.sort = TOP_SORT_NAME;
        break;
    case 'p':
        top->model.sort = TOP_SORT_SHARE;
        break;
    case 'r':
        top->model.sort = TOP_SORT_RATE;
        break;
    case 'k':
    case TOP_KEY_UP:
        scroll_by(top, -1);
        break;
    case 'j':
    case TOP_KEY_DOWN:
        scroll_by(top, 1);
        break;
    case TOP_KEY_WHEEL_UP:
        scroll_by(top, -WHEEL_LINES);
        break;
    case TOP_KEY_WHEEL_DOWN:
        scroll_by(top, WHEEL_LINES);
        break;
    case TOP_KEY_CLICK:
        click(top);
        break;
    case TOP_KEY_PAGE_UP:
        scroll_by(top, -page);
        break;
    case TOP_KEY_PAGE_DOWN:
        scroll_by(top, page);
        break;
    }
    return true;
}

/* ---- The loop ---- */

/* Signals are let through only while it waits: none can come between a look at what they set and that, or
 * between ncurses' look at the terminal's size and its wish to hear of another one. */
static void block_signals(sigset_t *ret_before)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGWINCH);
    sigprocmask(SIG_BLOCK, &set, ret_before);
}

/* For a key, for what a daemon says, for the time of a look. Whether the terminal is still there. */
static bool await(struct top *top, const sigset_t *signals)
{
    struct pollfd *terminal = &top->pollfds[top->fleet.n];
    struct timespec timeout;
    int timeout_ms = INT_MAX;

    for (size_t i = 0; i < top->fleet.n; i++) {
        int one = source_wait(&top->sources[i], now_ns(), &top->pollfds[i]);

        timeout_ms = one < timeout_ms ? one : timeout_ms;
    }
    *terminal = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
    timeout =
        (struct timespec){.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * (long)NSEC_PER_MSEC};
    if (ppoll(top->pollfds, top->fleet.n + 1, &timeout, signals) < 0)
        return errno == EINTR;
    return !(terminal->revents & (POLLERR | POLLHUP | POLLNVAL));
}

static void draw(struct top *top, unsigned *ret_height)
{
    struct top_screen *screen;
    unsigned width;

    top_draw_size(&width, ret_height);
    screen = top_layout(&top->model, &top->view, width, *ret_height);
    top_screen_free(top->screen); /* it speaks of instances that may be gone */
    top->screen = screen;
    if (!screen)
        return;
    top->view.scroll = screen->scrolled;
    top_draw(screen);
}

/* One key at a time: how far the next one may scroll depends on what this one has shown. Whatever ends
 * the wait may be a new size, which is a key, too: it comes before the next screen, which would be of
 * the old size. */
static void loop(struct top *top, const sigset_t *signals)
{
    unsigned height;
    int key;

    do {
        for (size_t i = 0; i < top->fleet.n; i++)
            look(top, &top->sources[i]);
        draw(top, &height);
        key = top_draw_key();
        if (key == TOP_KEY_NONE)
            key = await(top, signals) ? top_draw_key() : TOP_KEY_GONE;
    } while (!ended_by && heed(top, key, height > 4 ? (int)height - 4 : 1));
}

/* The connection to a daemon that was named is there already; from now on kvtop is less patient with it. */
static int begin(struct top *top)
{
    int status = fleet_begin(top->invocation, SOURCE_PATIENCE_MS, &top->fleet);

    if (status)
        return status;
    top->sources = calloc(top->fleet.n, sizeof(*top->sources));
    top->pollfds = calloc(top->fleet.n + 1, sizeof(*top->pollfds));
    if (!top->sources || !top->pollfds)
        return command_complain(STATUS_FAILED, "Out of memory");
    for (size_t i = 0; i < top->fleet.n; i++)
        top->sources[i] = (struct source){.member = &top->fleet.members[i], .wants_info = true};
    return STATUS_DONE;
}

static int run(const struct invocation *invocation)
{
    _cleanup_(top_deinit) struct top top = {.invocation = invocation};
    const struct sigaction action = {.sa_handler = note_signal};
    sigset_t signals;
    double seconds;
    int status;

    if (!top_draw_exists())
        return command_complain(STATUS_FAILED, "kvtop isn't built in: kvctl was built without ncurses");
    status = command_read_interval(invocation, &seconds);
    if (status)
        return status;
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return command_complain(STATUS_FAILED, "kvtop needs a terminal; `kvctl watch` doesn't");
    top.period_ns = (uint64_t)(seconds * (double)NSEC_PER_SEC);
    status = begin(&top);
    if (status)
        return status;
    block_signals(&signals);
    if (top_draw_begin()) {
        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        sigaction(SIGHUP, &action, NULL);
        loop(&top, &signals);
        top_draw_end();
    } else {
        status = command_complain(STATUS_FAILED, "kvtop doesn't know this kind of terminal; look at $TERM");
    }
    sigprocmask(SIG_SETMASK, &signals, NULL);
    return status;
}

const struct command command_kvtop = {
    .name = "kvtop",
    .arguments = "[-r <seconds>] [<ipc>...]",
    .summary = "show bars of who holds what, live",
    .help =
        "Shows a bar for each instance and each GPU, every second or as often as --refresh says. In a bar,\n"
        "= is kept in reserve (cached, leased, reserved), # used, - free. q or Ctrl-C ends it, h shows the\n"
        "keys.\n",
    .options = OPTIONS_DAEMON | OPTION_ALL | OPTION_INTERVAL,
    .min_words = 0,
    .max_words = -1,
    .is_program = true,
    .run = run,
};
