/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A scheduler's regions at several workers, as one group.
 */

#include "group.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "remoteworld.h"

#define RANKS 3

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

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
    check_eq(fake_count(t.fake).mapped, 4 * RANKS);
    check_eq(group_page(t.group, 3), GROUP_PAGE_MAPPED);
    check_eq(group_page(t.group, 7), GROUP_PAGE_EMPTY);
    check_error(change(t.group, 6, 2, true), KVC_E_MAPPED);
    check_error(change(t.group, 6, 2, false), KVC_E_NOT_MAPPED);
    check_error(change(t.group, PAGES - 1, 2, true), KVC_E_INVALID);
    check_ok(change(t.group, 3, 3, false));
    check_eq(fake_count(t.fake).mapped, RANKS);
    check_error(group_map(t.group, (uint64_t[]){1, 2, 1}, 3, false), KVC_E_MAPPED);
    check_eq(fake_count(t.fake).maps, RANKS);
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
        counts = fake_count(t.fake);
        check_ok(change(t.group, 5, 2, map));
        check_eq(group_page(t.group, 6), map ? GROUP_PAGE_MAPPED : GROUP_PAGE_EMPTY);
        check_eq(fake_count(t.fake).maps + fake_count(t.fake).unmaps, counts.maps + counts.unmaps + 1);
    }
    check_eq(fake_count(t.fake).mapped, 0);
    ranks_close(&t);
}

/* A page that is mapped at some ranks only can be given up, too. */
TEST(giving_up)
{
    struct ranks t = ranks_open(LONG_MS, 0);

    fake_lie_after(t.fake, FAKE_REFUSE_WORKER, MESSAGE_MAP, 2);
    check_error(change(t.group, 5, 1, true), KVC_E_WORKER);
    check_eq(fake_count(t.fake).mapped, 2);
    check_ok(change(t.group, 5, 1, false));
    check_eq(fake_count(t.fake).mapped, 0);
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
    check_eq(fake_count(t.fake).mapped, 0);
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
        check_error(change(t.group, map ? 5 : 4, 1, map), KVC_E_WORKER_GONE);
        check(group_is_over(t.group));
        for (uint64_t page = 2; page < (map ? 6 : 4); page++) {
            check_eq(group_page(t.group, page), GROUP_PAGE_PARTIAL);
            check_eq(group_page_at(t.group, page, 1), GROUP_RANK_EMPTY);
        }
        counts = fake_count(t.fake);
        check_error(change(t.group, 8, 1, true), KVC_E_WORKER_GONE);
        check(strstr(kvc_last_error(), "Rank 1: The worker is gone"));
        check_error(change(t.group, 2, 1, true), KVC_E_WORKER_GONE);
        check_eq(fake_count(t.fake).maps, counts.maps);
        check_ok(change(t.group, 2, map ? 4 : 2, false));
        check_eq(fake_count(t.fake).unmaps, counts.unmaps + RANKS - 1);
        check_eq(fake_count(t.fake).mapped, 0);
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
    check_error(change(t.group, 8, 1, true), KVC_E_WORKER_GONE);
    check_eq(group_page(t.group, 5), GROUP_PAGE_PARTIAL);
    check_ok(change(t.group, 5, 2, false));
    check_ok(change(t.group, 8, 1, false));
    check_eq(fake_count(t.fake).mapped, 0);
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
    check_eq(fake_count(fake).mapped, 0);
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
    check_eq(fake_count(t.fake).mapped, 0);
    ranks_close(&t);
}

/* The library's own thread takes the late answer, without anybody asking. */
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
