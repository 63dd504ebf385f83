/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A scheduler whose workers the fake daemon plays: single regions, and groups of them. The fake daemon fails
 * the test when a page is mapped twice at a rank, or unmapped where it isn't, so these tests are exact about
 * what the library believes of each rank.
 */

#include "group.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "support.h"

#define RANKS 3
#define PAGES 16 /* of rank 0; each further rank has one more */
#define TIMEOUT_MS 100
#define LONG_MS 20000

static struct kvc_client *open_scheduler(struct fake *fake, int timeout_ms, int own_thread)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;

    options.role = KVC_ROLE_SCHEDULER;
    options.timeout_ms = timeout_ms;
    options.own_thread = own_thread;
    check_ok(kvc_open(&options, &client));
    return client;
}

static struct kvc_region *attach(struct kvc_client *client, uint32_t rank)
{
    struct kvc_region *region;

    check_ok(kvc_region_attach(client, 0, rank, LONG_MS, &region));
    return region;
}

static struct fake *fake_with_orders(void)
{
    return fake_start(&(struct fake_settings){.orders = true});
}

static struct fake_counts counts_of(struct fake *fake)
{
    struct fake_counts counts;

    fake_count(fake, &counts);
    return counts;
}

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- Single regions ---- */

static bool driver_is_loaded(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    bool found = false;
    char line[512];

    while (maps && fgets(line, sizeof(line), maps))
        found |= strstr(line, "libcuda") != NULL;
    check(maps && fclose(maps) == 0);
    return found;
}

TEST(a_worker_s_region)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *region = attach(client, 1);

    check_eq(kvc_region_pages(region), PAGES + 1);
    check_eq(kvc_region_page_bytes(region), 4 * MIB);
    check_eq(kvc_region_address(region), 0);
    check_eq(kvc_region_stride(region), 0);
    check_eq(counts_of(fake).unmaps, 1);
    check_ok(map_range(region, 2, 5));
    check_eq(counts_of(fake).mapped, 5);
    check_ok(unmap_range(region, 3, 2));
    check_eq(counts_of(fake).mapped, 3);
    check_ok(kvc_region_map(region, NULL, 0));
    kvc_region_close(region);
    check_eq(counts_of(fake).regions, 0);
    check(!driver_is_loaded());
    kvc_close(client);
    fake_stop(fake);
}

TEST(a_scheduler_has_no_gpu)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region_options options = {.size = sizeof(options), .page_bytes = 2 * MIB, .pages = 1};
    struct kvc_device device = {.size = sizeof(device)};
    struct kvc_region *region = NULL;

    check_error(kvc_region_open(client, &options, &region), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "no GPU"));
    check(!region && !kvc_driver_path(client));
    check_ok(kvc_device(client, &device));
    check_eq(device.ordinal, -1);
    check_ok(kvc_trim(client));
    check_ok(kvc_dispatch(client));
    kvc_close(client);
    fake_stop(fake);
}

TEST(what_cannot_be_asked)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0), *engine = open_plain(fake);
    struct kvc_region *region = attach(client, 0), *none = NULL;
    uint64_t maps = counts_of(fake).maps;

    check_error(kvc_region_attach(client, 0, 0, 0, NULL), KVC_E_INVALID);
    check_error(kvc_region_attach(NULL, 0, 0, 0, &none), KVC_E_INVALID);
    check_error(kvc_region_attach(engine, 0, 0, 0, &none), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "KVC_ROLE_SCHEDULER"));
    check_error(map_range(region, PAGES, 1), KVC_E_INVALID);
    check_error(map_range(region, 0, 1025), KVC_E_INVALID);
    check_error(unmap_range(region, PAGES - 1, 2), KVC_E_INVALID);
    check_eq(counts_of(fake).maps, maps);
    check(!none);
    kvc_close(engine);
    kvc_close(client);
    fake_stop(fake);
}

TEST(an_old_daemon_has_no_schedulers)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client = NULL;

    options.role = KVC_ROLE_SCHEDULER;
    check_error(kvc_open(&options, &client), KVC_E_VERSION);
    check(!client);
    fake_stop(fake);
}

