/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Leases, reports and notices, against a daemon that is honest or isn't.
 */

#include "support.h"

#include <poll.h>
#include <pthread.h>

#define PAGE (2 * MIB)
#define BLOCK (256 * KIB)
#define EACH 8
#define PAGES 16

struct world {
    struct fake *fake;
    struct kvc_client *client;
    struct kvc_region *region;
    struct kvc_blocks *blocks;
    uint64_t asked_bytes; /* of the engine, last */
    unsigned n_asked;
    int own_thread;
};

static void on_reclaim(void *data, struct kvc_client *client, uint64_t bytes, unsigned deadline_ms)
{
    struct world *w = data;

    check(client == w->client);
    check(deadline_ms <= 60000);
    check_ok(kvc_dispatch(client)); /* it may be called */
    w->asked_bytes = bytes;
    w->n_asked++;
}

static const struct kvc_listener listener = {.size = sizeof(listener), .reclaim = on_reclaim};

static struct world *world_open_with(struct fake_settings settings, unsigned report_ms, int own_thread)
{
    struct world *w = calloc(1, sizeof(*w));
    struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = BLOCK};
    struct kvc_options options;

    settings.leases = true;
    w->own_thread = own_thread;
    w->fake = fake_start(&settings);
    options = plain_options(w->fake);
    options.min_reserved_pages = 1;
    options.max_reserved_pages = 4;
    options.report_ms = report_ms;
    options.own_thread = own_thread;
    options.listener = &listener;
    options.listener_data = w;
    check_ok(kvc_open(&options, &w->client));
    w->region = open_region(w->client, 1, PAGE, PAGES);
    check_ok(kvc_blocks_open(&w->region, 1, &blocks, &w->blocks));
    return w;
}

static struct world *world_open(unsigned report_ms, int own_thread)
{
    return world_open_with((struct fake_settings){0}, report_ms, own_thread);
}

static void world_close(struct world *w)
{
    kvc_blocks_close(w->blocks);
    kvc_close(w->client);
    check_eq(lent_bytes(w->fake), 0);
    fake_stop(w->fake);
    free(w);
}

static void want(struct world *w, uint64_t n)
{
    uint64_t available;

    check_ok(kvc_blocks_want(w->blocks, n, -1, &available));
    check(w->own_thread ? available >= n : available == n);
}

static struct kvc_blocks_status status_of(struct world *w)
{
    struct kvc_blocks_status status = {.size = sizeof(status)};

    check_ok(kvc_blocks_status(w->blocks, &status));
    return status;
}

TEST(claims_are_spent)
{
    struct world *w = world_open(60000, 0);
    uint32_t ids[3 * EACH];

    want(w, 3 * EACH);
    check_eq(fake_count(w->fake).issued, 3);
    fake_withdraw(w->fake, 10);
    check_eq(kvc_blocks_available(w->blocks), 3 * EACH);
    check_ok(kvc_blocks_alloc(w->blocks, 3 * EACH, ids));
    check_eq(fake_count(w->fake).issued, 0);
    check_eq(fake_count(w->fake).leased_takes, 1);
    world_close(w);
}

/* What is offered is not counted before it is claimed. */
TEST(offers_can_be_withdrawn)
{
    struct world *w = world_open(60000, 0);

    check_ok(kvc_blocks_want(w->blocks, 3 * EACH, 0, NULL));
    /* Nobody dispatches: some of it would be taken as a reserve. */
    while (status_of(w).offered_pages == 0)
        ;
    fake_withdraw(w->fake, 1);
    check_eq(kvc_blocks_available(w->blocks), 2 * EACH);
    fake_withdraw(w->fake, 10);
    check_eq(kvc_blocks_available(w->blocks), 2 * EACH);
    check_eq(fake_count(w->fake).issued, 2);
    world_close(w);
}

