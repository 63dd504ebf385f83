/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvranks: a scheduler that does what it is told, over the workers of any number of daemons. Like kvpeer it
 * reads a command a line and answers each with one; it is linked with the inside of the library, for the
 * transactions over all ranks that its interface has no names for.
 *
 *     attach SOCKET RANK [timeout=MS] [thread=0|1]
 *                          the next rank of the group, in a client of its own; ok PAGES PAGE-BYTES. Its
 *                          instance is as the environment says; it waits for the worker as long as it takes
 *     group                ok PAGES: all that have been attached
 *     map PAGES            PAGES is like 0-15,20
 *     unmap PAGES
 *     page N               ok STATES: a letter for each rank: "-" empty, "m" mapped, "?" not answered
 *     settle               waits until everything has been answered
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
    uint64_t rank;
    int r;

    if (ranks.n == RANKS_MAX - 1 || ranks.group || !words_number(words, 2, &rank) ||
        !words_int(words, "timeout", &options.timeout_ms) ||
        !words_int(words, "thread", &options.own_thread)) {
        usage("attach SOCKET RANK [timeout=MS] [thread=0|1]");
        return;
    }
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

static int refused_in_child(void)
{
    struct kvc_region *region;
    uint64_t page = 0;
    size_t left;

    return kvc_region_attach(ranks.clients[0], 0, 0, 0, &region) == KVC_E_FORKED &&
           kvc_region_map(ranks.regions[0], &page, 1) == KVC_E_FORKED &&
           kvc_region_unmap(ranks.regions[0], &page, 1) == KVC_E_FORKED &&
           group_map(ranks.group, &page, 1, false) == KVC_E_FORKED &&
           group_unmap(ranks.group, &page, 1) == KVC_E_FORKED &&
           group_poll(ranks.group, &left) == KVC_E_FORKED;
}

static void close_all(void)
{
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
        bool refused = refused_in_child();

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

static const struct command {
    const char *name;
    void (*run)(const struct words *words);
    bool needs_group;
} commands[] = {
    {"attach", do_attach, false}, {"group", do_group, false}, {"map", do_map, true},
    {"unmap", do_unmap, true},    {"page", do_page, true},    {"settle", do_settle, true},
    {"fork", do_fork, true},      {"close", do_close, false},
};

static void run(const struct words *words)
{
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(words->word[0], commands[i].name) != 0)
            continue;
        if (commands[i].needs_group && !ranks.group)
            usage("There is no group");
        else
            commands[i].run(words);
        return;
    }
    usage("There is no such command");
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getline(&line, &size, stdin) > 0) {
        struct words words = words_split(line);

        if (words.n == 0)
            usage("An empty line is no command");
        else
            run(&words);
        fflush(stdout);
    }
    free(line);
    close_all();
    return 0;
}
