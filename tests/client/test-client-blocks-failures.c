/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Blocks over workers' regions, whose workers and daemons the fake daemon plays: what is claimed, what is
 * mapped, and what is left of both when something is refused, cannot be sent, or has died.
 */

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include "region.h"
#include "support.h"

#define RANKS 3 /* a page takes an extent at the first, two at the second, three at the third */
#define PAGES 16
#define EACH 8 /* blocks in a page */
#define BLOCK (256 * KIB)
#define LONG_MS 20000

struct crew {
    struct fake *fake;
    struct kvc_client *clients[RANKS];
    struct kvc_region *regions[RANKS];
    struct kvc_blocks *blocks;
    uint32_t ids[PAGES * EACH];
    uint64_t lost_pages; /* which the fake daemon still takes for mapped */
};

static struct kvc_client *open_scheduler(struct fake *fake)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;

    options.role = KVC_ROLE_SCHEDULER;
    options.timeout_ms = LONG_MS;
    options.report_ms = 1;
    check_ok(kvc_open(&options, &client));
    return client;
}

static struct crew *crew_open(struct fake_settings settings)
{
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK, .max_pages = PAGES};
    struct crew *crew = calloc(1, sizeof(*crew));

    settings.orders = settings.leases = settings.even = true;
    crew->fake = fake_start(&settings);
    for (uint32_t i = 0; i < RANKS; i++) {
        crew->clients[i] = open_scheduler(crew->fake);
        check_ok(kvc_region_attach(crew->clients[i], 0, i, LONG_MS, &crew->regions[i]));
    }
    check_ok(kvc_blocks_open(crew->regions, RANKS, &options, &crew->blocks));
    return crew;
}

/* Of calls from now on: those before, and after, have all the time there is. */
static void set_timeout(struct crew *crew, uint64_t timeout_ms)
{
    for (int i = 0; i < RANKS; i++)
        crew->clients[i]->conn->timeout_ns = timeout_ms * NSEC_PER_MSEC;
}

static void crew_close(struct crew *crew)
{
    kvc_blocks_close(crew->blocks);
    check_eq(fake_count(crew->fake).mapped, crew->lost_pages);
    for (int i = 0; i < RANKS; i++)
        kvc_close(crew->clients[i]);
    fake_stop(crew->fake);
    free(crew);
}

static struct kvc_blocks_status status_of(struct crew *crew)
{
    struct kvc_blocks_status status = {.size = sizeof(status)};

    check_ok(kvc_blocks_status(crew->blocks, &status));
    return status;
}

static int take(struct crew *crew, size_t pages)
{
    return kvc_blocks_alloc(crew->blocks, pages * EACH, crew->ids);
}

static void check_mapped(struct crew *crew, uint64_t pages)
{
    check_eq(fake_count(crew->fake).mapped, pages * RANKS);
    check_eq(status_of(crew).mapped_pages, pages);
}

static void give_all(struct crew *crew, size_t pages)
{
    check_ok(kvc_blocks_free(crew->blocks, crew->ids, pages * EACH, 0));
    check_ok(kvc_blocks_trim(crew->blocks));
    check_mapped(crew, 0);
}

/* ---- More than can be set aside ---- */

TEST(claims_are_made_in_parts)
{
    struct crew *crew = crew_open((struct fake_settings){.lease_max = 30});

    check_ok(take(crew, 14));
    check_mapped(crew, 14);
    check_eq(fake_count(crew->fake).issued, 0);
    /* 8 pages take 48 extents; so 4 at once, and the last 2. */
    check_eq(fake_count(crew->fake).leased_takes, 4 * RANKS);
    check_eq(fake_count(crew->fake).maps, 4 * RANKS);
    give_all(crew, 14);
    crew_close(crew);
}

/* The bound is one of a single call, not of all leases. */
TEST(questions_are_made_smaller)
{
    struct crew *crew = crew_open((struct fake_settings){.take_max = 20});

    check_ok(take(crew, PAGES));
    check_mapped(crew, PAGES);
    check_eq(fake_count(crew->fake).leased_takes, 4 * RANKS);
    check_eq(fake_count(crew->fake).maps, 4 * RANKS);
    give_all(crew, PAGES);
    crew_close(crew);
}

