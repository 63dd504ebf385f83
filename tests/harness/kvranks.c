/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvranks: a scheduler that does what it is told, over the workers of any number of daemons. Like kvpeer it
 * reads a command a line and answers each with one. It hands out blocks, or maps pages; for the latter it is
 * linked with the inside of the library, whose interface has no names for transactions over all ranks.
 *
 *     attach SOCKET RANK [timeout=MS] [thread=0|1] [min=PAGES] [max=PAGES] [report=MS]
 *                          the next rank of the group, in a client of its own; ok PAGES PAGE-BYTES. Its
 *                          instance is as the environment says; it waits for the worker as long as it takes
 *     dispatch             for each rank
 *
 *     group                ok PAGES: all that have been attached
 *     map PAGES            PAGES is like 0-15,20
 *     unmap PAGES
 *     page N               ok STATES: a letter for each rank: "-" empty, "m" mapped, "?" not answered
 *     settle               waits until everything has been answered
 *
 *     blocks block=SIZE [null=0|1] [pages=N]   hands out blocks over all that have been attached
 *     take N               takes N blocks and keeps them; ok FIRST
 *     give N [EPOCH]       gives the N blocks back that it took last
 *     give-ids IDS [EPOCH] gives these back, like 0-7,9
 *     complete EPOCH
 *     available            ok N
 *     want N TIMEOUT       ok N: that many are available
 *     count                ok used=N free=N reserved=N claimed=N mapped=N free_pages=N empty=N doubt=N
 *                          broken=N
 *     reserve N
 *     release
 *     trim
 *     resize PAGES
 *     clear
 *     churn ROUNDS MOST    takes blocks until it has MOST or is refused, gives them back, so many times over;
 *                          ok taken=N refused=N
 *     close-blocks
 *     close-region RANK    and with it the blocks
 *     close-client RANK    likewise
 *
 *     fork                 ok: in a forked child every call is KVC_E_FORKED
 *     close
 */

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/parse.h"
#include "group.h"
#include "kvclient.h"
#include "kvpeer-words.h"

#define RANKS_MAX 16
#define LOOK_MS 5

static struct {
    struct kvc_client *clients[RANKS_MAX];
    struct kvc_region *regions[RANKS_MAX];
    uint32_t n;
    struct group *group;
    struct kvc_blocks *blocks;
    uint32_t *ids; /* taken */
    size_t n_ids;
} ranks;

static void usage(const char *sentence)
{
    printf("error E_USAGE %s\n", sentence);
}

static void result(int r)
{
    if (r == 0)
        puts("ok");
    else
        printf("error %s %s\n", words_error(r), kvc_last_error());
}

static void do_attach(const struct words *words)
{
    struct kvc_options options = {.size = sizeof(options), .role = KVC_ROLE_SCHEDULER};
    struct kvc_client **client = &ranks.clients[ranks.n];
    struct kvc_region **region = &ranks.regions[ranks.n];
    int report_ms = 0;
    uint64_t rank;
    int r;

    if (ranks.n == RANKS_MAX - 1 || ranks.group || ranks.blocks || !words_number(words, 2, &rank) ||
        !words_int(words, "timeout", &options.timeout_ms) ||
        !words_int(words, "thread", &options.own_thread) ||
        !words_int(words, "min", &options.min_reserved_pages) ||
        !words_int(words, "max", &options.max_reserved_pages) || !words_int(words, "report", &report_ms)) {
        usage("attach SOCKET RANK [timeout=MS] [thread=0|1] [min=PAGES] [max=PAGES] [report=MS]");
        return;
    }
    options.report_ms = (unsigned)report_ms;
    options.socket = words->word[1];
    r = kvc_open(&options, client);
    if (r == 0)
        r = kvc_region_attach(*client, 0, (uint32_t)rank, -1, region);
    if (r < 0) {
        result(r);
        *client = kvc_close(*client);
        return;
    }
    ranks.n++;
    printf("ok %" PRIu64 " %" PRIu64 "\n", kvc_region_pages(*region), kvc_region_page_bytes(*region));
}

static void do_dispatch(const struct words *words)
{
    int r = 0;

    for (uint32_t i = 0; i < ranks.n && r == 0; i++)
        r = kvc_dispatch(ranks.clients[i]);
    result(r);
}

/* ---- Pages ---- */

static void do_group(const struct words *words)
{
    int r = group_new(ranks.regions, ranks.n, &ranks.group);

    if (r < 0)
        result(r);
    else
        printf("ok %" PRIu64 "\n", group_pages(ranks.group));
}