/* What is said too late is undone: nobody has the region. */
TEST(attaching_takes_too_long)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *region = NULL;

    fake_lie(fake, FAKE_LATE, MESSAGE_REGION_ATTACH);
    check_error(kvc_region_attach(client, 3, 7, 20, &region), KVC_E_TIMEOUT);
    check(strstr(kvc_last_error(), "region 3 of rank 7") && !region);
    check_eq(counts_of(fake).regions, 1);
    fake_release(fake);
    dispatch_until(client, counts_of(fake).regions == 0);
    kvc_close(client);
    fake_stop(fake);
}

/* The worker is there, but doesn't do anything: then the region is not usable. */
TEST(a_worker_that_does_not_answer_the_first_order)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *region = NULL;

    fake_lie(fake, FAKE_LATE, MESSAGE_UNMAP);
    check_error(kvc_region_attach(client, 0, 0, 20, &region), KVC_E_TIMEOUT);
    fake_lie(fake, FAKE_REFUSE_WORKER, MESSAGE_UNMAP);
    check_error(kvc_region_attach(client, 0, 0, 20, &region), KVC_E_WORKER);
    check(!region);
    check_eq(counts_of(fake).regions, 0);
    fake_release(fake);
    check_ok(kvc_region_attach(client, 0, 0, LONG_MS, &region));
    kvc_close(client);
    fake_stop(fake);
}

struct expectation {
    enum fake_lie lie;
    int error;
    bool only_attach;
};

static const struct expectation expectations[] = {
    {FAKE_GARBAGE, KVC_E_PROTOCOL, false},        {FAKE_BAD_LENGTH, KVC_E_PROTOCOL, false},
    {FAKE_BAD_BODY, KVC_E_PROTOCOL, true},        {FAKE_UNKNOWN_TYPE, KVC_E_PROTOCOL, false},
    {FAKE_WRONG_TYPE, KVC_E_PROTOCOL, false},     {FAKE_WRONG_ID, KVC_E_PROTOCOL, false},
    {FAKE_UNASKED, KVC_E_PROTOCOL, false},        {FAKE_EXTRA_FD, KVC_E_PROTOCOL, false},
    {FAKE_DISCONNECT, KVC_E_DISCONNECTED, false}, {FAKE_LAST_WORD, KVC_E_DISCONNECTED, false},
    {FAKE_REFUSE, KVC_E_RESOURCES, false},        {FAKE_REFUSE_WORKER, KVC_E_WORKER, false},
    {FAKE_NO_EXTENTS, KVC_E_PROTOCOL, true},      {FAKE_TOO_MANY, KVC_E_PROTOCOL, true},
    {FAKE_TOO_FEW, KVC_E_PROTOCOL, true},         {FAKE_SMALL_EXTENTS, KVC_E_PROTOCOL, true},
};

static void lie_at(struct fake *fake, const struct expectation *e, enum message_type at)
{
    struct kvc_client *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *region = NULL;
    int attached, mapped = 0, unmapped = 0;

    fake_lie_after(fake, e->lie, at, at == MESSAGE_UNMAP ? 1 : 0);
    attached = kvc_region_attach(client, 0, 0, LONG_MS, &region);
    check((attached == 0) == (region != NULL));
    if (region) {
        mapped = map_range(region, 0, 2);
        unmapped = mapped == 0 ? unmap_range(region, 0, 1) : 0;
    }
    check_error(at == MESSAGE_REGION_ATTACH ? attached : at == MESSAGE_MAP ? mapped : unmapped, e->error);
    check(strlen(kvc_last_error()) > 10);
    kvc_close(client);
    while (counts_of(fake).peers > 0)
        ;
}

TEST(every_lie)
{
    struct fake *fake = fake_with_orders();

    for (size_t i = 0; i < ARRAY_SIZE(expectations); i++) {
        lie_at(fake, &expectations[i], MESSAGE_REGION_ATTACH);
        if (expectations[i].only_attach)
            continue;
        lie_at(fake, &expectations[i], MESSAGE_MAP);
        lie_at(fake, &expectations[i], MESSAGE_UNMAP);
    }
    fake_stop(fake);
}

