/* SPDX-License-Identifier: Apache-2.0 */
#include "blockworld.h"

struct kvc_blocks *open_blocks(struct kvc_region *region, uint64_t block_bytes, int null_block)
{
    struct kvc_blocks_options options = {
        .size = sizeof(options), .block_bytes = block_bytes, .null_block = null_block};
    struct kvc_blocks *blocks;

    check_ok(kvc_blocks_open(&region, 1, &options, &blocks));
    return blocks;
}

struct world world_open(bool leases, int min, int max)
{
    struct fake_settings settings = {.leases = leases};
    struct world w = {.fake = fake_start(&settings)};

    w.client = open_caching(w.fake, min, max, 0);
    w.region = open_region(w.client, 2, PAGE, PAGES);
    w.blocks = open_blocks(w.region, BLOCK, 0);
    return w;
}

void world_close(struct world *w)
{
    kvc_blocks_close(w->blocks);
    kvc_close(w->client);
    check_eq(lent_bytes(w->fake), 0);
    fake_stop(w->fake);
}

struct kvc_blocks_status status_of(struct kvc_blocks *blocks)
{
    struct kvc_blocks_status status = {.size = sizeof(status)};

    check_ok(kvc_blocks_status(blocks, &status));
    return status;
}