TEST(more_than_was_claimed)
{
    struct world *w = world_open(60000, 0);
    uint32_t ids[5 * EACH];

    fake_set_limit(w->fake, 4 * PAGE);
    want(w, 2 * EACH);
    check_error(kvc_blocks_alloc(w->blocks, 5 * EACH, ids), KVC_E_LIMIT);
    check_eq(kvc_blocks_available(w->blocks), 2 * EACH);
    check_eq(fake_count(w->fake).issued, 2);
    check_ok(kvc_blocks_alloc(w->blocks, 4 * EACH, ids));
    check_eq(lent_bytes(w->fake), 4 * PAGE);
    world_close(w);
}

/* So when it is free again, no more of it is kept than ever. */
TEST(what_is_used_is_promised_no_more)
{
    struct world *w = world_open(60000, 0);
    uint32_t ids[6 * EACH];

    want(w, 6 * EACH);
    check_ok(kvc_blocks_alloc(w->blocks, 6 * EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, 6 * EACH, 0));
    check_eq(lent_bytes(w->fake), 4 * PAGE);
    world_close(w);
}

/* Claims that were spent are the daemon's again: putting them back would be claiming more than was issued. */
TEST(a_refusal_spends_claims)
{
    struct world *w = world_open(60000, 0);
    uint32_t ids[2 * EACH];

    want(w, 2 * EACH);
    fake_lie(w->fake, FAKE_REFUSE, MESSAGE_TAKE);
    check_error(kvc_blocks_alloc(w->blocks, 2 * EACH, ids), KVC_E_RESOURCES);
    check_eq(kvc_blocks_available(w->blocks), 0);
    check_eq(status_of(w).claimed_pages, 0);
    check_eq(fake_count(w->fake).issued, 0);
    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    world_close(w);
}

/* What is too much for a lease is there all the same: mapped. */
TEST(more_than_a_lease_can_hold)
{
    struct world *w = world_open_with((struct fake_settings){.lease_max = 4}, 60000, 0);
    uint64_t available = 0;
    uint32_t ids[6 * EACH];

    want(w, 4 * EACH);
    check_eq(status_of(w).mapped_pages, 0);
    want(w, 5 * EACH);
    check_eq(status_of(w).mapped_pages, 5);
    check_ok(kvc_blocks_alloc(w->blocks, 5 * EACH, ids));
    do {
        check_ok(kvc_blocks_want(w->blocks, 6 * EACH, 0, &available));
        check_ok(kvc_dispatch(w->client));
    } while (available < 6 * EACH);
    check_eq(status_of(w).mapped_pages, 11);
    world_close(w);
}

/* Claims end with the connection, and with them their promise; what is mapped goes on. */
TEST(promises_end_with_the_connection)
{
    struct kvc_region_options options = {.size = sizeof(options), .page_bytes = PAGE, .pages = 1};
    struct world *w = world_open(60000, 0);
    struct kvc_region *region;
    uint64_t available = 0;
    uint32_t ids[4 * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, EACH, 0));
    want(w, 4 * EACH);
    check_eq(status_of(w).claimed_pages, 3);
    fake_lie(w->fake, FAKE_DISCONNECT, MESSAGE_REGION_OPEN);
    check_error(kvc_region_open(w->client, &options, &region), KVC_E_DISCONNECTED);
    check_eq(status_of(w).claimed_pages, 0);
    check_eq(kvc_blocks_available(w->blocks), EACH);
    check_error(kvc_blocks_want(w->blocks, EACH + 1, -1, &available), KVC_E_DISCONNECTED);
    check_eq(available, EACH);
    check_error(kvc_blocks_alloc(w->blocks, EACH + 1, ids), KVC_E_DISCONNECTED);
    check_ok(kvc_blocks_alloc(w->blocks, EACH, ids));
    check_eq(kvc_blocks_available(w->blocks), 0);
    world_close(w);
}

/* ---- Notices ---- */