/* A page that no lease can hold is mapped without one, and what was claimed for it is given up. */
TEST(pages_that_cannot_be_claimed)
{
    struct crew *crew = crew_open((struct fake_settings){.lease_max = 5});

    check_ok(take(crew, 3));
    check_mapped(crew, 3);
    check_eq(fake_count(crew->fake).leased_takes, 0);
    check_eq(status_of(crew).claimed_pages, 0);
    check_eq(kvc_blocks_available(crew->blocks), 0);
    give_all(crew, 3);
    crew_close(crew);
}

/* Of those, too, only so many are handed out at once. */
TEST(pages_that_cannot_be_claimed_in_parts)
{
    struct crew *crew = crew_open((struct fake_settings){.lease_max = 5, .take_max = 8});

    check_ok(take(crew, 13));
    check_mapped(crew, 13);
    check_eq(fake_count(crew->fake).leased_takes, 0);
    give_all(crew, 13);
    crew_close(crew);
}

TEST(a_page_of_too_many_extents)
{
    struct crew *crew = crew_open((struct fake_settings){.take_max = 2});

    check_error(take(crew, 2), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "Rank 2: Too many extents for one Map"));
    check_mapped(crew, 0);
    check_eq(status_of(crew).doubt_pages, 0);
    crew_close(crew);
}

/* The last part fails: nothing of the call stays. */
TEST(parts_are_all_or_nothing)
{
    struct crew *crew = crew_open((struct fake_settings){.lease_max = 30});

    fake_lie_after(crew->fake, FAKE_REFUSE_WORKER, MESSAGE_MAP, 3 * RANKS + 1);
    check_error(take(crew, 14), KVC_E_WORKER);
    check_mapped(crew, 0);
    check_eq(status_of(crew).empty_pages, PAGES);
    check_ok(take(crew, 14));
    give_all(crew, 14);
    crew_close(crew);
}

/* Memory that is short is short in parts, too. */
TEST(limits_count_in_parts)
{
    struct crew *crew = crew_open((struct fake_settings){.lease_max = 30, .limit_bytes = 40 * MIB});

    check_error(take(crew, 14), KVC_E_LIMIT);
    check_mapped(crew, 0);
    check_eq(status_of(crew).claimed_pages, 0);
    crew_close(crew);
}

TEST(what_is_wanted_and_cannot_be_claimed)
{
    struct crew *crew = crew_open((struct fake_settings){.lease_max = 30});
    uint64_t available = 0;

    check_ok(kvc_blocks_want(crew->blocks, 3 * EACH, -1, &available));
    check_eq(available, 3 * EACH);
    check_eq(status_of(crew).claimed_pages, 3);
    check_mapped(crew, 0);
    check_ok(kvc_blocks_want(crew->blocks, 10 * EACH, -1, &available));
    check_eq(available, 10 * EACH);
    check_mapped(crew, 10);
    check_ok(take(crew, 10));
    give_all(crew, 10);
    crew_close(crew);
}

/* The answer to who doesn't wait comes later, and only then is known. */
TEST(what_is_wanted_later_and_cannot_be_claimed)
{
    struct crew *crew = crew_open((struct fake_settings){.lease_max = 20});
    uint64_t available = 0;

    do {
        check_ok(kvc_blocks_want(crew->blocks, 10 * EACH, 0, &available));
        for (int i = 0; i < RANKS; i++)
            check_ok(kvc_dispatch(crew->clients[i]));
    } while (available < 10 * EACH);
    check_mapped(crew, 10);
    /* Less can still be set aside. */
    check_ok(take(crew, 10));
    do {
        check_ok(kvc_blocks_want(crew->blocks, 2 * EACH, 0, &available));
        for (int i = 0; i < RANKS; i++)
            check_ok(kvc_dispatch(crew->clients[i]));
    } while (available < 2 * EACH);
    check_mapped(crew, 10);
    give_all(crew, 10);
    crew_close(crew);
}

/* ---- What cannot be sent ---- */

static uint64_t word_pages(struct crew *crew)
{
    uint64_t n = 0;

    for (int i = 0; i < RANKS; i++) {
        struct lease lease = lease_of(crew->regions[i]);

        n += lease.claimed + (uint64_t)lease.offered;
    }
    return n;
}

static bool is_sent(int r)
{
    return r == 0 || !strstr(kvc_last_error(), "does not read");
}

/* A stopped daemon is asked for more than the socket and our own queue take. True: a page is mapped then. */
static bool fill_queue(struct kvc_region *other)
{
    bool mapped = false;

    while (is_sent(mapped ? unmap_range(other, 0, 1) : map_range(other, 0, 1)))
        mapped = !mapped;
    return mapped;
}

