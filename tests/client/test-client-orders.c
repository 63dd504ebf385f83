/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A worker whose pages are mapped by a scheduler: what it makes of orders, right and wrong ones. An order is
 * carried out as a whole or not at all, and whatever it brought is with the daemon before it is said to have
 * failed.
 */

#include "support.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGE (10 * MIB)
#define SEGMENTS 2
#define PAGES 16
#define EXTENTS 4 /* of a page: 8 + 2 MiB in each segment */
#define LOOK_MS 5

struct worker_test {
    struct fake *fake;
    struct kvc_client *client;
    struct kvc_region *region;
};

static struct kvc_region_options ordered(void)
{
    return (struct kvc_region_options){
        .size = sizeof(struct kvc_region_options),
        .segments = SEGMENTS,
        .page_bytes = PAGE,
        .pages = PAGES,
        .flags = KVC_REGION_ORDERED,
        .group = 2,
        .rank = 1,
    };
}

static struct kvc_options worker_options(struct fake *fake)
{
    struct kvc_options options = plain_options(fake);

    options.role = KVC_ROLE_WORKER;
    options.min_reserved_pages = 4;
    options.max_reserved_pages = 8;
    return options;
}

static struct worker_test join(struct fake *fake, int own_thread)
{
    struct worker_test t = {.fake = fake};
    struct kvc_options options = worker_options(t.fake);
    struct kvc_region_options region = ordered();

    options.own_thread = own_thread;
    check_ok(kvc_open(&options, &t.client));
    check_ok(kvc_region_open(t.client, &region, &t.region));
    return t;
}

static struct worker_test begin(int own_thread)
{
    return join(fake_start(&(struct fake_settings){.orders = true}), own_thread);
}

/* The worker's driver fails as planned; the daemon's doesn't. */
static struct worker_test begin_failing(const char *plan)
{
    struct fake *fake = fake_start(&(struct fake_settings){.orders = true});

    check_eq(setenv("KVCACHED_EMULATE_FAULTS", plan, 1), 0);
    return join(fake, 0);
}

static void end(struct worker_test *t)
{
    kvc_close(t->client);
    check_eq(lent_bytes(t->fake), 0);
    fake_stop(t->fake);
}

static void dispatch_some(struct worker_test *t)
{
    struct pollfd pfd = {.fd = kvc_get_fd(t->client), .events = (short)kvc_get_events(t->client)};
    int timeout = kvc_get_timeout(t->client);

    poll(&pfd, 1, timeout < 0 ? LOOK_MS : timeout);
    kvc_dispatch(t->client);
}

/* Gives an order and waits until it is said to be done. */
static struct fake_counts carry_out(struct worker_test *t, const struct fake_order *order)
{
    struct fake_counts counts = fake_count(t->fake);
    uint64_t before = counts.orders_done;

    fake_order(t->fake, order);
    while (counts = fake_count(t->fake), counts.orders_done == before)
        dispatch_some(t);
    check_eq(counts.orders_done, before + 1);
    return counts;
}

static struct fake_counts map(struct worker_test *t, uint64_t session, uint64_t number, uint64_t first,
                              size_t n)
{
    struct fake_order order = {.map = true, .session = session, .number = number, .n = n};

    for (size_t i = 0; i < n; i++)
        order.pages[i] = first + i;
    return carry_out(t, &order);
}

static struct fake_counts unmap(struct worker_test *t, uint64_t session, uint64_t number, uint64_t first,
                                size_t n)
{
    struct fake_order order = {.session = session, .number = number, .n = n};

    for (size_t i = 0; i < n; i++)
        order.pages[i] = first + i;
    return carry_out(t, &order);
}

static uint64_t mapped_pages(struct worker_test *t)
{
    struct kvc_status status = {.size = sizeof(status)};

    check_ok(kvc_status(t->client, &status));
    check_eq(status.cached_bytes, 0);
    return status.mapped_bytes / (PAGE * SEGMENTS);
}

static void check_done(struct fake_counts counts, uint64_t pages)
{
    if (counts.order_error)
        test_fail(__FILE__, __LINE__, "error %d: %s", counts.order_error, counts.order_reason);
    check_eq(counts.lent_at_done, pages * EXTENTS);
}