/* ---- Groups ---- */

struct ranks {
    struct fake *fake;
    struct kvc_client *clients[RANKS];
    struct kvc_region *regions[RANKS];
    struct group *group;
};

static struct ranks ranks_open(int timeout_ms, int own_thread)
{
    struct ranks t = {.fake = fake_with_orders()};

    for (uint32_t i = 0; i < RANKS; i++) {
        t.clients[i] = open_scheduler(t.fake, timeout_ms, own_thread);
        t.regions[i] = attach(t.clients[i], i);
    }
    check_ok(group_new(t.regions, RANKS, &t.group));
    check_eq(group_pages(t.group), PAGES);
    return t;
}

static void ranks_close(struct ranks *t)
{
    group_free(t->group);
    for (int i = 0; i < RANKS; i++)
        kvc_close(t->clients[i]);
    fake_stop(t->fake);
}

static int change(struct group *group, uint64_t first, size_t n, bool map)
{
    uint64_t pages[PAGES];

    for (size_t i = 0; i < n; i++)
        pages[i] = first + i;
    return map ? group_map(group, pages, n, false) : group_unmap(group, pages, n);
}

static size_t missing(struct group *group, uint32_t rank, uint64_t page)
{
    return group_missing(group, rank, &page, 1);
}

/* Until every late answer has been taken. */
static void settle(struct group *group)
{
    size_t left;

    do
        check_ok(group_poll(group, &left));
    while (left > 0);
}

TEST(all_ranks_or_not_mapped)
{
    struct ranks t = ranks_open(LONG_MS, 0);

    check_ok(change(t.group, 3, 4, true));
    check_eq(counts_of(t.fake).mapped, 4 * RANKS);
    check_eq(group_page(t.group, 3), GROUP_PAGE_MAPPED);
    check_eq(group_page(t.group, 7), GROUP_PAGE_EMPTY);
    check_error(change(t.group, 6, 2, true), KVC_E_MAPPED);
    check_error(change(t.group, 6, 2, false), KVC_E_NOT_MAPPED);
    check_error(change(t.group, PAGES - 1, 2, true), KVC_E_INVALID);
    check_ok(change(t.group, 3, 3, false));
    check_eq(counts_of(t.fake).mapped, RANKS);
    check_error(group_map(t.group, (uint64_t[]){1, 2, 1}, 3, false), KVC_E_MAPPED);
    check_eq(counts_of(t.fake).maps, RANKS);
    ranks_close(&t);
}

TEST(one_missing_rank)
{
    struct ranks t = ranks_open(LONG_MS, 0);

    for (int map = 1; map >= 0; map--) {
        enum message_type type = map ? MESSAGE_MAP : MESSAGE_UNMAP;
        struct fake_counts counts;

        fake_lie_after(t.fake, FAKE_REFUSE_WORKER, type, 1);
        check_error(change(t.group, 5, 2, map), KVC_E_WORKER);
        check(strstr(kvc_last_error(), "Rank 1: The worker has failed"));
        check_eq(group_page(t.group, 5), GROUP_PAGE_PARTIAL);
        for (uint32_t rank = 0; rank < RANKS; rank++) {
            bool mapped = map == (rank != 1);

            check_eq(group_page_at(t.group, 5, rank), mapped ? GROUP_RANK_MAPPED : GROUP_RANK_EMPTY);
            check_eq(missing(t.group, rank, 5), !mapped);
        }
        counts = counts_of(t.fake);
        check_ok(change(t.group, 5, 2, map));
        check_eq(group_page(t.group, 6), map ? GROUP_PAGE_MAPPED : GROUP_PAGE_EMPTY);
        check_eq(counts_of(t.fake).maps + counts_of(t.fake).unmaps, counts.maps + counts.unmaps + 1);
    }
    check_eq(counts_of(t.fake).mapped, 0);
    ranks_close(&t);
}