static void change(const struct words *words, bool map)
{
    _cleanup_free_ uint64_t *pages = NULL;
    size_t n = 0;

    if (words->n > 1)
        pages = words_pages(words->word[1], &n);
    if (!pages)
        usage("Pages are like 0-15,20");
    else
        result(map ? group_map(ranks.group, pages, n, false) : group_unmap(ranks.group, pages, n));
}

static void do_map(const struct words *words)
{
    change(words, true);
}

static void do_unmap(const struct words *words)
{
    change(words, false);
}

static void do_page(const struct words *words)
{
    char states[RANKS_MAX + 1] = "";
    uint64_t page;

    if (!words_number(words, 1, &page) || page >= group_pages(ranks.group)) {
        usage("page N");
        return;
    }
    for (uint32_t i = 0; i < ranks.n; i++)
        states[i] = "-m??"[group_page_at(ranks.group, page, i)];
    printf("ok %s\n", states);
}

static void do_settle(const struct words *words)
{
    size_t left;
    int r;

    while (r = group_poll(ranks.group, &left), r == 0 && left > 0)
        poll(NULL, 0, LOOK_MS);
    result(r);
}

/* ---- Blocks ---- */

static void do_blocks(const struct words *words)
{
    struct kvc_blocks_options options = {.size = sizeof(options)};
    const char *pages = words_value(words, "pages");

    if (ranks.group || ranks.blocks || !words_size(words, "block", &options.block_bytes) ||
        !words_int(words, "null", &options.null_block) || (pages && parse_u64(pages, &options.max_pages) < 0))
        usage("blocks block=SIZE [null=0|1] [pages=N]");
    else
        result(kvc_blocks_open(ranks.regions, ranks.n, &options, &ranks.blocks));
}

static int take(size_t n)
{
    uint32_t *ids = reallocarray(ranks.ids, ranks.n_ids + n + 1, sizeof(*ids));
    int r;

    if (!ids)
        abort();
    ranks.ids = ids;
    r = kvc_blocks_alloc(ranks.blocks, n, ids + ranks.n_ids);
    ranks.n_ids += r == 0 ? n : 0;
    return r;
}

static int give(size_t n, uint64_t epoch)
{
    int r = kvc_blocks_free(ranks.blocks, ranks.ids + ranks.n_ids - n, n, epoch);

    ranks.n_ids -= r == 0 ? n : 0;
    return r;
}

static void do_take(const struct words *words)
{
    size_t had = ranks.n_ids;
    uint64_t n;
    int r;

    if (!words_number(words, 1, &n) || n == 0) {
        usage("take N");
        return;
    }
    r = take(n);
    if (r < 0)
        result(r);
    else
        printf("ok %" PRIu32 "\n", ranks.ids[had]);
}

static bool read_epoch(const struct words *words, uint64_t *ret)
{
    *ret = 0;
    return words->n <= 2 || words_number(words, 2, ret);
}

static void do_give(const struct words *words)
{
    uint64_t n, epoch;

    if (!words_number(words, 1, &n) || n > ranks.n_ids || !read_epoch(words, &epoch))
        usage("give N [EPOCH]: of those that it has");
    else
        result(give(n, epoch));
}

static void forget_id(uint32_t id)
{
    for (size_t i = 0; i < ranks.n_ids; i++) {
        if (ranks.ids[i] != id)
            continue;
        ranks.n_ids--;
        memmove(&ranks.ids[i], &ranks.ids[i + 1], (ranks.n_ids - i) * sizeof(id));
        return;
    }
}

static void do_give_ids(const struct words *words)
{
    _cleanup_free_ uint64_t *numbers = NULL;
    _cleanup_free_ uint32_t *ids = NULL;
    uint64_t epoch;
    size_t n = 0;
    int r;

    if (words->n > 1)
        numbers = words_pages(words->word[1], &n);
    ids = calloc(n + 1, sizeof(*ids));
    if (!numbers || !ids || !read_epoch(words, &epoch)) {
        usage("give-ids IDS [EPOCH]: like 0-7,9");
        return;
    }
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint32_t)numbers[i];
    r = kvc_blocks_free(ranks.blocks, ids, n, epoch);
    for (size_t i = 0; i < n && r == 0; i++)
        forget_id(ids[i]);
    result(r);
}

