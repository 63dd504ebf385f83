/* SPDX-License-Identifier: Apache-2.0 */

#include "remoteworld.h"

struct kvc_client *open_scheduler(struct fake *fake, int timeout_ms, int own_thread)
{
    struct kvc_options options = plain_options(fake);
    struct kvc_client *client;

    options.role = KVC_ROLE_SCHEDULER;
    options.timeout_ms = timeout_ms;
    options.own_thread = own_thread;
    check_ok(kvc_open(&options, &client));
    return client;
}

struct kvc_region *attach(struct kvc_client *client, uint32_t rank)
{
    struct kvc_region *region;

    check_ok(kvc_region_attach(client, 0, rank, LONG_MS, &region));
    return region;
}

struct fake *fake_with_orders(void)
{
    return fake_start(&(struct fake_settings){.orders = true});
}