/* A page that is mapped at some ranks only can be given up, too. */
TEST(giving_up)
{
    struct ranks t = ranks_open(LONG_MS, 0);

    fake_lie_after(t.fake, FAKE_REFUSE_WORKER, MESSAGE_MAP, 2);
    check_error(change(t.group, 5, 1, true), KVC_E_WORKER);
    check_eq(counts_of(t.fake).mapped, 2);
    check_ok(change(t.group, 5, 1, false));
    check_eq(counts_of(t.fake).mapped, 0);
    check_eq(group_page(t.group, 5), GROUP_PAGE_EMPTY);
    ranks_close(&t);
}

TEST(a_late_answer)
{
    struct ranks t = ranks_open(TIMEOUT_MS, 0);
    size_t left = 99;

    for (int map = 1; map >= 0; map--) {
        fake_lie_after(t.fake, FAKE_LATE, map ? MESSAGE_MAP : MESSAGE_UNMAP, 1);
        check_error(change(t.group, 5, 2, map), KVC_E_TIMEOUT);
        check(strstr(kvc_last_error(), "Rank 1: "));
        check_eq(group_page(t.group, 5), GROUP_PAGE_IN_DOUBT);
        check_error(change(t.group, 5, 1, true), KVC_E_IN_DOUBT);
        check_error(change(t.group, 6, 1, false), KVC_E_IN_DOUBT);
        check_ok(group_poll(t.group, &left));
        check_eq(left, 1);
        check_ok(change(t.group, 8, 1, map));
        fake_release(t.fake);
        settle(t.group);
        check_eq(group_page(t.group, 5), map ? GROUP_PAGE_MAPPED : GROUP_PAGE_EMPTY);
    }
    check_eq(counts_of(t.fake).mapped, 0);
    ranks_close(&t);
}

/* The next call finds the answer by itself. */
TEST(a_late_answer_is_found)
{
    struct ranks t = ranks_open(TIMEOUT_MS, 0);

    fake_lie_after(t.fake, FAKE_LATE, MESSAGE_MAP, 2);
    check_error(change(t.group, 5, 1, true), KVC_E_TIMEOUT);
    fake_release(t.fake);
    while (kvc_dispatch(t.clients[2]) == 0 && change(t.group, 5, 1, true) == KVC_E_IN_DOUBT)
        ;
    check_error(change(t.group, 5, 1, true), KVC_E_MAPPED);
    ranks_close(&t);
}

/* A daemon that was stopped answers everybody at once; and three that are silent are waited for as one. */
TEST(a_stopped_daemon)
{
    struct ranks t = ranks_open(4 * TIMEOUT_MS, 0);
    uint64_t begin = now_ms(), passed;

    check_eq(kill(fake_pid(t.fake), SIGSTOP), 0);
    check_error(change(t.group, 5, 1, true), KVC_E_TIMEOUT);
    passed = now_ms() - begin;
    check(passed >= 4 * TIMEOUT_MS && passed < 8 * TIMEOUT_MS);
    check_error(change(t.group, 5, 1, true), KVC_E_IN_DOUBT);
    check_eq(kill(fake_pid(t.fake), SIGCONT), 0);
    settle(t.group);
    check_eq(group_page(t.group, 5), GROUP_PAGE_MAPPED);
    ranks_close(&t);
}

/* The end of a connection settles what was in doubt: the rank is gone, with all that it had. */
TEST(a_lost_rank)
{
    struct ranks t = ranks_open(TIMEOUT_MS, 0);

    check_ok(change(t.group, 2, 1, true));
    fake_lie_after(t.fake, FAKE_LATE, MESSAGE_MAP, 1);
    check_error(change(t.group, 5, 1, true), KVC_E_TIMEOUT);
    fake_lie_after(t.fake, FAKE_DISCONNECT, MESSAGE_MAP, 1);
    check_error(change(t.group, 6, 1, true), KVC_E_DISCONNECTED);
    settle(t.group);
    for (uint64_t page = 2; page < 7; page += page == 2 ? 3 : 1) {
        check_eq(group_page(t.group, page), GROUP_PAGE_PARTIAL);
        check_eq(group_page_at(t.group, page, 1), GROUP_RANK_EMPTY);
    }
    check_error(change(t.group, 5, 1, true), KVC_E_DISCONNECTED);
    check_ok(change(t.group, 5, 1, false));
    fake_release(t.fake);
    ranks_close(&t);
}