static void check_failed(struct fake_counts counts, const char *words, uint64_t pages)
{
    check_eq(counts.order_error, (int)KVCACHED__ERROR__ERROR_WORKER);
    if (!strstr(counts.order_reason, words))
        test_fail(__FILE__, __LINE__, "\"%s\" is not in \"%s\"", words, counts.order_reason);
    check_eq(counts.lent_at_done, pages * EXTENTS);
}

TEST(pages_are_mapped_and_unmapped)
{
    struct worker_test t = begin(0);
    struct emulator *emulator = emulator_open(t.client);

    check_done(map(&t, 1, 1, 3, 3), 3);
    check_eq(mapped_pages(&t), 3);
    for (uint64_t page = 3; page < 6; page++)
        for (unsigned segment = 0; segment < SEGMENTS; segment++)
            stamp(emulator, t.region, PAGE, segment, page, (uint32_t)(page * 10 + segment));
    for (uint64_t page = 3; page < 6; page++)
        for (unsigned segment = 0; segment < SEGMENTS; segment++)
            check_stamp(emulator, t.region, PAGE, segment, page, (uint32_t)(page * 10 + segment));
    check_done(unmap(&t, 1, 2, 4, 2), 1);
    check_eq(mapped_pages(&t), 1);
    check_stamp(emulator, t.region, PAGE, 1, 3, 31);
    check_done(map(&t, 1, 3, 5, 1), 2);
    emulator_close(emulator);
    end(&t);
}

TEST(an_order_in_many_packets)
{
    struct worker_test t = begin(0);
    struct emulator *emulator = emulator_open(t.client);
    struct fake_order order = {
        .map = true, .session = 1, .number = 1, .pages = {9, 2, 15, 7}, .n = 4, .packet_max = 3};

    check_done(carry_out(&t, &order), 4);
    for (size_t i = 0; i < 4; i++) {
        stamp(emulator, t.region, PAGE, 1, order.pages[i], (uint32_t)i + 1);
        check_stamp(emulator, t.region, PAGE, 1, order.pages[i], (uint32_t)i + 1);
    }
    emulator_close(emulator);
    end(&t);
}

TEST(only_the_scheduler_maps)
{
    struct worker_test t = begin(0);
    struct kvc_region_options options = ordered();
    struct kvc_region *region = NULL;

    check_error(map_range(t.region, 0, 1), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "KVC_REGION_ORDERED"));
    check_done(map(&t, 1, 1, 0, 1), 1);
    check_error(unmap_range(t.region, 0, 1), KVC_E_INVALID);
    check_eq(mapped_pages(&t), 1);
    options.flags = 1u << 30;
    check_error(kvc_region_open(t.client, &options, &region), KVC_E_INVALID);
    check(!region);
    end(&t);
}

TEST(only_workers_take_orders)
{
    struct fake *fake = fake_start(&(struct fake_settings){.orders = true});
    struct kvc_client *client = open_plain(fake);
    struct kvc_region_options options = ordered();
    struct kvc_region *region = NULL;

    check_error(kvc_region_open(client, &options, &region), KVC_E_INVALID);
    check(strstr(kvc_last_error(), "KVC_ROLE_WORKER"));
    kvc_close(client);
    fake_stop(fake);
}

TEST(an_old_daemon_gives_no_orders)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_options client_options = worker_options(fake);
    struct kvc_region_options options = ordered();
    struct kvc_region *region = NULL;
    struct kvc_client *client;

    check_ok(kvc_open(&client_options, &client));
    check_error(kvc_region_open(client, &options, &region), KVC_E_VERSION);
    options.flags = 0;
    check_ok(kvc_region_open(client, &options, &region));
    check_ok(map_range(region, 0, 1));
    kvc_close(client);
    fake_stop(fake);
}

