/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Giving back free pages that are not one region's alone: other clients, or workers, unmap their part of
 * them, and are waited for without the client's lock, since they may need it. Regions can come and go
 * meanwhile, so the search begins anew after each; a number tells which ones have had their turn.
 */

#include "base/arith.h"
#include "blocks.h"
#include "region.h"

static struct kvc_region *next_shared(const struct kvc_client *client, uint64_t round)
{
    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        if (region->blocks && !blocks_are_alone(region->blocks) && region->given_round != round)
            return region;
    return NULL;
}

/* What a page brings back to the daemon of this client. */
static uint64_t bytes_of_page(const struct kvc_blocks *blocks, const struct kvc_client *client)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < blocks->n_regions; i++)
        if (blocks->regions[i]->client == client)
            bytes += kvc_region_page_bytes(blocks->regions[i]);
    return bytes;
}

/* Returns how many bytes. */
static uint64_t give_some(struct kvc_client *client, struct kvc_blocks *blocks, uint64_t wanted)
{
    uint64_t page_bytes, pages;

    if (!blocks_begin(blocks))
        return 0;
    page_bytes = bytes_of_page(blocks, client);
    pthread_mutex_unlock(&client->conn->lock);
    pages = blocks_shrink_by(blocks, wanted / page_bytes + (wanted % page_bytes != 0));
    blocks_end(blocks);
    pthread_mutex_lock(&client->conn->lock);
    return pages * page_bytes;
}

uint64_t blocks_give(struct kvc_client *client, const struct kvc_blocks *except, uint64_t wanted)
{
    uint64_t round = ++client->n_rounds, given = 0;
    struct kvc_region *region;

    while (given < wanted && (region = next_shared(client, round))) {
        region->given_round = round;
        if (region->blocks != except)
            given += give_some(client, region->blocks, wanted - given);
    }
    return given;
}
