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

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "bench.h"
#include "rest.h"
#include "side.h"

#define SIDES 5

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
    struct least_side *least;
    struct control *control;
    struct side sides[SIDES];
    int fds[PAGES_MAX];
};

/* ---- Command line ---- */

static struct arguments parse(int argc, char **argv)
{
    struct arguments arguments = {.pages = 1, .rounds = 1};
    const struct bench_option options[] = {
        {"socket", .text = &arguments.socket},
        {"driver", .text = &arguments.driver},
        {"uuid", .text = &arguments.uuid},
        {"count", .text = &arguments.count},
        {"pages", .number = &arguments.pages, .max = PAGES_MAX},
        {"rounds", .number = &arguments.rounds, .max = ROUNDS_MAX},
        {"processor", .processor = &arguments.processor},
        {"donor-processor", .processor = &arguments.donor_processor},
        {0},
    };

    parse_options(argc, argv, options);
    if (!arguments.socket || !arguments.uuid || arguments.pages == 0)
        die("--socket, --uuid and at least one page are needed");
    return arguments;
}

/* ---- Sides ---- */

/* The donor first: a driver does not survive a fork. */
static void open_sides(struct bench *bench, const struct arguments *arguments)
{
    bench->donor =
        donor_new(arguments->driver, arguments->uuid, arguments->pages, arguments->donor_processor);
    pin_to(arguments->processor);
    bench->broker = broker_side_new(arguments->socket);
    bench->driver = driver_side_new(broker_side_driver(bench->broker), arguments->uuid);
    bench->least = least_side_new(bench->donor, broker_side_driver(bench->broker), arguments->uuid);
    bench->control = open_control(arguments->socket);
    bench->sides[0] = broker_side(bench->broker);
    bench->sides[1] = driver_side_create(bench->driver);
    bench->sides[2] = donor_side(bench->donor);
    bench->sides[3] = driver_side_import(bench->driver);
    bench->sides[4] = least_side(bench->least);
    donor_get(bench->donor, arguments->pages, bench->fds);
    driver_side_offer(bench->driver, bench->fds);
}

static void close_sides(struct bench *bench, unsigned n_pages)
{
    for (unsigned i = 0; i < n_pages; i++)
        close(bench->fds[i]);
    least_side_free(bench->least);
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

/* A daemon that has given its pool back needs to be asked before it fills it again. */
static void wait_until_warm(struct bench *bench, unsigned n_pages)
{
    uint64_t deadline = now_ns() + PATIENCE_NS;

    while (wait_for_rest(bench->control, 200 * NSEC_PER_USEC) < n_pages * PAGE_BYTES) {
        if (now_ns() > deadline)
            die("the daemon doesn't keep %u extents warm", n_pages);
        measure(&bench->sides[0], n_pages);
    }
}

/* The wait has let processors and caches cool down. A page over every side, and a wait without sleep, warms
 * all of them alike: the last side is made of two others, which have their turn anyway. */
static void stir(struct bench *bench)
{
    for (unsigned s = 0; s < SIDES - 1; s++)
        measure(&bench->sides[s], 1);
    wait_for_rest(bench->control, 0);
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
    end_output();
    return 0;
}