static void do_complete(const struct words *words)
{
    uint64_t epoch;

    if (words_number(words, 1, &epoch))
        result(kvc_blocks_complete(ranks.blocks, epoch));
    else
        usage("complete EPOCH");
}

static void do_available(const struct words *words)
{
    printf("ok %" PRIu64 "\n", kvc_blocks_available(ranks.blocks));
}

static void do_want(const struct words *words)
{
    uint64_t n, timeout_ms, available;
    int r;

    if (!words_number(words, 1, &n) || !words_number(words, 2, &timeout_ms)) {
        usage("want N TIMEOUT");
        return;
    }
    r = kvc_blocks_want(ranks.blocks, n, (int)timeout_ms, &available);
    if (r < 0)
        result(r);
    else
        printf("ok %" PRIu64 "\n", available);
}

static void do_count(const struct words *words)
{
    struct kvc_blocks_status s = {.size = sizeof(s)};
    int r = kvc_blocks_status(ranks.blocks, &s);

    if (r < 0)
        result(r);
    else
        printf("ok used=%" PRIu64 " free=%" PRIu64 " reserved=%" PRIu64 " claimed=%" PRIu64 " mapped=%" PRIu64
               " free_pages=%" PRIu64 " empty=%" PRIu64 " doubt=%" PRIu64 " broken=%" PRIu64 "\n",
               s.used_blocks, s.free_blocks, s.reserved_blocks, s.claimed_pages, s.mapped_pages, s.free_pages,
               s.empty_pages, s.doubt_pages, s.broken_pages);
}

static void do_reserve(const struct words *words)
{
    uint64_t n;

    if (words_number(words, 1, &n))
        result(kvc_blocks_reserve(ranks.blocks, n));
    else
        usage("reserve N");
}

static void do_release(const struct words *words)
{
    result(kvc_blocks_release(ranks.blocks));
}

static void do_trim(const struct words *words)
{
    result(kvc_blocks_trim(ranks.blocks));
}

static void do_resize(const struct words *words)
{
    uint64_t pages;

    if (words_number(words, 1, &pages))
        result(kvc_blocks_resize(ranks.blocks, pages));
    else
        usage("resize PAGES");
}

static void do_clear(const struct words *words)
{
    ranks.n_ids = 0;
    result(kvc_blocks_clear(ranks.blocks));
}

/* Whether the error is what somebody hears who comes too late. */
static bool is_refusal(int r)
{
    return r == KVC_E_LIMIT || r == KVC_E_BUDGET || r == KVC_E_NO_BLOCKS;
}

static void do_churn(const struct words *words)
{
    uint64_t rounds, most, taken = 0, refused = 0;
    int r = 0;

    if (!words_number(words, 1, &rounds) || !words_number(words, 2, &most) || ranks.n_ids > 0) {
        usage("churn ROUNDS MOST: of none at first");
        return;
    }
    for (uint64_t i = 0; i < rounds && r == 0; i++) {
        while (ranks.n_ids < most && r == 0)
            r = take(u64_min(i % most + 1, most - ranks.n_ids));
        refused += is_refusal(r);
        taken += ranks.n_ids;
        if (r == 0 || is_refusal(r))
            r = give(ranks.n_ids, 0);
    }
    if (r < 0)
        result(r);
    else
        printf("ok taken=%" PRIu64 " refused=%" PRIu64 "\n", taken, refused);
}

/* They are gone, however that came about. */
static void forget_blocks(void)
{
    ranks.blocks = NULL;
    ranks.n_ids = 0;
}

static void do_close_blocks(const struct words *words)
{
    kvc_blocks_close(ranks.blocks);
    forget_blocks();
    puts("ok");
}

static void do_close_region(const struct words *words)
{
    uint64_t rank;

    if (!words_number(words, 1, &rank) || rank >= ranks.n) {
        usage("close-region RANK");
        return;
    }
    ranks.regions[rank] = kvc_region_close(ranks.regions[rank]);
    forget_blocks();
    puts("ok");
}

static void do_close_client(const struct words *words)
{
    uint64_t rank;

    if (!words_number(words, 1, &rank) || rank >= ranks.n) {
        usage("close-client RANK");
        return;
    }
    ranks.clients[rank] = kvc_close(ranks.clients[rank]);
    ranks.regions[rank] = NULL;
    forget_blocks();
    puts("ok");
}

/* ---- Forking, ending ---- */

