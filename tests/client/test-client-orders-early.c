/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Orders that come while a worker on an event loop waits for memory of its own. The daemon sends one packet
 * of descriptors at a time, so what an order brings is taken in by whoever waits; the order itself has its
 * turn when the loop is dispatched.
 */

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostloop.h"
#include "support.h"

#define PAGE (2 * MIB)
#define PAGES 16
#define MANY 64    /* segments */
#define ROOM 4     /* descriptors */
#define ROUNDS 100 /* with threads */

struct worker_test {
    struct fake *fake;
    struct kvc_client *client;
    struct kvc_region *ordered, *own;
    struct emulator *emulator;
};

static struct worker_test begin(unsigned segments, int own_thread)
{
    struct worker_test t = {.fake = fake_start(&(struct fake_settings){.orders = true})};
    struct kvc_options options = plain_options(t.fake);
    struct kvc_region_options ordered = {.size = sizeof(ordered),
                                         .segments = segments,
                                         .page_bytes = PAGE,
                                         .pages = PAGES,
                                         .flags = KVC_REGION_ORDERED};

    options.role = KVC_ROLE_WORKER;
    options.own_thread = own_thread;
    check_ok(kvc_open(&options, &t.client));
    check_ok(kvc_region_open(t.client, &ordered, &t.ordered));
    t.own = open_region(t.client, 1, PAGE, PAGES);
    t.emulator = emulator_open(t.client);
    return t;
}

static void check_handles(struct worker_test *t, uint64_t n)
{
    struct cuemu_stats stats;

    check_eq(t->emulator->stats(&stats), 0);
    check_eq(stats.handles, n);
}

/* Nothing is left, neither here nor at the daemon. */
static void end(struct worker_test *t)
{
    kvc_close(t->client);
    check_handles(t, 0);
    emulator_close(t->emulator);
    while (fake_count(t->fake).peers > 0)
        ;
    check_eq(lent_bytes(t->fake), 0);
    fake_stop(t->fake);
}

static void give(struct worker_test *t, bool map, uint64_t number, uint64_t first, size_t n,
                 unsigned packet_max)
{
    struct fake_order order = {.map = map, .session = 1, .number = number, .n = n, .packet_max = packet_max};

    for (size_t i = 0; i < n; i++)
        order.pages[i] = first + i;
    fake_order(t->fake, &order);
}

/* Waits for a grant, which comes behind the orders. */
static void take_a_page(struct worker_test *t)
{
    check_ok(map_range(t->own, 0, 1));
    stamp(t->emulator, t->own, PAGE, 0, 0, 11);
    check_eq(fake_count(t->fake).orders_done, 0);
    check_eq(kvc_get_timeout(t->client), 0);
}

static struct fake_counts carry_out(struct worker_test *t, uint64_t n_done)
{
    dispatch_until(t->client, fake_count(t->fake).orders_done >= n_done);
    check_stamp(t->emulator, t->own, PAGE, 0, 0, 11);
    return fake_count(t->fake);
}

static void check_failed(struct fake_counts counts, const char *words)
{
    check_eq(counts.order_error, (int)KVCACHED__ERROR__ERROR_WORKER);
    if (!strstr(counts.order_reason, words))
        test_fail(__FILE__, __LINE__, "\"%s\" is not in \"%s\"", words, counts.order_reason);
    check_eq(counts.lent_at_done, 1);
}

TEST(an_order_lets_a_grant_pass)
{
    struct worker_test t = begin(1, 0);

    give(&t, true, 1, 3, 2, 0);
    take_a_page(&t);
    check_eq(carry_out(&t, 1).order_error, 0);
    stamp(t.emulator, t.ordered, PAGE, 0, 3, 77);
    check_stamp(t.emulator, t.ordered, PAGE, 0, 3, 77);
    end(&t);
}

/* Page 3 can be mapped again only where it has been unmapped. */
TEST(orders_have_their_turn)
{
    struct worker_test t = begin(2, 0);
    struct fake_counts counts;

    give(&t, true, 1, 3, 2, 0);
    give(&t, false, 2, 3, 1, 0);
    give(&t, true, 3, 5, 4, 3);
    give(&t, true, 4, 3, 1, 1);
    take_a_page(&t);
    check_handles(&t, 1 + 2 * (2 + 4 + 1));
    counts = carry_out(&t, 4);
    check_eq(counts.order_error, 0);
    check_eq(counts.lent_at_done, 1 + 2 * 6);
    for (uint64_t page = 3; page < 9; page++)
        stamp(t.emulator, t.ordered, PAGE, 1, page, (uint32_t)page);
    for (uint64_t page = 3; page < 9; page++)
        check_stamp(t.emulator, t.ordered, PAGE, 1, page, (uint32_t)page);
    end(&t);
}

