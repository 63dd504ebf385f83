/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Measures mapping and unmapping of pages: every side once a round, in an order that turns from round to
 * round, so that whatever else the machine does falls on all of them alike. A round begins when the daemon
 * has enough warm extents again. Prints one line for each measurement, when all are done:
 *
 *     SIDE map|unmap PAGES NANOSECONDS
 *
 * With --count SIDE it measures nothing: it does that side's operations so often as --rounds says, for
 * somebody who counts system calls.
 */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "base/parse.h"
#include "control.h"
#include "side.h"

#define SIDES 4
#define PATIENCE_NS (10 * NSEC_PER_SEC)

struct arguments {
    const char *socket, *driver, *uuid, *count;
    unsigned pages, rounds;
    int processor, donor_processor;
};

struct sample {
    uint64_t map_ns, unmap_ns;
};

struct bench {
    struct broker_side *broker;
    struct donor *donor;
    struct driver_side *driver;
    struct control *control;
    struct side sides[SIDES];
    int fds[PAGES_MAX];
};

void die(const char *format, ...)
{
    va_list args;

    fputs("bench-map: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

void pin_to(int processor)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        die("processor %d: %s", processor, strerror(errno));
}

/* ---- Command line ---- */

static unsigned number(const char *text, const char *option, unsigned max)
{
    uint64_t value;

    if (parse_u64(text, &value) < 0 || value > max)
        die("%s: %s is not a number up to %u", option, text, max);
    return (unsigned)value;
}

static struct arguments parse(int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'},
        {"driver", required_argument, NULL, 'd'},
        {"uuid", required_argument, NULL, 'u'},
        {"count", required_argument, NULL, 'c'},
        {"pages", required_argument, NULL, 'p'},
        {"rounds", required_argument, NULL, 'r'},
        {"processor", required_argument, NULL, 'a'},
        {"donor-processor", required_argument, NULL, 'b'},
        {0},
    };
    struct arguments arguments = {.pages = 1, .rounds = 1};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 's':
            arguments.socket = optarg;
            break;
        case 'd':
            arguments.driver = optarg;
            break;
        case 'u':
            arguments.uuid = optarg;
            break;
        case 'c':
            arguments.count = optarg;
            break;
        case 'p':
            arguments.pages = number(optarg, "--pages", PAGES_MAX);
            break;
        case 'r':
            arguments.rounds = number(optarg, "--rounds", 1000000);
            break;
        case 'a':
            arguments.processor = (int)number(optarg, "--processor", CPU_SETSIZE - 1);
            break;
        case 'b':
            arguments.donor_processor = (int)number(optarg, "--donor-processor", CPU_SETSIZE - 1);
            break;
        default:
            exit(2);
        }
    }
    if (!arguments.socket || !arguments.uuid || arguments.pages == 0)
        die("--socket, --uuid and at least one page are needed");
    return arguments;
}

/* ---- Sides ---- */

/* The donor first: a driver does not survive a fork. */
static void open_sides(struct bench *bench, const struct arguments *arguments)
{
    const struct control_options options = {.socket = arguments->socket};

    bench->donor =
        donor_new(arguments->driver, arguments->uuid, arguments->pages, arguments->donor_processor);
    pin_to(arguments->processor);
    bench->broker = broker_side_new(arguments->socket);
    bench->driver = driver_side_new(broker_side_driver(bench->broker), arguments->uuid, arguments->pages);
    if (control_new(&bench->control) < 0)
        die("out of memory");
    if (control_connect(bench->control, &options) != 0)
        die("%s", control_reason(bench->control));
    bench->sides[0] = broker_side(bench->broker);
    bench->sides[1] = driver_side_create(bench->driver);
    bench->sides[2] = donor_side(bench->donor);
    bench->sides[3] = driver_side_import(bench->driver);
    donor_get(bench->donor, arguments->pages, bench->fds);
    driver_side_offer(bench->driver, bench->fds);
}

static void close_sides(struct bench *bench, unsigned n_pages)
{
    for (unsigned i = 0; i < n_pages; i++)
        close(bench->fds[i]);
    driver_side_free(bench->driver);
    broker_side_free(bench->broker);
    donor_free(bench->donor);
    control_free(bench->control);
}

/* ---- Measuring ---- */

static struct sample measure(const struct side *side, unsigned n_pages)
{
    uint64_t start, mapped, end;

    start = now_ns();
    side->map(side->state, n_pages);
    mapped = now_ns();
    side->unmap(side->state, n_pages);
    end = now_ns();
    return (struct sample){.map_ns = mapped - start, .unmap_ns = end - mapped};
}