/* Each of them fails as a whole. */
TEST(orders_that_cannot_be)
{
    struct worker_test t = begin(0);
    struct fake_order twice = {.map = true, .session = 1, .number = 10, .pages = {5, 6, 5}, .n = 3};

    check_done(map(&t, 1, 1, 3, 2), 2);
    check_failed(map(&t, 1, 2, 2, 2), "Page 3 is mapped already", 2);
    check_failed(map(&t, 1, 3, PAGES - 1, 2), "no page 16", 2);
    check_failed(carry_out(&t, &twice), "Page 5", 2);
    check_failed(unmap(&t, 1, 11, 4, 2), "Page 5 is not mapped", 2);
    check_failed(unmap(&t, 1, 12, PAGES, 1), "no page 16", 2);
    check_eq(mapped_pages(&t), 2);
    check_done(map(&t, 1, 13, 5, 2), 4);
    end(&t);
}

/* A number that failed may come again; one that was carried out changes nothing. */
TEST(nothing_is_done_twice)
{
    struct worker_test t = begin(0);

    check_failed(unmap(&t, 1, 1, 0, 1), "not mapped", 0);
    check_done(map(&t, 1, 1, 0, 1), 1);
    check_done(map(&t, 1, 1, 0, 1), 1);
    check_done(map(&t, 1, 1, 8, 1), 1);
    check_done(map(&t, 1, 4, 1, 1), 2);
    check_done(unmap(&t, 1, 4, 0, 1), 2);
    check_done(unmap(&t, 1, 3, 0, 1), 2);
    check_eq(mapped_pages(&t), 2);
    end(&t);
}

TEST(a_newer_session_takes_over)
{
    struct worker_test t = begin(0);
    struct emulator *emulator = emulator_open(t.client);

    check_done(map(&t, 4, 1, 0, 5), 5);
    check_done(map(&t, 6, 1, 3, 2), 2);
    check_eq(mapped_pages(&t), 2);
    stamp(emulator, t.region, PAGE, 0, 4, 77);
    /* What the older one has left behind is said to be done, and is not. */
    check_done(map(&t, 4, 2, 8, 2), 2);
    check_done(unmap(&t, 5, 1, 3, 2), 2);
    check_eq(mapped_pages(&t), 2);
    check_stamp(emulator, t.region, PAGE, 0, 4, 77);
    /* An order that cannot be carried out takes over, too: the older pages are nobody's. */
    check_failed(unmap(&t, 7, 1, 3, 1), "not mapped", 0);
    check_done(map(&t, 7, 2, 3, 1), 1);
    check_done(unmap(&t, 8, 1, 0, 0), 0);
    check_eq(mapped_pages(&t), 0);
    emulator_close(emulator);
    end(&t);
}

/* More pages than are unmapped in one go. */
TEST(a_large_session_is_taken_over)
{
    struct fake *fake = fake_start(&(struct fake_settings){.orders = true});
    struct kvc_options options = worker_options(fake);
    struct kvc_region_options region = ordered();
    struct worker_test t = {.fake = fake};
    struct fake_counts counts;

    region.page_bytes = 2 * MIB;
    region.segments = 1;
    region.pages = 200;
    check_ok(kvc_open(&options, &t.client));
    check_ok(kvc_region_open(t.client, &region, &t.region));
    for (uint64_t i = 0; i < 20; i++)
        map(&t, 1, i + 1, i * 8, 8);
    counts = unmap(&t, 2, 1, 0, 0);
    check_eq(counts.order_error, 0);
    check_eq(counts.lent_at_done, 0);
    end(&t);
}

TEST(a_full_descriptor_table_fails_the_order)
{
    struct worker_test t = begin(0);
    struct fake_order order = {.map = true, .session = 1, .number = 1, .pages = {1, 2, 3, 4}, .n = 4};
    struct rlimit limit, low;
    struct fake_counts counts;

    order.packet_max = 6;
    check_done(unmap(&t, 1, 0, 0, 0), 0);
    check_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    low = limit;
    low.rlim_cur = (rlim_t)kvc_get_fd(t.client) + 4;
    check_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
    counts = carry_out(&t, &order);
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    check_failed(counts, "descriptor table", 0);
    check_eq(mapped_pages(&t), 0);
    check_done(carry_out(&t, &order), 4);
    end(&t);
}

TEST(what_is_no_memory_fails_the_order)
{
    struct worker_test t = begin(0);
    struct fake_order order = {
        .map = true, .session = 1, .number = 1, .pages = {1, 2}, .n = 2, .lie = FAKE_NOT_MEMORY};

    order.packet_max = 3;
    check_failed(carry_out(&t, &order), "cuMemImportFromShareableHandle", 0);
    order.lie = FAKE_HONEST;
    check_done(carry_out(&t, &order), 2);
    end(&t);
}

