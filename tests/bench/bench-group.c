/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Measures a map transaction: a scheduler has one page mapped by a worker on each of several GPUs, through
 * their daemons, and the bare chain of the same hops (chain.h), taking turns. Prints SIDE NANOSECONDS for
 * each round:
 *
 *     group   from the scheduler's wish, claims in hand, to the last worker's answer
 *     chain   the same processes and sockets, with nothing done on the way
 */

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "chain.h"
#include "kvclient.h"

#define RANKS_MAX 16
#define PAGE_BYTES (UINT64_C(2) << 20)
#define PAGES 64
#define PATIENCE_MS 10000

struct arguments {
    const char *sockets[RANKS_MAX];
    unsigned ranks, rounds;
    int processor, daemon_processor;
};

struct rank {
    pid_t pid;
    int stop; /* the worker ends when this is closed */
    struct kvc_client *client;
};

struct bench {
    struct chain *chain;
    struct rank ranks[RANKS_MAX];
    struct kvc_region *regions[RANKS_MAX];
    struct kvc_blocks *blocks;
};

static void check(int r, const char *call)
{
    if (r < 0)
        die("%s: %s", call, kvc_last_error());
}

static struct kvc_client *open_client(const char *socket, enum kvc_role role)
{
    const struct kvc_options options = {
        .size = sizeof(options),
        .socket = socket,
        .instance = "bench",
        .role = role,
        .own_thread = role == KVC_ROLE_WORKER,
        .min_reserved_pages = 0,
        .max_reserved_pages = 0,
    };
    struct kvc_client *client;

    check(kvc_open(&options, &client), "kvc_open");
    return client;
}

static void be_worker(const char *socket, unsigned rank, int stop, int processor)
{
    const struct kvc_region_options options = {
        .size = sizeof(options),
        .page_bytes = PAGE_BYTES,
        .pages = PAGES,
        .flags = KVC_REGION_ORDERED,
        .rank = rank,
    };
    struct kvc_client *client;
    struct kvc_region *region;
    char byte;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin_to(processor);
    client = open_client(socket, KVC_ROLE_WORKER);
    check(kvc_region_open(client, &options, &region), "kvc_region_open");
    while (read(stop, &byte, 1) < 0 && errno == EINTR)
        ;
    kvc_close(client);
}

static void start_worker(struct bench *bench, const struct arguments *arguments, unsigned i)
{
    struct rank *rank = &bench->ranks[i];
    int ends[2];

    if (pipe(ends) < 0)
        die("pipe: %s", strerror(errno));
    rank->pid = fork();
    if (rank->pid < 0)
        die("fork: %s", strerror(errno));
    if (rank->pid == 0) {
        close(ends[1]);
        be_worker(arguments->sockets[i], i, ends[0], arguments->processor);
        exit(0);
    }
    close(ends[0]);
    rank->stop = ends[1];
}

static void open_bench(struct bench *bench, const struct arguments *arguments)
{
    const struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = PAGE_BYTES};

    for (unsigned i = 0; i < arguments->ranks; i++)
        start_worker(bench, arguments, i);
    bench->chain = chain_new(arguments->ranks, arguments->daemon_processor, arguments->processor);
    pin_to(arguments->processor);
    for (unsigned i = 0; i < arguments->ranks; i++) {
        bench->ranks[i].client = open_client(arguments->sockets[i], KVC_ROLE_SCHEDULER);
        check(kvc_region_attach(bench->ranks[i].client, 0, i, PATIENCE_MS, &bench->regions[i]),
              "kvc_region_attach");
    }
    check(kvc_blocks_open(bench->regions, arguments->ranks, &options, &bench->blocks), "kvc_blocks_open");
}

static void close_bench(struct bench *bench, unsigned ranks)
{
    int status;

    kvc_blocks_close(bench->blocks);
    for (unsigned i = 0; i < ranks; i++) {
        kvc_close(bench->ranks[i].client);
        /* The chain's processes have that end, too, so that closing it says nothing. */
        if (write(bench->ranks[i].stop, "", 1) != 1)
            die("write: %s", strerror(errno));
        close(bench->ranks[i].stop);
    }
    for (unsigned i = 0; i < ranks; i++)
        if (waitpid(bench->ranks[i].pid, &status, 0) != bench->ranks[i].pid || status != 0)
            die("a worker failed");
    chain_free(bench->chain);
}

/* With the claims in hand, as between two steps of an engine. */
static uint64_t measure_group(struct bench *bench)
{
    uint64_t available, start, ns;
    uint32_t id;

    check(kvc_blocks_want(bench->blocks, 1, PATIENCE_MS, &available), "kvc_blocks_want");
    start = now_ns();
    check(kvc_blocks_alloc(bench->blocks, 1, &id), "kvc_blocks_alloc");
    ns = now_ns() - start;
    check(kvc_blocks_free(bench->blocks, &id, 1, 0), "kvc_blocks_free");
    return ns;
}

static uint64_t measure_chain(struct bench *bench)
{
    uint64_t start = now_ns();

    chain_go(bench->chain);
    return now_ns() - start;
}

static void run(struct bench *bench, unsigned rounds)
{
    uint64_t *samples = calloc(2 * rounds, sizeof(*samples));

    if (!samples)
        die("out of memory");
    for (unsigned i = 0; i < 5; i++) {
        measure_group(bench);
        measure_chain(bench);
    }
    for (unsigned i = 0; i < rounds; i++) {
        if (i % 2)
            samples[2 * i] = measure_group(bench);
        samples[2 * i + 1] = measure_chain(bench);
        if (i % 2 == 0)
            samples[2 * i] = measure_group(bench);
    }
    for (unsigned i = 0; i < rounds; i++)
        printf("group %" PRIu64 "\nchain %" PRIu64 "\n", samples[2 * i], samples[2 * i + 1]);
    free(samples);
}

static struct arguments parse(int argc, char **argv)
{
    struct arguments arguments = {.rounds = 1};
    const struct bench_option options[] = {
        {"socket", .text = arguments.sockets, .number = &arguments.ranks, .max = RANKS_MAX},
        {"rounds", .number = &arguments.rounds, .max = ROUNDS_MAX},
        {"processor", .processor = &arguments.processor},
        {"daemon-processor", .processor = &arguments.daemon_processor},
        {0},
    };

    parse_options(argc, argv, options);
    if (arguments.ranks == 0)
        die("--socket is needed, for each rank one");
    return arguments;
}

int main(int argc, char **argv)
{
    struct arguments arguments = parse(argc, argv);
    struct bench bench = {};

    open_bench(&bench, &arguments);
    run(&bench, arguments.rounds);
    close_bench(&bench, arguments.ranks);
    end_output();
    return 0;
}