/* A worker that is gone takes all that it had along, and the group is over: nobody is asked to map any more.
 * The others are still good for unmapping. */
TEST(a_worker_that_is_gone)
{
    for (int map = 1; map >= 0; map--) {
        struct ranks t = ranks_open(LONG_MS, 0);
        struct fake_counts counts;

        check_ok(change(t.group, 2, 3, true));
        check_ok(group_check(t.group));
        fake_lie_after(t.fake, FAKE_WORKER_GONE, map ? MESSAGE_MAP : MESSAGE_UNMAP, 1);
        check_error(change(t.group, map ? 5 : 4, 1, map), KVC_E_WORKER);
        check(group_is_over(t.group));
        for (uint64_t page = 2; page < (map ? 6 : 4); page++) {
            check_eq(group_page(t.group, page), GROUP_PAGE_PARTIAL);
            check_eq(group_page_at(t.group, page, 1), GROUP_RANK_EMPTY);
        }
        counts = counts_of(t.fake);
        check_error(change(t.group, 8, 1, true), KVC_E_WORKER);
        check(strstr(kvc_last_error(), "Rank 1: The worker is gone"));
        check_error(change(t.group, 2, 1, true), KVC_E_WORKER);
        check_eq(counts_of(t.fake).maps, counts.maps);
        check_ok(change(t.group, 2, map ? 4 : 2, false));
        check_eq(counts_of(t.fake).unmaps, counts.unmaps + RANKS - 1);
        check_eq(counts_of(t.fake).mapped, 0);
        ranks_close(&t);
    }
}

/* What it had not answered is settled with it. */
TEST(a_silent_worker_that_is_gone)
{
    struct ranks t = ranks_open(TIMEOUT_MS, 0);

    fake_lie_after(t.fake, FAKE_LATE, MESSAGE_MAP, 1);
    check_error(change(t.group, 5, 2, true), KVC_E_TIMEOUT);
    check_eq(group_page(t.group, 5), GROUP_PAGE_IN_DOUBT);
    fake_lie_after(t.fake, FAKE_WORKER_GONE, MESSAGE_MAP, 1);
    check_error(change(t.group, 8, 1, true), KVC_E_WORKER);
    check_eq(group_page(t.group, 5), GROUP_PAGE_PARTIAL);
    check_ok(change(t.group, 5, 2, false));
    check_ok(change(t.group, 8, 1, false));
    check_eq(counts_of(t.fake).mapped, 0);
    fake_release(t.fake);
    settle(t.group);
    check_eq(group_page(t.group, 5), GROUP_PAGE_EMPTY);
    ranks_close(&t);
}

TEST(doubts_die_with_the_group)
{
    struct ranks t = ranks_open(TIMEOUT_MS, 0);

    fake_lie_after(t.fake, FAKE_LATE, MESSAGE_MAP, 0);
    check_error(change(t.group, 5, 1, true), KVC_E_TIMEOUT);
    t.group = group_free(t.group);
    fake_release(t.fake);
    check_ok(map_range(t.regions[0], 6, 1));
    ranks_close(&t);
}

TEST(a_region_of_this_process_and_a_worker_s)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *engine = open_plain(fake), *client = open_scheduler(fake, LONG_MS, 0);
    struct kvc_region *regions[] = {open_region(engine, 2, 10 * MIB, 8), attach(client, 2)};
    struct group *group;

    check_ok(group_new(regions, 2, &group));
    check_eq(group_pages(group), 8);
    check_error(group_map(group, (uint64_t[]){1}, 1, true), KVC_E_INVALID);
    check_ok(change(group, 0, 3, true));
    check_eq(lent_bytes(fake), 3 * 20 * MIB);
    fake_set_limit(fake, 4 * 20 * MIB);
    check_error(change(group, 3, 2, true), KVC_E_LIMIT);
    check(strstr(kvc_last_error(), "Rank 0: "));
    check_eq(group_page_at(group, 3, 0), GROUP_RANK_EMPTY);
    check_eq(group_page_at(group, 3, 1), GROUP_RANK_MAPPED);
    check_ok(change(group, 3, 1, true));
    check_ok(change(group, 0, 5, false));
    check_eq(lent_bytes(fake), 0);
    check_eq(counts_of(fake).mapped, 0);
    group_free(group);
    kvc_close(client);
    kvc_close(engine);
    fake_stop(fake);
}