/* Claims that were spent on an order are claimed again when the order was not even sent. */
TEST(orders_that_are_not_sent)
{
    struct crew *crew = crew_open((struct fake_settings){0});
    struct kvc_region *other;
    bool mapped;
    int r;

    check_ok(kvc_region_attach(crew->clients[0], 0, 1, LONG_MS, &other));
    check_ok(kvc_blocks_want(crew->blocks, 3 * EACH, LONG_MS, NULL));
    check_eq(kill(fake_pid(crew->fake), SIGSTOP), 0);
    set_timeout(crew, 1);
    mapped = fill_queue(other);
    check_error(take(crew, 3), KVC_E_TIMEOUT);
    check_eq(lease_of(crew->regions[0]).claimed, 3);
    check_eq(kill(fake_pid(crew->fake), SIGCONT), 0);
    set_timeout(crew, LONG_MS);
    /* The ranks that were asked have mapped. When they have said so, it is undone. */
    do
        check_ok(kvc_blocks_trim(crew->blocks));
    while (status_of(crew).doubt_pages > 0);
    check_eq(fake_count(crew->fake).issued, word_pages(crew));
    while (mapped && !is_sent(unmap_range(other, 0, 1)))
        check_ok(kvc_dispatch(crew->clients[0]));
    /* An answer to this says that all before it has been heard. */
    while (!is_sent(r = kvc_region_attach(crew->clients[0], 0, 1, LONG_MS, &other)))
        check_ok(kvc_dispatch(crew->clients[0]));
    check_ok(r);
    crew_close(crew);
}

/* ---- What has died ---- */

/* A daemon, and with it what was claimed there. Whether its worker lives is not known, and what is mapped may
 * well be there. */
TEST(a_daemon_dies)
{
    struct crew *crew = crew_open((struct fake_settings){0});
    struct kvc_region *region;

    check_ok(take(crew, 2));
    check_ok(kvc_blocks_free(crew->blocks, crew->ids, 1, 0));
    check_ok(kvc_blocks_want(crew->blocks, 3 * EACH, -1, NULL));
    check_eq(kvc_blocks_available(crew->blocks), 3 * EACH + 1);
    fake_lie(crew->fake, FAKE_DISCONNECT, MESSAGE_REGION_ATTACH);
    check_error(kvc_region_attach(crew->clients[1], 0, 0, LONG_MS, &region), KVC_E_DISCONNECTED);
    check_eq(kvc_blocks_available(crew->blocks), 1);
    check_eq(status_of(crew).claimed_pages, 0);
    check_ok(kvc_blocks_alloc(crew->blocks, 1, crew->ids));
    check_error(kvc_blocks_alloc(crew->blocks, 1, crew->ids), KVC_E_DISCONNECTED);
    check_error(kvc_blocks_want(crew->blocks, EACH, -1, NULL), KVC_E_DISCONNECTED);
    check_eq(status_of(crew).mapped_pages, 2);
    check_eq(status_of(crew).doubt_pages, 0);
    crew->lost_pages = 2;
    crew_close(crew);
}

/* Nothing is to be had any more. What comes free is given back by the others at once, the rest in the end. */
static void check_over(struct crew *crew)
{
    uint64_t available = 99;
    uint32_t id;

    check_eq(kvc_blocks_available(crew->blocks), 0);
    check_error(kvc_blocks_alloc(crew->blocks, 1, &id), KVC_E_WORKER_GONE);
    check(strstr(kvc_last_error(), "Rank 1: The worker is gone"));
    check_error(kvc_blocks_reserve(crew->blocks, 1), KVC_E_WORKER_GONE);
    check_error(kvc_blocks_want(crew->blocks, 1, 0, &available), KVC_E_WORKER_GONE);
    check_error(kvc_blocks_want(crew->blocks, EACH, -1, NULL), KVC_E_WORKER_GONE);
    check_eq(available, 0);
    check_eq(status_of(crew).claimed_pages, 0);
    check_eq(status_of(crew).doubt_pages, 0);
    check_eq(status_of(crew).broken_pages, 0);
}

