/* SPDX-License-Identifier: Apache-2.0 */

/*
 * engine NAME GIB: an engine without a model. It takes KV blocks until it has so much memory, waits while
 * there is no more to be had, gives back what it is asked for, and ends on SIGTERM or Ctrl-C.
 *
 *     cc -o engine engine.c $(pkg-config --cflags --libs kvclient)
 *     KVCACHED_SOCKET=... ./engine first 60
 */

#include <kvclient.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE_BYTES (UINT64_C(128) << 20)
#define BLOCK_BYTES (UINT64_C(2) << 20)
#define PAGE_BLOCKS (PAGE_BYTES / BLOCK_BYTES)
#define GIB (UINT64_C(1) << 30)
#define PAGES_MAX 8192

struct engine {
    const char *name;
    struct kvc_client *client;
    struct kvc_region *region;
    struct kvc_blocks *blocks;
    pthread_mutex_t lock;                   /* of what follows: the library calls on a thread of its own */
    uint32_t held[PAGES_MAX * PAGE_BLOCKS]; /* in the order in which they were taken */
    size_t n_held;
    int said; /* why it waits, as it has said */
};

static struct engine engine = {.lock = PTHREAD_MUTEX_INITIALIZER};

static double gib(size_t n_blocks)
{
    return (double)n_blocks * BLOCK_BYTES / GIB;
}

/* A limit was lowered. The youngest blocks go first, page by page, so that whole pages come free. */
static void reclaim(void *data, struct kvc_client *client, uint64_t bytes, unsigned deadline_ms)
{
    struct engine *e = data;
    size_t n = (size_t)((bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BLOCKS);

    (void)client, (void)deadline_ms;
    pthread_mutex_lock(&e->lock);
    if (n > e->n_held)
        n = e->n_held;
    e->n_held -= n;
    kvc_blocks_free(e->blocks, &e->held[e->n_held], n, 0); /* 0: no GPU is at work on them */
    printf("%s: was asked for memory, gave %.1f GiB, has %.1f GiB\n", e->name, gib(n), gib(e->n_held));
    pthread_mutex_unlock(&e->lock);
}

static int open_all(struct engine *e)
{
    static const struct kvc_listener listener = {.size = sizeof(listener), .reclaim = reclaim};
    const struct kvc_options options = {.size = sizeof(options),
                                        .instance = e->name,
                                        .own_thread = 1,
                                        .min_reserved_pages = -1,
                                        .max_reserved_pages = -1,
                                        .listener = &listener,
                                        .listener_data = e};
    struct kvc_region_options region = {.size = sizeof(region), .page_bytes = PAGE_BYTES};
    const struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = BLOCK_BYTES};
    struct kvc_device device = {.size = sizeof(device)};
    int r;

    r = kvc_open(&options, &e->client);
    if (r == 0)
        r = kvc_device(e->client, &device);
    if (r < 0)
        return r;
    region.pages = device.total_bytes / PAGE_BYTES; /* addresses for the whole GPU, and no memory */
    if (region.pages > PAGES_MAX)
        region.pages = PAGES_MAX;
    r = kvc_region_open(e->client, &region, &e->region);
    return r < 0 ? r : kvc_blocks_open(&e->region, 1, &blocks, &e->blocks);
}

/* One page's blocks more. 0, or why not. */
static int take(struct engine *e)
{
    int r;

    pthread_mutex_lock(&e->lock);
    r = kvc_blocks_alloc(e->blocks, PAGE_BLOCKS, &e->held[e->n_held]);
    if (r == 0)
        e->n_held += PAGE_BLOCKS;
    pthread_mutex_unlock(&e->lock);
    return r;
}

static void say(struct engine *e, int why)
{
    if (why == e->said)
        return;
    e->said = why;
    if (why == 0)
        printf("%s: has %.1f GiB\n", e->name, gib(e->n_held));
    else
        printf("%s: has %.1f GiB and waits for more: %s\n", e->name, gib(e->n_held), kvc_strerror(why));
}

static void run(struct engine *e, size_t wanted, const sigset_t *ends)
{
    const struct timespec pause = {.tv_nsec = 100 * 1000 * 1000}, none = {0};

    e->said = 1;
    for (;;) {
        int r = e->n_held < wanted ? take(e) : 0;

        if (r < 0 || e->n_held >= wanted)
            say(e, r);
        if (sigtimedwait(ends, NULL, r < 0 || e->n_held >= wanted ? &pause : &none) > 0)
            return;
    }
}

int main(int argc, char **argv)
{
    size_t pages = argc == 3 ? strtoul(argv[2], NULL, 10) * (GIB / PAGE_BYTES) : 0;
    sigset_t ends;

    if (pages == 0 || pages > PAGES_MAX) {
        fprintf(stderr, "usage: engine NAME GIB\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    engine.name = argv[1];
    if (open_all(&engine) < 0) {
        fprintf(stderr, "engine: %s\n", kvc_last_error());
        return 1;
    }
    run(&engine, pages * PAGE_BLOCKS, &ends);
    kvc_close(engine.client); /* and with it all that it has */
    return 0;
}
