/* SPDX-License-Identifier: Apache-2.0 */
#include "lessee.h"

static void on_reclaim(void *data, struct kvc_client *client, uint64_t bytes, unsigned deadline_ms)
{
    struct lessee *lessee = data;

    check(client == lessee->client);
    check(deadline_ms <= 60000);
    check_ok(kvc_dispatch(client)); /* it may be called */
    lessee->asked_bytes = bytes;
    lessee->n_asked++;
}

static const struct kvc_listener listener = {.size = sizeof(listener), .reclaim = on_reclaim};

struct lessee *lessee_open_with(struct fake_settings settings, unsigned report_ms, int own_thread)
{
    struct lessee *lessee = calloc(1, sizeof(*lessee));
    struct kvc_blocks_options blocks = {.size = sizeof(blocks), .block_bytes = BLOCK};
    struct kvc_options options;

    settings.leases = true;
    lessee->own_thread = own_thread;
    lessee->fake = fake_start(&settings);
    options = plain_options(lessee->fake);
    options.min_reserved_pages = 1;
    options.max_reserved_pages = 4;
    options.report_ms = report_ms;
    options.own_thread = own_thread;
    options.listener = &listener;
    options.listener_data = lessee;
    check_ok(kvc_open(&options, &lessee->client));
    lessee->region = open_region(lessee->client, 1, PAGE, PAGES);
    check_ok(kvc_blocks_open(&lessee->region, 1, &blocks, &lessee->blocks));
    return lessee;
}

struct lessee *lessee_open(unsigned report_ms, int own_thread)
{
    return lessee_open_with((struct fake_settings){0}, report_ms, own_thread);
}

void lessee_close(struct lessee *lessee)
{
    kvc_blocks_close(lessee->blocks);
    kvc_close(lessee->client);
    check_eq(lent_bytes(lessee->fake), 0);
    fake_stop(lessee->fake);
    free(lessee);
}

void lessee_want(struct lessee *lessee, uint64_t n)
{
    uint64_t available;

    check_ok(kvc_blocks_want(lessee->blocks, n, -1, &available));
    check(lessee->own_thread ? available >= n : available == n);
}

struct kvc_blocks_status lessee_status(struct lessee *lessee)
{
    struct kvc_blocks_status status = {.size = sizeof(status)};

    check_ok(kvc_blocks_status(lessee->blocks, &status));
    return status;
}

void lessee_wait_for_refill(struct lessee *lessee, uint32_t *ids)
{
    check_ok(kvc_blocks_alloc(lessee->blocks, EACH, ids));
    fake_lie(lessee->fake, FAKE_LATE, MESSAGE_TAKE);
    dispatch_until(lessee->client, fake_count(lessee->fake).late == 1);
    check_eq(lessee_status(lessee).free_pages, 0);
    check(fake_count(lessee->fake).cached > 0);
}