TEST(a_worker_dies_before_a_map)
{
    struct crew *crew = crew_open((struct fake_settings){0});
    uint32_t more[4 * EACH];
    uint64_t maps;

    check_ok(take(crew, 3));
    check_ok(kvc_blocks_free(crew->blocks, crew->ids, 1, 0));
    check_ok(kvc_blocks_want(crew->blocks, 3 * EACH, -1, NULL));
    fake_lie_after(crew->fake, FAKE_WORKER_GONE, MESSAGE_MAP, 1);
    check_error(kvc_blocks_alloc(crew->blocks, 4 * EACH, more), KVC_E_WORKER_GONE);
    maps = fake_count(crew->fake).maps;
    check_over(crew);
    check_eq(fake_count(crew->fake).maps, maps);
    check_eq(fake_count(crew->fake).mapped, 3 * (RANKS - 1));
    check_ok(kvc_blocks_free(crew->blocks, crew->ids + 1, EACH - 1, 0));
    check_eq(fake_count(crew->fake).mapped, 2 * (RANKS - 1));
    check_over(crew);
    crew_close(crew);
}

TEST(a_worker_dies_before_an_unmap)
{
    struct crew *crew = crew_open((struct fake_settings){0});

    check_ok(take(crew, 3));
    fake_lie_after(crew->fake, FAKE_WORKER_GONE, MESSAGE_UNMAP, 1);
    check_ok(kvc_blocks_free(crew->blocks, crew->ids, EACH, 0));
    check_over(crew);
    check_eq(fake_count(crew->fake).mapped, 2 * (RANKS - 1));
    check_ok(kvc_blocks_clear(crew->blocks));
    check_eq(fake_count(crew->fake).mapped, 0);
    check_eq(status_of(crew).empty_pages, PAGES);
    crew_close(crew);
}

/* What it had not answered is in doubt until then, and no longer. */
TEST(a_worker_is_silent_and_dies)
{
    struct crew *crew = crew_open((struct fake_settings){0});

    check_ok(take(crew, 2));
    fake_lie_after(crew->fake, FAKE_LATE, MESSAGE_UNMAP, 1);
    set_timeout(crew, 500);
    check_ok(kvc_blocks_free(crew->blocks, crew->ids, EACH, 0));
    set_timeout(crew, LONG_MS);
    check_eq(status_of(crew).doubt_pages, 1);
    fake_lie_after(crew->fake, FAKE_WORKER_GONE, MESSAGE_UNMAP, 1);
    check_ok(kvc_blocks_free(crew->blocks, crew->ids + EACH, EACH, 0));
    check_ok(kvc_blocks_trim(crew->blocks));
    check_over(crew);
    check_eq(fake_count(crew->fake).mapped, 0);
    crew_close(crew);
}

struct alloc_call {
    pthread_t thread;
    struct crew *crew;
    uint32_t ids[EACH];
    int r;
};

static void *alloc_page(void *data)
{
    struct alloc_call *call = data;

    call->r = kvc_blocks_alloc(call->crew->blocks, EACH, call->ids);
    return NULL;
}

/* A call that waits for a page is refused, though others have freed enough for it meanwhile. */
TEST(a_worker_dies_while_blocks_are_freed)
{
    struct crew *crew = crew_open((struct fake_settings){0});
    struct alloc_call call = {.crew = crew};
    uint64_t before;
    uint32_t some[EACH];

    check_ok(take(crew, 8));
    before = status_of(crew).waited_total;
    fake_lie_after(crew->fake, FAKE_WORKER_GONE, MESSAGE_MAP, 2);
    check_eq(kill(fake_pid(crew->fake), SIGSTOP), 0);
    check_eq(pthread_create(&call.thread, NULL, alloc_page, &call), 0);
    while (status_of(crew).waited_total == before)
        sched_yield();
    for (int i = 0; i < EACH; i++)
        some[i] = crew->ids[i * EACH];
    check_ok(kvc_blocks_free(crew->blocks, some, EACH, 0));
    check_eq(kill(fake_pid(crew->fake), SIGCONT), 0);
    check_eq(pthread_join(call.thread, NULL), 0);
    check_error(call.r, KVC_E_WORKER_GONE);
    crew_close(crew);
}

static void *close_region(void *data)
{
    check(!kvc_region_close(data));
    return NULL;
}

TEST(regions_are_closed_at_once)
{
    for (int round = 0; round < 20; round++) {
        struct crew *crew = crew_open((struct fake_settings){0});
        pthread_t threads[RANKS];

        check_ok(take(crew, 2));
        for (int i = 0; i < RANKS; i++)
            check_eq(pthread_create(&threads[i], NULL, close_region, crew->regions[i]), 0);
        for (int i = 0; i < RANKS; i++)
            check_eq(pthread_join(threads[i], NULL), 0);
        crew->blocks = NULL;
        crew_close(crew);
    }
}