static bool is_acked(struct world *w, uint64_t n)
{
    return fake_count(w->fake).acks == n;
}

TEST(notice_takes_what_nobody_was_promised)
{
    struct world *w = world_open(1, 0);
    uint32_t ids[2 * EACH];

    want(w, 3 * EACH);
    check_ok(kvc_blocks_alloc(w->blocks, EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, EACH, 0));
    /* Nothing is prepared anew meanwhile. */
    fake_press(w->fake, PAGES * PAGE);
    fake_notice(w->fake, 2 * PAGE, 500, true);
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(status_of(w).claimed_pages, 0);
    check_eq(status_of(w).offered_pages, 2);
    check_eq(status_of(w).free_pages, 1);
    fake_withdraw(w->fake, 10);
    fake_notice(w->fake, 10 * PAGE, 500, true);
    dispatch_until(w->client, is_acked(w, 2));
    check_eq(lent_bytes(w->fake), 0);
    check_eq(w->n_asked, 0);
    world_close(w);
}

/* A report of 300 ms holds for 300 ms, and not for ever. */
TEST(notice_waits_for_a_report)
{
    struct world *w = world_open(300, 0);
    uint32_t ids[EACH];

    want(w, 2 * EACH);
    fake_notice(w->fake, 2 * PAGE, 5000, true);
    while (kvc_get_timeout(w->client) < 0)
        check_ok(kvc_dispatch(w->client));
    check_ok(kvc_dispatch(w->client));
    check(kvc_get_timeout(w->client) > 0);
    check_eq(fake_count(w->fake).acks, 0);
    check_eq(status_of(w).claimed_pages, 2);
    /* New reports promise nothing, and don't keep the old one alive. */
    check_eq(kvc_blocks_available(w->blocks), 0);
    check_ok(kvc_blocks_alloc(w->blocks, EACH, ids));
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(status_of(w).claimed_pages, 0);
    check_eq(kvc_get_timeout(w->client), -1);
    world_close(w);
}

TEST(notice_of_a_limit_asks_the_engine)
{
    struct world *w = world_open(1, 0);
    uint32_t ids[3 * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, 3 * EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids + 2 * EACH, EACH, 0));
    fake_press(w->fake, 2 * PAGE);
    fake_notice(w->fake, 2 * PAGE, 2000, false);
    dispatch_until(w->client, w->n_asked == 1);
    check_eq(w->asked_bytes, PAGE);
    check_eq(lent_bytes(w->fake), 2 * PAGE);
    check(is_acked(w, 1));
    check_ok(kvc_blocks_free(w->blocks, ids, EACH, 0));
    check_eq(lent_bytes(w->fake), PAGE);
    world_close(w);
}

/* What the engine then gives is not kept, though the status page shows no pressure yet. */
TEST(what_is_given_for_a_notice_goes_back)
{
    struct world *w = world_open(1, 0);
    uint32_t ids[3 * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, 3 * EACH, ids));
    fake_notice(w->fake, 2 * PAGE, 60000, false);
    dispatch_until(w->client, w->n_asked == 1);
    check_eq(w->asked_bytes, 2 * PAGE);
    check_ok(kvc_blocks_free(w->blocks, ids, 2 * EACH, 0));
    check_eq(lent_bytes(w->fake), PAGE);
    world_close(w);
}

TEST(notice_leaves_what_the_gpu_reads)
{
    struct world *w = world_open(1, 0);
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, EACH, 1));
    check_ok(kvc_blocks_free(w->blocks, ids + EACH, EACH, 0));
    check_eq(fake_count(w->fake).cached, 1);
    fake_press(w->fake, 4 * PAGE);
    fake_notice(w->fake, 2 * PAGE, 2000, true);
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(lent_bytes(w->fake), PAGE);
    check_ok(kvc_blocks_complete(w->blocks, 1));
    check_eq(lent_bytes(w->fake), 0);
    world_close(w);
}

