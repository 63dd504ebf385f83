/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvctl kvtop: the loop of looking, laying out, drawing and reading keys. A daemon that is lost is tried
 * again at each look; meanwhile its numbers are gone from the screen.
 */

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "command.h"
#include "fleet.h"
#include "top_draw.h"
#include "top_layout.h"
#include "top_model.h"

#define TIMEOUT_MS 1000 /* a daemon that hangs must not take the keyboard along */
#define SUFFIX ".ctl"

struct top {
    const struct invocation *invocation;
    struct fleet fleet;
    struct source {
        char *socket;
        uint32_t gpu;
    } * sources; /* of the fleet's controls, which are NULL while lost */
    struct top_model model;
    struct top_view view;
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
    for (size_t i = 0; top->sources && i < top->fleet.n; i++)
        free(top->sources[i].socket);
    free(top->sources);
    fleet_deinit(&top->fleet);
    top_model_deinit(&top->model);
}

/* ---- Looking ---- */

/* The connections are made anew at the first look: these are patient, as other commands are. */
static int remember_sources(struct top *top)
{
    top->sources = calloc(top->fleet.n, sizeof(*top->sources));
    for (size_t i = 0; top->sources && i < top->fleet.n; i++) {
        const char *path = control_path(top->fleet.controls[i]);

        top->sources[i].gpu = fleet_origin(top->fleet.controls[i]).gpu;
        top->sources[i].socket = strndup(path, strlen(path) - strlen(SUFFIX));
        if (!top->sources[i].socket)
            return STATUS_FAILED;
        top->fleet.controls[i] = control_free(top->fleet.controls[i]);
    }
    return top->sources ? STATUS_DONE : STATUS_FAILED;
}

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

static int look_at(struct top *top, struct control *control)
{
    _cleanup_(control_listing_deinit) struct control_listing listing = {0};
    _cleanup_(message_deinit) struct message reply = {0};
    int r;

    r = control_info(control, NULL, &reply);
    if (r)
        return r;
    r = control_list(control, NULL, 0, &listing);
    if (r)
        return r;
    top_model_look(&top->model, now_ns(), (const Kvcached__InfoReply *)reply.body, listing.instances,
                   keep_asked_for(top->invocation, &listing), control_knows_operations(control));
    return 0;
}

static void look(struct top *top)
{
    for (size_t i = 0; i < top->fleet.n; i++) {
        const struct control_options options = {.socket = top->sources[i].socket, .timeout_ms = TIMEOUT_MS};
        struct control **control = &top->fleet.controls[i];
        int r = 0;

        if (!*control) {
            if (control_new(control) < 0)
                continue;
            r = control_connect(*control, &options);
        }
        if (r == 0)
            r = look_at(top, *control);
        if (r == 0)
            continue;
        top_model_lose(&top->model, top->sources[i].gpu, control_reason(*control));
        *control = control_free(*control);
    }
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

/* Whether it goes on. */
static bool heed(struct top *top, int key, int page)
{
    if (key == TOP_KEY_NONE || key == TOP_KEY_RESIZED)
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
    case TOP_KEY_PAGE_UP:
        scroll_by(top, -page);
        break;
    case TOP_KEY_PAGE_DOWN:
        scroll_by(top, page);
        break;
    }
    return true;
}

static void loop(struct top *top)
{
    uint64_t next_ns = 0;
    int key = TOP_KEY_NONE;
    unsigned width, height;

    do {
        _cleanup_(top_screen_freep) struct top_screen *screen = NULL;
        uint64_t now = now_ns();

        if (now >= next_ns) {
            look(top);
            next_ns = now + top->period_ns;
        }
        top_draw_size(&width, &height);
        screen = top_layout(&top->model, &top->view, width, height);
        if (screen) {
            top->view.scroll = screen->scrolled;
            top_draw(screen);
        }
        key = top_draw_key((int)(u64_sub_floor(next_ns, now_ns()) / NSEC_PER_MSEC) + 1);
    } while (!ended_by && heed(top, key, height > 4 ? (int)height - 4 : 1));
}

static int run(const struct invocation *invocation)
{
    _cleanup_(top_deinit) struct top top = {.invocation = invocation};
    const struct sigaction action = {.sa_handler = note_signal};
    double seconds;
    int status;

    if (!top_draw_exists())
        return command_complain(STATUS_FAILED, "kvtop isn't built in: kvctl was built without ncurses");
    status = command_read_interval(invocation, &seconds);
    if (status)
        return status;
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return command_complain(STATUS_FAILED, "kvtop needs a terminal; `kvctl watch` doesn't");
    status = fleet_connect(invocation, &top.fleet);
    if (status)
        return status;
    if (remember_sources(&top))
        return command_complain(STATUS_FAILED, "Out of memory");
    top.period_ns = (uint64_t)(seconds * (double)NSEC_PER_SEC);
    if (!top_draw_begin())
        return command_complain(STATUS_FAILED, "kvtop doesn't know this kind of terminal; look at $TERM");
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    loop(&top);
    top_draw_end();
    return STATUS_DONE;
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