/* A driver call of an order fails; nothing of the order is left, and it can be given again. */
static void fail_at(const char *plan, bool at_map)
{
    struct worker_test t = begin_failing(plan);

    if (at_map) {
        check_failed(map(&t, 1, 1, 1, 3), "cuMem", 0);
        check_eq(mapped_pages(&t), 0);
    }
    check_done(map(&t, 1, 2, 1, 3), 3);
    if (!at_map)
        check_failed(unmap(&t, 1, 3, 1, 3), "cuMemUnmap", 3);
    check_eq(mapped_pages(&t), 3);
    check_done(unmap(&t, 1, 4, 1, 3), 0);
    end(&t);
}

TEST(a_failing_import)
{
    fail_at("cuMemImportFromShareableHandle:2=INVALID_VALUE", true);
}

TEST(a_failing_map)
{
    fail_at("cuMemMap:5=INVALID_VALUE", true);
}

TEST(a_failing_access)
{
    fail_at("cuMemSetAccess:2=OUT_OF_MEMORY", true);
}

TEST(a_failing_unmap)
{
    fail_at("cuMemUnmap:2=INVALID_VALUE", false);
}

/* The older session stays in force until its pages are gone. */
TEST(a_driver_that_fails_a_takeover)
{
    struct worker_test t = begin_failing("cuMemUnmap:1=INVALID_VALUE");

    check_done(map(&t, 1, 1, 1, 2), 2);
    check_failed(map(&t, 2, 1, 4, 1), "cuMemUnmap", 2);
    check_done(map(&t, 2, 1, 4, 1), 1);
    check_eq(mapped_pages(&t), 1);
    end(&t);
}

/* Where undoing fails as well, the pages are broken: on the bill, and never mapped again. */
TEST(broken_pages)
{
    struct worker_test t = begin_failing("cuMemSetAccess:1=OUT_OF_MEMORY;cuMemUnmap:1-2=INVALID_VALUE");

    check_failed(map(&t, 1, 1, 1, 1), "cuMemSetAccess", 1);
    check_failed(map(&t, 1, 2, 1, 1), "unusable", 1);
    check_eq(mapped_pages(&t), 0);
    check_done(map(&t, 1, 3, 2, 1), 2);
    end(&t);
}

/* An order that makes no sense ends the connection; memory is not lost by it. */
static void lie_to_worker(struct fake *fake, struct fake_order order)
{
    struct worker_test t = join(fake, 0);
    struct kvc_status status = {.size = sizeof(status)};

    fake_order(t.fake, &order);
    do {
        dispatch_some(&t);
        check_ok(kvc_status(t.client, &status));
    } while (status.connected);
    check_error(kvc_dispatch(t.client), KVC_E_DISCONNECTED);
    check_eq(mapped_pages(&t), 0);
    kvc_close(t.client);
    do
        check_eq(fake_count(t.fake).orders_done, 0);
    while (fake_count(t.fake).peers > 0);
    check_eq(lent_bytes(t.fake), 0);
}

TEST(orders_that_make_no_sense)
{
    const struct fake_order good = {.map = true, .session = 1, .number = 1, .pages = {1, 2}, .n = 2};
    static const enum fake_lie lies[] = {
        FAKE_GARBAGE,  FAKE_BAD_LENGTH, FAKE_BAD_BODY, FAKE_BAD_VERSION, FAKE_UNKNOWN_TYPE,
        FAKE_EXTRA_FD, FAKE_MISSING_FD, FAKE_NO_FDS,   FAKE_TOO_MANY,    FAKE_NO_EXTENTS,
    };
    struct fake *fake = fake_start(&(struct fake_settings){.orders = true});
    struct fake_order order;

    for (size_t i = 0; i < ARRAY_SIZE(lies); i++) {
        order = good;
        order.lie = lies[i];
        lie_to_worker(fake, order);
    }
    order = good;
    order.n = 0;
    order.map = false;
    order.lie = FAKE_BAD_BODY;
    lie_to_worker(fake, order);
    fake_stop(fake);
}