/* Memory that was taken out of the lease for later, and is not here so far. */
static void wait_for_refill(struct world *w, uint32_t *ids)
{
    check_ok(kvc_blocks_alloc(w->blocks, EACH, ids));
    fake_lie(w->fake, FAKE_LATE, MESSAGE_TAKE);
    dispatch_until(w->client, fake_count(w->fake).late == 1);
    check_eq(status_of(w).free_pages, 0);
    check(fake_count(w->fake).cached > 0);
}

TEST(notice_waits_for_what_is_on_its_way)
{
    struct world *w = world_open(1, 0);
    uint32_t ids[EACH];

    wait_for_refill(w, ids);
    fake_notice(w->fake, PAGES * PAGE, 60000, true);
    while (kvc_get_timeout(w->client) <= 1000 && fake_count(w->fake).acks == 0)
        check_ok(kvc_dispatch(w->client));
    check_eq(fake_count(w->fake).acks, 0);
    fake_release(w->fake);
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(fake_count(w->fake).returns, 1);
    world_close(w);
}

TEST(notice_is_answered_in_time_whatever_is_on_its_way)
{
    struct world *w = world_open(1, 0);
    uint32_t ids[EACH];

    wait_for_refill(w, ids);
    fake_notice(w->fake, PAGES * PAGE, 30, true);
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(fake_count(w->fake).late, 1);
    fake_release(w->fake);
    world_close(w);
}

/* Until it is a free page, what is on its way is hinted at, and then as that. */
TEST(hints_name_what_is_on_its_way)
{
    struct world *w = world_open(1, 0);
    struct kvc_blocks_status status;
    uint32_t ids[EACH];

    wait_for_refill(w, ids);
    fake_release(w->fake);
    do {
        check(fake_count(w->fake).cached > 0);
        dispatch_once(w->client);
        status = status_of(w);
    } while (status.free_pages == 0);
    dispatch_until(w->client, fake_count(w->fake).cached == status_of(w).free_pages);
    world_close(w);
}

/* ---- Notices for blocks of several regions ---- */

struct joint {
    struct fake *fake;
    struct kvc_client *clients[2];
    struct kvc_region *regions[2];
    struct kvc_blocks *blocks;
};

static struct joint *joint_open(unsigned n_clients, unsigned report_ms)
{
    struct fake_settings settings = {.leases = true};
    struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = BLOCK};
    struct joint *j = calloc(1, sizeof(*j));
    struct kvc_options options;

    j->fake = fake_start(&settings);
    options = plain_options(j->fake);
    options.max_reserved_pages = PAGES;
    options.report_ms = report_ms;
    for (unsigned i = 0; i < n_clients; i++)
        check_ok(kvc_open(&options, &j->clients[i]));
    j->regions[0] = open_region(j->clients[0], 1, PAGE, PAGES);
    j->regions[1] = open_region(j->clients[n_clients - 1], 1, 2 * PAGE, PAGES);
    check_ok(kvc_blocks_open(j->regions, 2, &blocks, &j->blocks));
    return j;
}

/* So many pages, all but the first of which are free. */
static void keep_free_pages(struct joint *j, unsigned n)
{
    uint32_t ids[PAGES * EACH];

    check_ok(kvc_blocks_alloc(j->blocks, n * EACH, ids));
    check_ok(kvc_blocks_free(j->blocks, ids + EACH, (n - 1) * EACH, 0));
}

static void joint_close(struct joint *j)
{
    kvc_blocks_close(j->blocks);
    kvc_close(j->clients[0]);
    kvc_close(j->clients[1]);
    check_eq(lent_bytes(j->fake), 0);
    fake_stop(j->fake);
    free(j);
}

