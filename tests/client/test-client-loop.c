/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A host that dispatches on one thread, and calls the library on another. What is ordered meanwhile is in
 * test-client-orders-early.c.
 */

#include <sys/resource.h>
#include <unistd.h>

#include "blockworld.h"
#include "hostloop.h"

#define AHEAD 2

/* Who allocates says without a lock that pages are used up. */
TEST(the_loop_fills_up_what_another_thread_uses)
{
    struct world w = world_open(false, AHEAD, AHEAD);
    struct event_loop loop;
    uint32_t ids[PAGES * EACH];
    uint64_t n_used = 0;

    start_loop(&loop, w.client);
    for (; n_used < PAGES - AHEAD; n_used++) {
        check_ok(kvc_blocks_alloc(w.blocks, EACH, ids + n_used * EACH));
        while (status_of(w.blocks).mapped_pages < n_used + 1 + AHEAD)
            ;
    }
    end_loop(&loop);
    check_ok(kvc_blocks_free(w.blocks, ids, n_used * EACH, 0));
    world_close(&w);
}

TEST(no_descriptor_for_a_loop)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct rlimit limit, tight;
    int lowest = dup(0);

    check(lowest >= 0);
    close(lowest);
    check_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int n = 0; n < 2; n++) {
        tight = (struct rlimit){.rlim_cur = (rlim_t)(lowest + n), .rlim_max = limit.rlim_max};
        check_eq(setrlimit(RLIMIT_NOFILE, &tight), 0);
        check_error(kvc_get_fd(client), KVC_E_NOFILE);
    }
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    check(kvc_get_fd(client) >= 0);
    check_eq(kvc_get_fd(client), kvc_get_fd(client));
    check_ok(kvc_dispatch(client));
    kvc_close(client);
    fake_stop(fake);
}