/* Of as many packets as would fill the queue. */
TEST(a_large_order_takes_one_place_in_line)
{
    struct worker_test t = begin(MANY, 0);

    give(&t, true, 1, 0, 5, 1);
    take_a_page(&t);
    check_eq(carry_out(&t, 1).order_error, 0);
    end(&t);
}

TEST(the_region_is_closed_before_its_turn)
{
    struct worker_test t = begin(2, 0);

    give(&t, true, 1, 1, 2, 3);
    take_a_page(&t);
    t.ordered = kvc_region_close(t.ordered);
    check_failed(carry_out(&t, 1), "has closed the region");
    check_handles(&t, 1);
    end(&t);
}

/* Its packets are received by who waits for the region to be closed. */
TEST(the_region_is_closed_as_it_comes)
{
    struct worker_test t = begin(2, 0);

    give(&t, true, 1, 1, 4, 3);
    t.ordered = kvc_region_close(t.ordered);
    dispatch_until(t.client, fake_count(t.fake).orders_done == 1);
    check_eq(fake_count(t.fake).lent_at_done, 0);
    check(strstr(fake_count(t.fake).order_reason, "has closed the region"));
    check_handles(&t, 0);
    end(&t);
}

static void *map_one(void *data)
{
    check_ok(map_range(data, 0, 1));
    return NULL;
}

/* Whoever waits receives them; the library's own thread has nothing to wait for. */
TEST(orders_that_are_carried_out_while_another_thread_waits)
{
    struct worker_test t = begin(1, 1);
    pthread_t thread;

    fake_lie(t.fake, FAKE_LATE, MESSAGE_TAKE);
    check_eq(pthread_create(&thread, NULL, map_one, t.own), 0);
    while (fake_count(t.fake).late < 1)
        ;
    for (unsigned i = 1; i <= ROUNDS; i++) {
        give(&t, i % 2, i, 3, 1, 0);
        while (fake_count(t.fake).orders_done < i)
            ;
        check_eq(fake_count(t.fake).order_error, 0);
    }
    check_eq(fake_count(t.fake).late, 1);
    fake_release(t.fake);
    check_eq(pthread_join(thread, NULL), 0);
    end(&t);
}

/* Whoever waits for an answer may receive them, and the loop finds nothing on the socket. */
TEST(an_event_loop_carries_out_what_another_thread_receives)
{
    struct worker_test t = begin(1, 0);
    struct event_loop loop;
    pthread_t thread;
    unsigned n_done = 0;

    start_loop(&loop, t.client);
    for (unsigned round = 0; round < ROUNDS; round++) {
        fake_lie(t.fake, FAKE_LATE, MESSAGE_TAKE);
        check_eq(pthread_create(&thread, NULL, map_one, t.own), 0);
        while (fake_count(t.fake).late < 1)
            ;
        for (unsigned i = 0; i < 2; i++) {
            n_done++;
            give(&t, n_done % 2, n_done, 3, 1, 0);
            while (fake_count(t.fake).orders_done < n_done)
                ;
            check_eq(fake_count(t.fake).order_error, 0);
        }
        fake_release(t.fake);
        check_eq(pthread_join(thread, NULL), 0);
        check_ok(unmap_range(t.own, 0, 1));
    }
    end_loop(&loop);
    end(&t);
}

static void *close_region(void *data)
{
    return kvc_region_close(data);
}

/* While its pages are on their way back and the daemon is waited for, another thread may have the lock. */
TEST(orders_for_a_region_that_is_being_closed)
{
    struct worker_test t = begin(1, 1);
    pthread_t thread;

    give(&t, true, 1, 3, 1, 0);
    while (fake_count(t.fake).orders_done < 1)
        ;
    fake_lie(t.fake, FAKE_LATE, MESSAGE_RETURN);
    check_eq(pthread_create(&thread, NULL, close_region, t.ordered), 0);
    while (fake_count(t.fake).returns < 1)
        ;
    give(&t, false, 2, 3, 1, 0);
    give(&t, true, 3, 5, 2, 1);
    while (fake_count(t.fake).orders_done < 3)
        ;
    check_eq(fake_count(t.fake).order_error, (int)KVCACHED__ERROR__ERROR_WORKER);
    check(strstr(fake_count(t.fake).order_reason, "has closed the region"));
    check_eq(fake_count(t.fake).lent_at_done, 0);
    fake_release(t.fake);
    check_eq(pthread_join(thread, NULL), 0);
    check_handles(&t, 0);
    end(&t);
}