TEST(notice_takes_pages_of_several_regions)
{
    struct joint *j = joint_open(1, 1);

    keep_free_pages(j, 5);
    check_eq(lent_bytes(j->fake), 5 * 3 * PAGE);
    check_eq(fake_count(j->fake).cached, 2 * 4);
    /* A page of each has three times the bytes of one. */
    fake_notice(j->fake, 4 * PAGE, 5000, true);
    dispatch_until(j->clients[0], fake_count(j->fake).acks == 1);
    check_eq(lent_bytes(j->fake), 3 * 3 * PAGE);
    check_eq(fake_count(j->fake).cached, 2 * 2);
    fake_notice(j->fake, PAGES * PAGE, 5000, true);
    dispatch_until(j->clients[0], fake_count(j->fake).acks == 2);
    check_eq(lent_bytes(j->fake), 3 * PAGE);
    check_eq(fake_count(j->fake).cached, 0);
    joint_close(j);
}

TEST(notice_of_several_regions_waits_for_a_report)
{
    struct joint *j = joint_open(1, 300);

    keep_free_pages(j, 3);
    check_eq(kvc_blocks_available(j->blocks), 2 * EACH);
    fake_notice(j->fake, PAGES * PAGE, 5000, true);
    while (kvc_get_timeout(j->clients[0]) < 0)
        check_ok(kvc_dispatch(j->clients[0]));
    check_ok(kvc_dispatch(j->clients[0]));
    check_eq(fake_count(j->fake).acks, 0);
    check_eq(lent_bytes(j->fake), 3 * 3 * PAGE);
    dispatch_until(j->clients[0], fake_count(j->fake).acks == 1);
    check_eq(lent_bytes(j->fake), 3 * PAGE);
    joint_close(j);
}

/* Each daemon counts what it gets back itself. */
TEST(notice_takes_pages_of_several_clients)
{
    struct joint *j = joint_open(2, 1);

    keep_free_pages(j, 5);
    fake_notice(j->fake, 2 * PAGE, 5000, true);
    dispatch_until(j->clients[0], fake_count(j->fake).acks == 1);
    check_eq(lent_bytes(j->fake), 3 * 3 * PAGE);
    dispatch_until(j->clients[1], fake_count(j->fake).acks == 2);
    check_eq(lent_bytes(j->fake), 2 * 3 * PAGE);
    joint_close(j);
}

/* A call of its own is refused for nothing that it could have given back. */
TEST(pages_of_several_regions_give_way)
{
    struct joint *j = joint_open(1, 1);
    struct kvc_region *region = open_region(j->clients[0], 1, PAGE, PAGES);

    keep_free_pages(j, 5);
    fake_set_limit(j->fake, 5 * 3 * PAGE);
    check_ok(map_range(region, 0, 12));
    check_eq(lent_bytes(j->fake), (3 + 12) * PAGE);
    check_error(map_range(region, 12, 1), KVC_E_LIMIT);
    kvc_region_close(region);
    joint_close(j);
}

TEST(notice_to_an_idle_engine)
{
    struct world *w = world_open(50, 1);
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, 2 * EACH, 0));
    want(w, 4 * EACH);
    fake_press(w->fake, PAGES * PAGE);
    fake_notice(w->fake, PAGES * PAGE, 2000, false);
    while (!is_acked(w, 1))
        ;
    fake_withdraw(w->fake, PAGES);
    check_eq(lent_bytes(w->fake), 0);
    world_close(w);
}

/* ---- A daemon that breaks its word ---- */

TEST(another_number_of_pages)
{
    struct world *w = world_open(100, 0);

    fake_lie(w->fake, FAKE_OTHER_LEASE, MESSAGE_LEASE);
    check_error(kvc_blocks_want(w->blocks, EACH, -1, NULL), KVC_E_PROTOCOL);
    check_error(kvc_blocks_want(w->blocks, EACH, -1, NULL), KVC_E_DISCONNECTED);
    world_close(w);
}