struct state {
    uint64_t warm_bytes, creating_bytes, destroying_bytes;
};

static struct state ask_state(struct bench *bench)
{
    const Kvcached__InfoReply *info;
    struct message reply;
    struct state state;

    if (control_info(bench->control, NULL, &reply) != 0)
        die("%s", control_reason(bench->control));
    info = (const Kvcached__InfoReply *)reply.body;
    state = (struct state){info->warm_bytes, info->creating_bytes, info->destroying_bytes};
    message_deinit(&reply);
    return state;
}

static bool is_same(const struct state *a, const struct state *b)
{
    return a->warm_bytes == b->warm_bytes && a->creating_bytes == b->creating_bytes &&
           a->destroying_bytes == b->destroying_bytes;
}

/* What the daemon does after a return (and would do while others measure) is over when two looks find the
 * same. Returns how much is warm then. */
static uint64_t wait_for_rest(struct bench *bench, uint64_t pause_ns)
{
    const struct timespec pause = {.tv_nsec = (long)pause_ns};
    uint64_t deadline = now_ns() + PATIENCE_NS;
    struct state before = ask_state(bench), state;

    for (;;) {
        if (pause_ns)
            nanosleep(&pause, NULL);
        state = ask_state(bench);
        if (is_same(&state, &before) && state.creating_bytes == 0)
            return state.warm_bytes;
        if (now_ns() > deadline)
            die("the daemon doesn't come to rest");
        before = state;
    }
}

/* A daemon that has given its pool back needs to be asked before it fills it again. */
static void wait_until_warm(struct bench *bench, unsigned n_pages)
{
    uint64_t deadline = now_ns() + PATIENCE_NS;

    while (wait_for_rest(bench, 200 * NSEC_PER_USEC) < n_pages * PAGE_BYTES) {
        if (now_ns() > deadline)
            die("the daemon doesn't keep %u extents warm", n_pages);
        measure(&bench->sides[0], n_pages);
    }
}

/* The wait has let processors and caches cool down. A page over every side, and a wait without sleep, warms
 * all of them alike. */
static void stir(struct bench *bench)
{
    for (unsigned s = 0; s < SIDES; s++)
        measure(&bench->sides[s], 1);
    wait_for_rest(bench, 0);
}

/* Caches, pools and branch predictors have settled after a few rounds. */
static void warm_up(struct bench *bench, unsigned n_pages)
{
    for (unsigned round = 0; round < 5; round++)
        for (unsigned s = 0; s < SIDES; s++)
            measure(&bench->sides[s], n_pages);
}

static void run(struct bench *bench, unsigned n_pages, unsigned rounds)
{
    struct sample *samples = calloc((size_t)rounds * SIDES, sizeof(*samples));

    if (!samples)
        die("out of memory");
    warm_up(bench, n_pages);
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned turn = 0; turn < SIDES; turn++) {
            unsigned s = (round + turn) % SIDES;

            wait_until_warm(bench, n_pages);
            stir(bench);
            samples[round * SIDES + s] = measure(&bench->sides[s], n_pages);
        }
    }
    for (unsigned i = 0; i < rounds * SIDES; i++) {
        const char *name = bench->sides[i % SIDES].name;

        printf("%s map %u %" PRIu64 "\n", name, n_pages, samples[i].map_ns);
        printf("%s unmap %u %" PRIu64 "\n", name, n_pages, samples[i].unmap_ns);
    }
    free(samples);
}

static void count(struct bench *bench, const char *name, unsigned n_pages, unsigned rounds)
{
    const struct side *side = NULL;

    for (unsigned s = 0; s < SIDES; s++)
        if (strcmp(bench->sides[s].name, name) == 0)
            side = &bench->sides[s];
    if (!side)
        die("there is no side called %s", name);
    for (unsigned round = 0; round < rounds; round++)
        measure(side, n_pages);
}

int main(int argc, char **argv)
{
    struct arguments arguments = parse(argc, argv);
    struct bench *bench = calloc(1, sizeof(*bench));

    if (!bench)
        die("out of memory");
    open_sides(bench, &arguments);
    if (arguments.count)
        count(bench, arguments.count, arguments.pages, arguments.rounds);
    else
        run(bench, arguments.pages, arguments.rounds);
    close_sides(bench, arguments.pages);
    free(bench);
    if (fflush(stdout) != 0 || ferror(stdout))
        die("the measurements could not be written");
    return 0;
}
