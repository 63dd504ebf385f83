/* SPDX-License-Identifier: Apache-2.0 */

/* What is given back when the daemon asks for it, and what is not. */

#include "lessee.h"

static bool is_acked(struct lessee *w, uint64_t n)
{
    return fake_count(w->fake).acks == n;
}

TEST(notice_takes_what_nobody_was_promised)
{
    struct lessee *w = lessee_open(1, 0);
    uint32_t ids[2 * EACH];

    lessee_want(w, 3 * EACH);
    check_ok(kvc_blocks_alloc(w->blocks, EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, EACH, 0));
    /* Nothing is prepared anew meanwhile. */
    fake_press(w->fake, PAGES * PAGE);
    fake_notice(w->fake, 2 * PAGE, 500, true);
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(lessee_status(w).claimed_pages, 0);
    check_eq(lessee_status(w).offered_pages, 2);
    check_eq(lessee_status(w).free_pages, 1);
    fake_withdraw(w->fake, 10);
    fake_notice(w->fake, 10 * PAGE, 500, true);
    dispatch_until(w->client, is_acked(w, 2));
    check_eq(lent_bytes(w->fake), 0);
    check_eq(w->n_asked, 0);
    lessee_close(w);
}

/* A report of 300 ms holds for 300 ms, and not for ever. */
TEST(notice_waits_for_a_report)
{
    struct lessee *w = lessee_open(300, 0);
    uint32_t ids[EACH];

    lessee_want(w, 2 * EACH);
    fake_notice(w->fake, 2 * PAGE, 5000, true);
    while (kvc_get_timeout(w->client) < 0)
        check_ok(kvc_dispatch(w->client));
    check_ok(kvc_dispatch(w->client));
    check(kvc_get_timeout(w->client) > 0);
    check_eq(fake_count(w->fake).acks, 0);
    check_eq(lessee_status(w).claimed_pages, 2);
    /* New reports promise nothing, and don't keep the old one alive. */
    check_eq(kvc_blocks_available(w->blocks), 0);
    check_ok(kvc_blocks_alloc(w->blocks, EACH, ids));
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(lessee_status(w).claimed_pages, 0);
    check_eq(kvc_get_timeout(w->client), -1);
    lessee_close(w);
}

TEST(notice_of_a_limit_asks_the_engine)
{
    struct lessee *w = lessee_open(1, 0);
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
    lessee_close(w);
}

/* What the engine then gives is not kept, though the status page shows no pressure yet. */
TEST(what_is_given_for_a_notice_goes_back)
{
    struct lessee *w = lessee_open(1, 0);
    uint32_t ids[3 * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, 3 * EACH, ids));
    fake_notice(w->fake, 2 * PAGE, 60000, false);
    dispatch_until(w->client, w->n_asked == 1);
    check_eq(w->asked_bytes, 2 * PAGE);
    check_ok(kvc_blocks_free(w->blocks, ids, 2 * EACH, 0));
    check_eq(lent_bytes(w->fake), PAGE);
    lessee_close(w);
}

TEST(notice_leaves_what_the_gpu_reads)
{
    struct lessee *w = lessee_open(1, 0);
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
    lessee_close(w);
}

TEST(notice_waits_for_what_is_on_its_way)
{
    struct lessee *w = lessee_open(1, 0);
    uint32_t ids[EACH];

    lessee_wait_for_refill(w, ids);
    fake_notice(w->fake, PAGES * PAGE, 60000, true);
    while (kvc_get_timeout(w->client) <= 1000 && fake_count(w->fake).acks == 0)
        check_ok(kvc_dispatch(w->client));
    check_eq(fake_count(w->fake).acks, 0);
    fake_release(w->fake);
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(fake_count(w->fake).returns, 1);
    lessee_close(w);
}

TEST(notice_is_answered_in_time_whatever_is_on_its_way)
{
    struct lessee *w = lessee_open(1, 0);
    uint32_t ids[EACH];

    lessee_wait_for_refill(w, ids);
    fake_notice(w->fake, PAGES * PAGE, 30, true);
    dispatch_until(w->client, is_acked(w, 1));
    check_eq(fake_count(w->fake).late, 1);
    fake_release(w->fake);
    lessee_close(w);
}

/* Until it is a free page, what is on its way is hinted at, and then as that. */
TEST(hints_name_what_is_on_its_way)
{
    struct lessee *w = lessee_open(1, 0);
    struct kvc_blocks_status status;
    uint32_t ids[EACH];

    lessee_wait_for_refill(w, ids);
    fake_release(w->fake);
    do {
        check(fake_count(w->fake).cached > 0);
        dispatch_once(w->client);
        status = lessee_status(w);
    } while (status.free_pages == 0);
    dispatch_until(w->client, fake_count(w->fake).cached == lessee_status(w).free_pages);
    lessee_close(w);
}

TEST(notice_to_an_idle_engine)
{
    struct lessee *w = lessee_open(50, 1);
    uint32_t ids[2 * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, 2 * EACH, 0));
    lessee_want(w, 4 * EACH);
    fake_press(w->fake, PAGES * PAGE);
    fake_notice(w->fake, PAGES * PAGE, 2000, false);
    while (!is_acked(w, 1))
        ;
    fake_withdraw(w->fake, PAGES);
    check_eq(lent_bytes(w->fake), 0);
    lessee_close(w);
}

/* ---- Blocks of several regions ---- */

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
