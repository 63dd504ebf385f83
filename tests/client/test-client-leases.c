/* SPDX-License-Identifier: Apache-2.0 */

/* Leases and reports, against a daemon that is honest or isn't. */

#include "lessee.h"

#include <pthread.h>

TEST(claims_are_spent)
{
    struct lessee *w = lessee_open(60000, 0);
    uint32_t ids[3 * EACH];

    lessee_want(w, 3 * EACH);
    check_eq(fake_count(w->fake).issued, 3);
    fake_withdraw(w->fake, 10);
    check_eq(kvc_blocks_available(w->blocks), 3 * EACH);
    check_ok(kvc_blocks_alloc(w->blocks, 3 * EACH, ids));
    check_eq(fake_count(w->fake).issued, 0);
    check_eq(fake_count(w->fake).leased_takes, 1);
    lessee_close(w);
}

/* What is offered is not counted before it is claimed. */
TEST(offers_can_be_withdrawn)
{
    struct lessee *w = lessee_open(60000, 0);

    check_ok(kvc_blocks_want(w->blocks, 3 * EACH, 0, NULL));
    /* Nobody dispatches: some of it would be taken as a reserve. */
    while (lessee_status(w).offered_pages == 0)
        ;
    fake_withdraw(w->fake, 1);
    check_eq(kvc_blocks_available(w->blocks), 2 * EACH);
    fake_withdraw(w->fake, 10);
    check_eq(kvc_blocks_available(w->blocks), 2 * EACH);
    check_eq(fake_count(w->fake).issued, 2);
    lessee_close(w);
}

TEST(more_than_was_claimed)
{
    struct lessee *w = lessee_open(60000, 0);
    uint32_t ids[5 * EACH];

    fake_set_limit(w->fake, 4 * PAGE);
    lessee_want(w, 2 * EACH);
    check_error(kvc_blocks_alloc(w->blocks, 5 * EACH, ids), KVC_E_LIMIT);
    check_eq(kvc_blocks_available(w->blocks), 2 * EACH);
    check_eq(fake_count(w->fake).issued, 2);
    check_ok(kvc_blocks_alloc(w->blocks, 4 * EACH, ids));
    check_eq(lent_bytes(w->fake), 4 * PAGE);
    lessee_close(w);
}

/* So when it is free again, no more of it is kept than ever. */
TEST(what_is_used_is_promised_no_more)
{
    struct lessee *w = lessee_open(60000, 0);
    uint32_t ids[6 * EACH];

    lessee_want(w, 6 * EACH);
    check_ok(kvc_blocks_alloc(w->blocks, 6 * EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, 6 * EACH, 0));
    check_eq(lent_bytes(w->fake), 4 * PAGE);
    lessee_close(w);
}

/* Claims that were spent are the daemon's again: putting them back would be claiming more than was issued. */
TEST(a_refusal_spends_claims)
{
    struct lessee *w = lessee_open(60000, 0);
    uint32_t ids[2 * EACH];

    lessee_want(w, 2 * EACH);
    fake_lie(w->fake, FAKE_REFUSE, MESSAGE_TAKE);
    check_error(kvc_blocks_alloc(w->blocks, 2 * EACH, ids), KVC_E_RESOURCES);
    check_eq(kvc_blocks_available(w->blocks), 0);
    check_eq(lessee_status(w).claimed_pages, 0);
    check_eq(fake_count(w->fake).issued, 0);
    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    lessee_close(w);
}

/* What is too much for a lease is there all the same: mapped. */
TEST(more_than_a_lease_can_hold)
{
    struct lessee *w = lessee_open_with((struct fake_settings){.lease_max = 4}, 60000, 0);
    uint64_t available = 0;
    uint32_t ids[6 * EACH];

    lessee_want(w, 4 * EACH);
    check_eq(lessee_status(w).mapped_pages, 0);
    lessee_want(w, 5 * EACH);
    check_eq(lessee_status(w).mapped_pages, 5);
    check_ok(kvc_blocks_alloc(w->blocks, 5 * EACH, ids));
    do {
        check_ok(kvc_blocks_want(w->blocks, 6 * EACH, 0, &available));
        check_ok(kvc_dispatch(w->client));
    } while (available < 6 * EACH);
    check_eq(lessee_status(w).mapped_pages, 11);
    lessee_close(w);
}