static bool are_regions_refused(void)
{
    struct kvc_region *region;
    uint64_t page = 0;

    return kvc_region_attach(ranks.clients[0], 0, 0, 0, &region) == KVC_E_FORKED &&
           kvc_region_map(ranks.regions[0], &page, 1) == KVC_E_FORKED &&
           kvc_region_unmap(ranks.regions[0], &page, 1) == KVC_E_FORKED;
}

static bool is_group_refused(void)
{
    uint64_t page = 0;
    size_t left;

    return group_map(ranks.group, &page, 1, false) == KVC_E_FORKED &&
           group_unmap(ranks.group, &page, 1) == KVC_E_FORKED &&
           group_poll(ranks.group, &left) == KVC_E_FORKED;
}

static bool are_blocks_refused(void)
{
    uint32_t id = 0;

    return kvc_blocks_alloc(ranks.blocks, 1, &id) == KVC_E_FORKED &&
           kvc_blocks_free(ranks.blocks, &id, 1, 0) == KVC_E_FORKED &&
           kvc_blocks_available(ranks.blocks) == 0 &&
           kvc_blocks_want(ranks.blocks, 1, -1, NULL) == KVC_E_FORKED &&
           kvc_blocks_trim(ranks.blocks) == KVC_E_FORKED;
}

static bool is_refused_in_child(void)
{
    return are_regions_refused() && (!ranks.group || is_group_refused()) &&
           (!ranks.blocks || are_blocks_refused());
}

static void close_all(void)
{
    kvc_blocks_close(ranks.blocks);
    forget_blocks();
    ranks.group = group_free(ranks.group);
    for (uint32_t i = 0; i < ranks.n; i++)
        ranks.clients[i] = kvc_close(ranks.clients[i]);
    ranks.n = 0;
}

static void do_fork(const struct words *words)
{
    int status = -1;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        bool refused = is_refused_in_child();

        close_all();
        _exit(!refused);
    }
    waitpid(pid, &status, 0);
    if (status == 0)
        puts("ok");
    else
        printf("error KVC_E_FORKED the child ended with %d\n", status);
}

static void do_close(const struct words *words)
{
    close_all();
    puts("ok");
}

enum needs {
    NEEDS_NOTHING,
    NEEDS_GROUP,
    NEEDS_BLOCKS,
};

static const struct command {
    const char *name;
    void (*run)(const struct words *words);
    enum needs needs;
} commands[] = {
    {"attach", do_attach, NEEDS_NOTHING},
    {"dispatch", do_dispatch, NEEDS_NOTHING},
    {"group", do_group, NEEDS_NOTHING},
    {"map", do_map, NEEDS_GROUP},
    {"unmap", do_unmap, NEEDS_GROUP},
    {"page", do_page, NEEDS_GROUP},
    {"settle", do_settle, NEEDS_GROUP},
    {"blocks", do_blocks, NEEDS_NOTHING},
    {"take", do_take, NEEDS_BLOCKS},
    {"give", do_give, NEEDS_BLOCKS},
    {"give-ids", do_give_ids, NEEDS_BLOCKS},
    {"complete", do_complete, NEEDS_BLOCKS},
    {"available", do_available, NEEDS_BLOCKS},
    {"want", do_want, NEEDS_BLOCKS},
    {"count", do_count, NEEDS_BLOCKS},
    {"reserve", do_reserve, NEEDS_BLOCKS},
    {"release", do_release, NEEDS_BLOCKS},
    {"trim", do_trim, NEEDS_BLOCKS},
    {"resize", do_resize, NEEDS_BLOCKS},
    {"clear", do_clear, NEEDS_BLOCKS},
    {"churn", do_churn, NEEDS_BLOCKS},
    {"close-blocks", do_close_blocks, NEEDS_BLOCKS},
    {"close-region", do_close_region, NEEDS_BLOCKS},
    {"close-client", do_close_client, NEEDS_BLOCKS},
    {"fork", do_fork, NEEDS_NOTHING},
    {"close", do_close, NEEDS_NOTHING},
};

static bool is_met(enum needs needs)
{
    return needs == NEEDS_NOTHING || (needs == NEEDS_GROUP ? ranks.group != NULL : ranks.blocks != NULL);
}

static void run(const struct words *words)
{
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(words->word[0], commands[i].name) != 0)
            continue;
        if (is_met(commands[i].needs))
            commands[i].run(words);
        else
            usage("There is no group, or there are no blocks");
        return;
    }
    usage("There is no such command");
}

int main(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    words_serve(run);
    close_all();
    free(ranks.ids);
    return 0;
}
