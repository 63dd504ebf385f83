/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the daemon says by itself while a thread waits for something else: it is kept in its order, until it
 * is acted upon where the library may take its time. Only notices are seen to by whoever waits.
 */

#include <pthread.h>

#include "blockworld.h"

#define KEPT 256 /* of one client's news, at most */
#define LONG_MS 20000

/* A worker that has blocks of its own beside its scheduler's pages. */
static struct world begin(void)
{
    struct world w = {.fake = fake_start(&(struct fake_settings){.leases = true, .orders = true})};
    struct kvc_options options = plain_options(w.fake);
    struct kvc_region_options ordered = {.size = sizeof(ordered),
                                         .segments = 1,
                                         .page_bytes = PAGE,
                                         .pages = PAGES,
                                         .flags = KVC_REGION_ORDERED};
    struct kvc_region *region;

    options.role = KVC_ROLE_WORKER;
    options.min_reserved_pages = 1;
    options.max_reserved_pages = 4;
    check_ok(kvc_open(&options, &w.client));
    check_ok(kvc_region_open(w.client, &ordered, &region));
    w.region = open_region(w.client, 1, PAGE, PAGES);
    w.blocks = open_blocks(w.region, BLOCK, 0);
    return w;
}

static void give_order(struct world *w, bool map, uint64_t number, uint64_t first, size_t n)
{
    struct fake_order order = {.map = map, .session = 1, .number = number, .n = n};

    for (size_t i = 0; i < n; i++)
        order.pages[i] = first + i;
    fake_order(w->fake, &order);
}

static void give_short_orders(struct world *w, unsigned n)
{
    for (unsigned i = 1; i <= n; i++)
        give_order(w, false, i, 0, 0);
}

/* A thread waits for a lease, and is the one that receives. */
static pthread_t start_waiting(struct world *w, void *(*want)(void *blocks))
{
    pthread_t thread;

    fake_lie(w->fake, FAKE_LATE, MESSAGE_LEASE);
    check_eq(pthread_create(&thread, NULL, want, w->blocks), 0);
    while (fake_count(w->fake).late == 0)
        ;
    return thread;
}

static void *want(void *blocks)
{
    check_ok(kvc_blocks_want(blocks, EACH, LONG_MS, NULL));
    return NULL;
}

/* The lease comes behind all that was said before, and the thread has received that. */
static void end_waiting(struct world *w, pthread_t thread)
{
    fake_release(w->fake);
    check_eq(pthread_join(thread, NULL), 0);
    check_eq(fake_count(w->fake).orders_done, 0);
    check_eq(kvc_get_timeout(w->client), 0);
}

static void carry_out(struct world *w, uint64_t n_done)
{
    while (fake_count(w->fake).orders_done < n_done)
        check_ok(kvc_dispatch(w->client));
    check_eq(fake_count(w->fake).order_error, 0);
}

TEST(orders_wait_and_notices_do_not)
{
    struct world w = begin();
    pthread_t thread = start_waiting(&w, want);

    give_order(&w, true, 1, 3, 2);
    give_order(&w, false, 2, 3, 1);
    fake_notice(w.fake, PAGE, LONG_MS, true);
    while (fake_count(w.fake).acks == 0)
        ;
    end_waiting(&w, thread);
    carry_out(&w, 2);
    /* Just page 4 is there. */
    give_order(&w, false, 3, 4, 1);
    carry_out(&w, 3);
    give_order(&w, true, 4, 3, 1);
    carry_out(&w, 4);
    world_close(&w);
}

TEST(a_long_queue_is_carried_out)
{
    struct world w = begin();
    pthread_t thread = start_waiting(&w, want);

    give_short_orders(&w, KEPT);
    end_waiting(&w, thread);
    carry_out(&w, KEPT);
    world_close(&w);
}

static void *want_in_vain(void *blocks)
{
    check_error(kvc_blocks_want(blocks, EACH, LONG_MS, NULL), KVC_E_PROTOCOL);
    return NULL;
}

/* So many are waiting for an answer only where the daemon doesn't count them. */
TEST(a_queue_without_end_ends_the_connection)
{
    struct world w = begin();
    pthread_t thread = start_waiting(&w, want_in_vain);

    give_short_orders(&w, KEPT + 1);
    check_eq(pthread_join(thread, NULL), 0);
    check_error(kvc_dispatch(w.client), KVC_E_DISCONNECTED);
    check_eq(fake_count(w.fake).orders_done, 0);
    world_close(&w);
}

/* The daemon has its memory back. */
TEST(a_client_closed_with_news_in_hand)
{
    struct world w = begin();
    pthread_t thread = start_waiting(&w, want);

    give_order(&w, true, 1, 0, 2);
    end_waiting(&w, thread);
    w.blocks = kvc_blocks_close(w.blocks);
    w.client = kvc_close(w.client);
    while (fake_count(w.fake).peers > 0)
        ;
    check_eq(fake_count(w.fake).orders_done, 0);
    world_close(&w);
}