TEST(scribbled_words)
{
    struct world *w = world_open(100, 0);
    uint32_t ids[2 * EACH];

    fake_scribble(w->fake);
    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    check_eq(lent_bytes(w->fake), 2 * PAGE);
    check_ok(kvc_blocks_free(w->blocks, ids, 2 * EACH, 0));
    world_close(w);
}

/* The daemon has said that it is there, and somebody else was faster. */
TEST(an_offer_that_is_gone)
{
    struct world *w = world_open(100, 0);

    fake_lie(w->fake, FAKE_FORGET, MESSAGE_LEASE);
    want(w, EACH);
    check_eq(fake_count(w->fake).leases, 2);
    world_close(w);
}

/* What is on its way for a region's last pages is used by who wants them. */
TEST(last_pages_are_on_their_way)
{
    struct world *w = world_open(60000, 0);
    uint32_t ids[PAGES * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, (PAGES - 2) * EACH, ids));
    dispatch_until(w->client, fake_count(w->fake).leased_takes > 0);
    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids + (PAGES - 2) * EACH));
    check_eq(lent_bytes(w->fake), PAGES * PAGE);
    check_eq(kvc_blocks_available(w->blocks), 0);
    world_close(w);
}

/* Asking for leases while the background asks, too, asks for no more than there are pages. */
TEST(last_pages_are_asked_for_already)
{
    struct world *w = world_open(60000, 0);
    uint32_t ids[PAGES * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, (PAGES - 2) * EACH, ids));
    check_ok(kvc_dispatch(w->client));
    want(w, 2 * EACH);
    check_eq(fake_count(w->fake).issued + fake_count(w->fake).extents, PAGES);
    world_close(w);
}

/* A cache that leases cannot be made of is no reason to ask again. */
TEST(wanting_too_much_is_refused)
{
    struct world *w = world_open(60000, 0);
    uint32_t ids[EACH];

    wait_for_refill(w, ids);
    fake_set_limit(w->fake, 10 * PAGE);
    fake_release(w->fake);
    check_error(kvc_blocks_want(w->blocks, 14 * EACH, 2000, NULL), KVC_E_LIMIT);
    check(fake_count(w->fake).leases <= 4);
    world_close(w);
}

TEST(no_answer_in_time)
{
    struct world *w = world_open(100, 0);
    uint64_t available = 7;

    fake_lie(w->fake, FAKE_SILENCE, MESSAGE_LEASE);
    check_error(kvc_blocks_want(w->blocks, EACH, 20, &available), KVC_E_TIMEOUT);
    check_eq(available, 0);
    world_close(w);
}

/* ---- Several threads ---- */

struct wanting {
    struct kvc_region *region;
    pthread_t thread;
};

static void *want_in_vain(void *data)
{
    struct wanting *wanting = data;
    struct kvc_blocks_options options = {.size = sizeof(options), .block_bytes = BLOCK};
    struct kvc_blocks *blocks;

    check_ok(kvc_blocks_open(&wanting->region, 1, &options, &blocks));
    check_error(kvc_blocks_want(blocks, EACH, -1, NULL), KVC_E_LIMIT);
    kvc_blocks_close(blocks);
    return NULL;
}

/* The one that is refused first waits for what the other is answered, not until the other has seen to it. */
TEST_LIMIT(refused_together, 20)
{
    struct world *w = world_open(60000, 0);
    struct wanting wanting[2];

    for (unsigned i = 0; i < 2; i++) {
        wanting[i] = (struct wanting){.region = open_region(w->client, 1, PAGE, PAGES)};
        fake_lie(w->fake, FAKE_LATE, MESSAGE_LEASE);
        check_eq(pthread_create(&wanting[i].thread, NULL, want_in_vain, &wanting[i]), 0);
        while (fake_count(w->fake).late <= i)
            ;
    }
    fake_set_limit(w->fake, 0);
    fake_release(w->fake);
    for (unsigned i = 0; i < 2; i++)
        check_eq(pthread_join(wanting[i].thread, NULL), 0);
    world_close(w);
}