TEST(what_is_no_group)
{
    struct ranks t = ranks_open(LONG_MS, 0);
    struct kvc_region *regions[] = {t.regions[0], NULL};
    struct group *group = NULL;

    check_error(group_new(regions, 0, &group), KVC_E_INVALID);
    check_error(group_new(regions, 2, &group), KVC_E_INVALID);
    check(!group && !group_free(NULL));
    ranks_close(&t);
}

static void in_child(struct ranks *t)
{
    struct kvc_region *region = NULL;
    struct group *group = NULL;
    size_t left = 99;

    check_error(kvc_region_attach(t->clients[0], 0, 0, LONG_MS, &region), KVC_E_FORKED);
    check_error(map_range(t->regions[0], 0, 1), KVC_E_FORKED);
    check_error(unmap_range(t->regions[0], 0, 1), KVC_E_FORKED);
    check_error(change(t->group, 0, 1, true), KVC_E_FORKED);
    check_error(change(t->group, 5, 1, false), KVC_E_FORKED);
    check_error(group_poll(t->group, &left), KVC_E_FORKED);
    check_error(group_new(t->regions, RANKS, &group), KVC_E_FORKED);
    check_eq(kvc_region_pages(t->regions[1]), PAGES + 1);
    check(!region && !group && left == 99);
    group_free(t->group);
    kvc_region_close(t->regions[2]);
    for (int i = 0; i < RANKS; i++)
        kvc_close(t->clients[i]);
}