/* Claims end with the connection, and with them their promise; what is mapped goes on. */
TEST(promises_end_with_the_connection)
{
    struct kvc_region_options options = {.size = sizeof(options), .page_bytes = PAGE, .pages = 1};
    struct lessee *w = lessee_open(60000, 0);
    struct kvc_region *region;
    uint64_t available = 0;
    uint32_t ids[4 * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    check_ok(kvc_blocks_free(w->blocks, ids, EACH, 0));
    lessee_want(w, 4 * EACH);
    check_eq(lessee_status(w).claimed_pages, 3);
    fake_lie(w->fake, FAKE_DISCONNECT, MESSAGE_REGION_OPEN);
    check_error(kvc_region_open(w->client, &options, &region), KVC_E_DISCONNECTED);
    check_eq(lessee_status(w).claimed_pages, 0);
    check_eq(kvc_blocks_available(w->blocks), EACH);
    check_error(kvc_blocks_want(w->blocks, EACH + 1, -1, &available), KVC_E_DISCONNECTED);
    check_eq(available, EACH);
    check_error(kvc_blocks_alloc(w->blocks, EACH + 1, ids), KVC_E_DISCONNECTED);
    check_ok(kvc_blocks_alloc(w->blocks, EACH, ids));
    check_eq(kvc_blocks_available(w->blocks), 0);
    lessee_close(w);
}

/* ---- A daemon that breaks its word ---- */

TEST(another_number_of_pages)
{
    struct lessee *w = lessee_open(100, 0);

    fake_lie(w->fake, FAKE_OTHER_LEASE, MESSAGE_LEASE);
    check_error(kvc_blocks_want(w->blocks, EACH, -1, NULL), KVC_E_PROTOCOL);
    check_error(kvc_blocks_want(w->blocks, EACH, -1, NULL), KVC_E_DISCONNECTED);
    lessee_close(w);
}

TEST(scribbled_words)
{
    struct lessee *w = lessee_open(100, 0);
    uint32_t ids[2 * EACH];

    fake_scribble(w->fake);
    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids));
    check_eq(lent_bytes(w->fake), 2 * PAGE);
    check_ok(kvc_blocks_free(w->blocks, ids, 2 * EACH, 0));
    lessee_close(w);
}

/* The daemon has said that it is there, and somebody else was faster. */
TEST(an_offer_that_is_gone)
{
    struct lessee *w = lessee_open(100, 0);

    fake_lie(w->fake, FAKE_FORGET, MESSAGE_LEASE);
    lessee_want(w, EACH);
    check_eq(fake_count(w->fake).leases, 2);
    lessee_close(w);
}

/* What is on its way for a region's last pages is used by who wants them. */
TEST(last_pages_are_on_their_way)
{
    struct lessee *w = lessee_open(60000, 0);
    uint32_t ids[PAGES * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, (PAGES - 2) * EACH, ids));
    dispatch_until(w->client, fake_count(w->fake).leased_takes > 0);
    check_ok(kvc_blocks_alloc(w->blocks, 2 * EACH, ids + (PAGES - 2) * EACH));
    check_eq(lent_bytes(w->fake), PAGES * PAGE);
    check_eq(kvc_blocks_available(w->blocks), 0);
    lessee_close(w);
}

/* Asking for leases while the background asks, too, asks for no more than there are pages. */
TEST(last_pages_are_asked_for_already)
{
    struct lessee *w = lessee_open(60000, 0);
    uint32_t ids[PAGES * EACH];

    check_ok(kvc_blocks_alloc(w->blocks, (PAGES - 2) * EACH, ids));
    check_ok(kvc_dispatch(w->client));
    lessee_want(w, 2 * EACH);
    check_eq(fake_count(w->fake).issued + fake_count(w->fake).extents, PAGES);
    lessee_close(w);
}

/* A cache that leases cannot be made of is no reason to ask again. */
TEST(wanting_too_much_is_refused)
{
    struct lessee *w = lessee_open(60000, 0);
    uint32_t ids[EACH];

    lessee_wait_for_refill(w, ids);
    fake_set_limit(w->fake, 10 * PAGE);
    fake_release(w->fake);
    check_error(kvc_blocks_want(w->blocks, 14 * EACH, 2000, NULL), KVC_E_LIMIT);
    check(fake_count(w->fake).leases <= 4);
    lessee_close(w);
}

TEST(no_answer_in_time)
{
    struct lessee *w = lessee_open(100, 0);
    uint64_t available = 7;

    fake_lie(w->fake, FAKE_SILENCE, MESSAGE_LEASE);
    check_error(kvc_blocks_want(w->blocks, EACH, 20, &available), KVC_E_TIMEOUT);
    check_eq(available, 0);
    lessee_close(w);
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
    struct lessee *w = lessee_open(60000, 0);
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
    lessee_close(w);
}
