/* SPDX-License-Identifier: Apache-2.0 */

/*
 * When the library says that descriptors have come: at once, unless nothing waits for it; for until then the
 * daemon sends no others.
 */

#include "support.h"

#include <pthread.h>

#define PAGE (2 * MIB)

struct taker {
    struct kvc_region *region;
    uint64_t page;
};

static void *take_a_page(void *data)
{
    struct taker *taker = data;

    check_ok(map_range(taker->region, taker->page, 1));
    return NULL;
}

TEST(a_single_descriptor_is_acknowledged_with_what_is_said_next)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 8);

    check_ok(map_range(region, 0, 1));
    check_eq(fake_count(fake).unacknowledged, 1);
    check_ok(map_range(region, 1, 1));
    check_eq(fake_count(fake).unacknowledged, 1);
    check_ok(unmap_range(region, 0, 1));
    check_eq(fake_count(fake).unacknowledged, 0);
    check_ok(unmap_range(region, 1, 1));
    check_eq(lent_bytes(fake), 0);
    kvc_region_close(region);
    kvc_close(client);
    fake_stop(fake);
}

TEST(several_are_acknowledged_at_once)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 8);

    check_ok(map_range(region, 0, 2));
    check_eq(fake_count(fake).unacknowledged, 0);
    kvc_region_close(region);
    kvc_close(client);
    fake_stop(fake);
}

/* Another thread's page would have to wait until somebody says something. */
TEST(who_waits_for_more_acknowledges_at_once)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 8);
    struct taker taker = {.region = region, .page = 1};
    pthread_t thread;

    fake_lie_after(fake, FAKE_LATE, MESSAGE_TAKE, 0);
    check_eq(pthread_create(&thread, NULL, take_a_page, &taker), 0);
    while (fake_count(fake).late == 0)
        ;
    check_ok(map_range(region, 0, 1));
    check_eq(fake_count(fake).unacknowledged, 0);
    fake_release(fake);
    pthread_join(thread, NULL);
    check_eq(fake_count(fake).unacknowledged, 1);
    check_eq(lent_bytes(fake), 2 * PAGE);
    kvc_region_close(region);
    kvc_close(client);
    fake_stop(fake);
}

/* A worker doesn't know when the next order comes. */
TEST(a_worker_acknowledges_at_once)
{
    struct fake *fake = fake_start(&(struct fake_settings){.orders = true});
    struct kvc_options options = plain_options(fake);
    struct kvc_region_options ordered = {
        .size = sizeof(ordered), .page_bytes = PAGE, .pages = 8, .flags = KVC_REGION_ORDERED};
    struct fake_order order = {.map = true, .session = 1, .number = 1, .pages = {1}, .n = 1};
    struct kvc_region *region, *mapped_by_scheduler;
    struct kvc_client *client;

    options.role = KVC_ROLE_WORKER;
    check_ok(kvc_open(&options, &client));
    region = open_region(client, 1, PAGE, 8);
    check_ok(kvc_region_open(client, &ordered, &mapped_by_scheduler));
    check_ok(map_range(region, 0, 1));
    check_eq(fake_count(fake).unacknowledged, 0);
    fake_order(fake, &order);
    dispatch_until(client, fake_count(fake).orders_done == 1);
    kvc_region_close(mapped_by_scheduler);
    kvc_region_close(region);
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    fake_stop(fake);
}