/* The region was closed while the order was under way. */
TEST(orders_for_a_closed_region)
{
    struct worker_test t = begin(0);
    struct fake_order order = {.map = true, .session = 1, .number = 1, .pages = {1, 2}, .n = 2, .region = 9};

    order.packet_max = 3;
    check_failed(carry_out(&t, &order), "has closed the region", 0);
    order.map = false;
    check_failed(carry_out(&t, &order), "has closed the region", 0);
    end(&t);
}

static void take_half_an_order(struct worker_test *t)
{
    struct fake_order order = {
        .map = true, .session = 1, .number = 1, .pages = {1}, .n = 1, .packet_max = 1, .hold = true};

    fake_order(t->fake, &order);
    dispatch_until(t->client, fake_count(t->fake).unacknowledged == 0);
    check_eq(fake_count(t->fake).late, 1);
    check_eq(kvc_get_timeout(t->client), -1);
}

TEST(a_region_closed_between_two_packets)
{
    struct worker_test t = begin(0);
    struct fake_counts counts;

    take_half_an_order(&t);
    t.region = kvc_region_close(t.region);
    fake_release(t.fake);
    while (counts = fake_count(t.fake), counts.orders_done == 0)
        dispatch_some(&t);
    check_eq(counts.lent_at_done, 0);
    end(&t);
}

/* The client is closed with half an order in hand. */
TEST(a_client_closed_between_two_packets)
{
    struct worker_test t = begin(0);

    take_half_an_order(&t);
    kvc_close(t.client);
    while (fake_count(t.fake).peers > 0)
        ;
    check_eq(lent_bytes(t.fake), 0);
    fake_stop(t.fake);
}

/* The library's own thread does it all, and sleeps otherwise. */
TEST(own_thread)
{
    struct worker_test t = begin(1);
    struct fake_order order = {.map = true, .session = 1, .number = 1, .pages = {1, 2}, .n = 2};
    struct fake_counts counts;
    unsigned long before;

    fake_order(t.fake, &order);
    while (counts = fake_count(t.fake), counts.orders_done == 0)
        ;
    check_done(counts, 2);
    check_eq(mapped_pages(&t), 2);
    before = own_thread_at_rest();
    poll(NULL, 0, 300);
    check_eq(own_thread_switches(), before);
    order.number = 2;
    order.map = false;
    fake_order(t.fake, &order);
    while (counts = fake_count(t.fake), counts.orders_done == 1)
        ;
    check_done(counts, 0);
    end(&t);
}

/* What is ordered takes the place of zeros, and leaves zeros behind. A pinned page is not unmapped. */
TEST(zeros_holes_and_pins_of_a_worker)
{
    struct fake *fake = fake_start(&(struct fake_settings){.orders = true});
    struct kvc_options options = worker_options(fake);
    struct kvc_region_options region = ordered();
    struct worker_test t = {.fake = fake};
    struct emulator *emulator;

    region.flags |= KVC_REGION_ZERO_ON_MAP | KVC_REGION_HOLES_ZERO;
    check_ok(kvc_open(&options, &t.client));
    check_ok(kvc_region_open(t.client, &region, &t.region));
    emulator = emulator_open(t.client);
    check_eq(lent_bytes(fake), PAGE);
    check_stamp(emulator, t.region, PAGE, 1, 3, 0);
    check_eq(map(&t, 1, 1, 3, 1).order_error, 0);
    check_stamp(emulator, t.region, PAGE, 1, 3, 0);
    stamp(emulator, t.region, PAGE, 1, 3, 77);
    check_stamp(emulator, t.region, PAGE, 1, 4, 0);
    check_ok(kvc_region_pin(t.region, 3, 1));
    check(unmap(&t, 1, 2, 3, 1).order_error != 0);
    check_stamp(emulator, t.region, PAGE, 1, 3, 77);
    check_ok(kvc_region_unpin(t.region, 3, 1));
    check_eq(unmap(&t, 1, 3, 3, 1).order_error, 0);
    check_stamp(emulator, t.region, PAGE, 1, 3, 0);
    check_eq(lent_bytes(fake), PAGE);
    emulator_close(emulator);
    end(&t);
}