TEST(fork_makes_handles_useless)
{
    struct ranks t = ranks_open(TIMEOUT_MS, 0);
    int status;
    pid_t pid;

    fake_lie_after(t.fake, FAKE_LATE, MESSAGE_MAP, 1);
    check_error(change(t.group, 5, 1, true), KVC_E_TIMEOUT);
    pid = fork();
    if (pid == 0) {
        in_child(&t);
        exit(0);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    fake_release(t.fake);
    settle(t.group);
    check_eq(group_page(t.group, 5), GROUP_PAGE_MAPPED);
    ranks_close(&t);
}

/* ---- Threads ---- */

static void *wait_for_ever(void *data)
{
    struct kvc_region *region = NULL;

    check_ok(kvc_region_attach(data, 0, 0, -1, &region));
    return NULL;
}

/* One thread receives for all, and has no deadline; another one's still counts. */
TEST(deadlines_of_several_threads)
{
    struct fake *fake = fake_with_orders();
    struct kvc_client *client = open_scheduler(fake, TIMEOUT_MS, 0);
    pthread_t thread;

    fake_lie(fake, FAKE_LATE, MESSAGE_REGION_ATTACH);
    check_eq(pthread_create(&thread, NULL, wait_for_ever, client), 0);
    while (counts_of(fake).late == 0)
        ;
    fake_lie(fake, FAKE_SILENCE, MESSAGE_REGION_ATTACH);
    check_error(kvc_region_attach(client, 0, 0, 0, &(struct kvc_region *){NULL}), KVC_E_TIMEOUT);
    fake_release(fake);
    check_eq(pthread_join(thread, NULL), 0);
    kvc_close(client);
    fake_stop(fake);
}

struct hand {
    pthread_t thread;
    struct group *group;
    uint64_t first;
};

static void *work(void *data)
{
    struct hand *hand = data;

    for (int i = 0; i < 50; i++) {
        check_ok(change(hand->group, hand->first, 4, true));
        check_ok(change(hand->group, hand->first, 2, false));
        check_ok(change(hand->group, hand->first + 2, 2, false));
    }
    return NULL;
}

TEST(threads_of_one_group)
{
    struct ranks t = ranks_open(LONG_MS, 1);
    struct hand hands[4];

    for (uint64_t i = 0; i < ARRAY_SIZE(hands); i++) {
        hands[i] = (struct hand){.group = t.group, .first = i * 4};
        check_eq(pthread_create(&hands[i].thread, NULL, work, &hands[i]), 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(hands); i++)
        check_eq(pthread_join(hands[i].thread, NULL), 0);
    check_eq(counts_of(t.fake).mapped, 0);
    ranks_close(&t);
}

/* The library's own thread takes the late answer, without anybody asking. */
/* ---- Blocks at workers ---- */

#define KEPT 5 /* free pages */

static struct kvc_client *keep_free_pages(struct fake *fake, int own_thread, struct kvc_blocks **ret)
{
    struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = 2 * MIB};
    struct kvc_options options = plain_options(fake);
    struct kvc_region *regions[2];
    struct kvc_client *client;
    uint32_t ids[KEPT];

    options.role = KVC_ROLE_SCHEDULER;
    options.max_reserved_pages = PAGES;
    options.report_ms = 1;
    options.own_thread = own_thread;
    check_ok(kvc_open(&options, &client));
    for (uint32_t i = 0; i < 2; i++)
        check_ok(kvc_region_attach(client, i, 0, LONG_MS, &regions[i]));
    check_ok(kvc_blocks_open(regions, 2, &blocks, ret));
    check_ok(kvc_blocks_alloc(*ret, KEPT, ids));
    check_ok(kvc_blocks_free(*ret, ids, KEPT, 0));
    check_eq(counts_of(fake).mapped, 2 * KEPT);
    check_eq(counts_of(fake).cached, 2 * KEPT);
    return client;
}

/* The workers are not asked themselves. */
TEST(a_notice_takes_pages_of_workers)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true, .orders = true});
    struct kvc_blocks *blocks;
    struct kvc_client *client = keep_free_pages(fake, 0, &blocks);

    fake_notice(fake, 2 * 2 * MIB + 1, 5000, true);
    dispatch_until(client, counts_of(fake).acks == 1);
    check_eq(counts_of(fake).mapped, 2 * (KEPT - 2));
    check_eq(counts_of(fake).cached, 2 * (KEPT - 2));
    kvc_blocks_close(blocks);
    kvc_close(client);
    fake_stop(fake);
}

static void *close_blocks(void *data)
{
    kvc_blocks_close(data);
    return NULL;
}

/* Whoever closes waits for the thread that answers, which waits for a worker. */
TEST(closing_while_a_notice_is_answered)
{
    struct fake *fake = fake_start(&(struct fake_settings){.leases = true, .orders = true});
    struct kvc_blocks *blocks;
    struct kvc_client *client = keep_free_pages(fake, 1, &blocks);
    pthread_t closer;

    fake_lie(fake, FAKE_LATE, MESSAGE_UNMAP);
    fake_notice(fake, 2 * 2 * MIB, 5000, true);
    while (counts_of(fake).late == 0 || counts_of(fake).mapped > 2 * (KEPT - 1))
        ;
    check_eq(pthread_create(&closer, NULL, close_blocks, blocks), 0);
    for (unsigned i = 0; i < 200; i++)
        check_eq(counts_of(fake).mapped, 2 * (KEPT - 1));
    fake_release(fake);
    check_eq(pthread_join(closer, NULL), 0);
    check_eq(counts_of(fake).mapped, 0);
    kvc_close(client);
    fake_stop(fake);
}

TEST(own_thread)
{
    struct ranks t = ranks_open(TIMEOUT_MS, 1);

    fake_lie_after(t.fake, FAKE_LATE, MESSAGE_MAP, 1);
    check_error(change(t.group, 5, 1, true), KVC_E_TIMEOUT);
    fake_release(t.fake);
    settle(t.group);
    check_eq(group_page(t.group, 5), GROUP_PAGE_MAPPED);
    ranks_close(&t);
}