TEST(the_client_is_closed_before_their_turn)
{
    struct worker_test t = begin(2, 0);

    give(&t, true, 1, 1, 2, 3);
    give(&t, false, 2, 1, 2, 0);
    give(&t, true, 3, 1, 1, 0);
    take_a_page(&t);
    end(&t);
}

/* Neither is the parent's order the child's, nor does the child's end take anything from the parent. */
TEST(a_fork_before_its_turn)
{
    struct worker_test t = begin(1, 0);
    int status;
    pid_t pid;

    give(&t, true, 1, 1, 2, 0);
    take_a_page(&t);
    pid = fork();
    if (pid == 0) {
        check(!kvc_close(t.client));
        _exit(0);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    check_eq(carry_out(&t, 1).order_error, 0);
    end(&t);
}

/* What came with it isn't the worker's to use any more. */
TEST(the_daemon_dies_before_its_turn)
{
    struct worker_test t = begin(1, 0);
    struct pollfd pfd = {.fd = kvc_get_fd(t.client), .events = POLLIN};

    give(&t, true, 1, 1, 3, 2);
    take_a_page(&t);
    check_handles(&t, 4);
    check_eq(kill(fake_pid(t.fake), SIGKILL), 0);
    check_eq(poll(&pfd, 1, -1), 1);
    check_error(kvc_dispatch(t.client), KVC_E_DISCONNECTED);
    check_handles(&t, 1);
    kvc_close(t.client);
    check_handles(&t, 0);
    emulator_close(t.emulator);
    fake_stop(t.fake);
}

/* The order fails in its turn, and who waited has what it wanted. */
TEST(descriptors_that_find_no_room)
{
    struct worker_test t = begin(2, 0);
    struct rlimit limit, low;

    check_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    low = limit;
    low.rlim_cur = (rlim_t)dup(kvc_get_fd(t.client)) + ROOM;
    check_eq(close((int)low.rlim_cur - ROOM), 0);
    give(&t, true, 1, 1, 4, 6);
    check_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
    take_a_page(&t);
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    check_failed(carry_out(&t, 1), "descriptor table");
    check_handles(&t, 1);
    end(&t);
}

TEST(memory_that_is_none)
{
    struct worker_test t = begin(1, 0);
    struct fake_order order = {
        .map = true, .session = 1, .number = 1, .pages = {1}, .n = 1, .lie = FAKE_NOT_MEMORY};

    fake_order(t.fake, &order);
    fake_lie(t.fake, FAKE_REFUSE, MESSAGE_TAKE);
    check_error(map_range(t.own, 0, 1), KVC_E_RESOURCES);
    check(!strstr(kvc_last_error(), "cuMemImportFromShareableHandle"));
    dispatch_until(t.client, fake_count(t.fake).orders_done == 1);
    check(strstr(fake_count(t.fake).order_reason, "cuMemImportFromShareableHandle"));
    end(&t);
}

/* A packet that makes no sense ends the connection of who waits. */
TEST(a_packet_that_makes_no_sense)
{
    struct worker_test t = begin(1, 0);
    struct fake_order order = {
        .map = true, .session = 1, .number = 2, .pages = {1}, .n = 1, .lie = FAKE_TOO_MANY};

    give(&t, true, 1, 2, 2, 0);
    fake_order(t.fake, &order);
    check_error(map_range(t.own, 0, 1), KVC_E_PROTOCOL);
    check_error(kvc_dispatch(t.client), KVC_E_DISCONNECTED);
    check_handles(&t, 0);
    end(&t);
}

/* Whoever receives, and whoever carries out. */

struct mapper {
    struct worker_test *t;
    uint64_t page;
    atomic_bool *stop;
};

static void *map_and_unmap(void *data)
{
    struct mapper *mapper = data;

    while (!*mapper->stop) {
        check_ok(map_range(mapper->t->own, mapper->page, 1));
        check_ok(unmap_range(mapper->t->own, mapper->page, 1));
    }
    return NULL;
}

TEST(threads_that_wait_and_one_that_carries_out)
{
    struct worker_test t = begin(2, 1);
    atomic_bool stop = false;
    struct mapper mappers[2] = {{&t, 0, &stop}, {&t, 1, &stop}};
    pthread_t threads[2];

    for (int i = 0; i < 2; i++)
        check_eq(pthread_create(&threads[i], NULL, map_and_unmap, &mappers[i]), 0);
    for (unsigned i = 1; i <= ROUNDS; i++) {
        give(&t, i % 2, i, 3, 2, 3);
        while (fake_count(t.fake).orders_done < i)
            ;
        check_eq(fake_count(t.fake).order_error, 0);
    }
    stop = true;
    for (int i = 0; i < 2; i++)
        check_eq(pthread_join(threads[i], NULL), 0);
    end(&t);
}
