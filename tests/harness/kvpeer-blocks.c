/* SPDX-License-Identifier: Apache-2.0 */

/* Each region has its own blocks, and a peer gives back first what it took last. */

#include "kvpeer-blocks.h"

#include <inttypes.h>
#include <stdlib.h>

void blocks_yield(void)
{
    for (unsigned i = 0; i < REGIONS_MAX; i++) {
        struct named_region *slot = &peer.regions[i];

        if (slot->yields && kvc_blocks_free(slot->blocks, slot->ids, slot->n_ids, 0) == 0)
            slot->n_ids = 0;
    }
}

static void do_blocks(const struct words *words)
{
    struct kvc_blocks_options options = {.size = sizeof(options)};
    struct named_region *slot = find_region(words);

    if (!slot)
        return;
    if (!words_size(words, "block", &options.block_bytes) || !words_int(words, "null", &options.null_block))
        usage("blocks NAME block=SIZE [null=0|1]");
    else
        result(kvc_blocks_open(&slot->region, 1, &options, &slot->blocks));
}

/* The region's blocks and the number behind its name; NULL with a complaint. */
static struct named_region *find_blocks(const struct words *words, uint64_t *ret_n)
{
    struct named_region *slot = find_region(words);

    if (!slot || (slot->blocks && (!ret_n || words_number(words, 2, ret_n))))
        return slot;
    usage("There are no blocks of that region, or a number is missing");
    return NULL;
}

static void do_take(const struct words *words)
{
    uint64_t n;
    struct named_region *slot = find_blocks(words, &n);
    uint32_t *ids;
    int r;

    if (!slot)
        return;
    ids = realloc(slot->ids, (slot->n_ids + n + 1) * sizeof(*ids));
    if (!ids)
        abort();
    slot->ids = ids;
    r = kvc_blocks_alloc(slot->blocks, n, ids + slot->n_ids);
    if (r < 0 || n == 0) {
        result(r);
        return;
    }
    ok("%u", ids[slot->n_ids]);
    slot->n_ids += n;
}

static void do_give(const struct words *words)
{
    uint64_t n, epoch = 0;
    struct named_region *slot = find_blocks(words, &n);
    int r;

    if (!slot)
        return;
    if (n > slot->n_ids || (words->n > 3 && !words_number(words, 3, &epoch))) {
        usage("It has not so many");
        return;
    }
    r = kvc_blocks_free(slot->blocks, slot->ids + slot->n_ids - n, n, epoch);
    slot->n_ids -= r == 0 ? n : 0;
    result(r);
}

static void do_complete(const struct words *words)
{
    uint64_t epoch;
    struct named_region *slot = find_blocks(words, &epoch);

    if (slot)
        result(kvc_blocks_complete(slot->blocks, epoch));
}

static void do_available(const struct words *words)
{
    struct named_region *slot = find_blocks(words, NULL);

    if (slot)
        ok("%" PRIu64, kvc_blocks_available(slot->blocks));
}

static void do_want(const struct words *words)
{
    uint64_t n, timeout_ms, available;
    struct named_region *slot = find_blocks(words, &n);
    int r;

    if (!slot)
        return;
    if (!words_number(words, 3, &timeout_ms)) {
        usage("How long?");
        return;
    }
    r = kvc_blocks_want(slot->blocks, n, (int)timeout_ms, &available);
    if (r < 0)
        result(r);
    else
        ok("%" PRIu64, available);
}

static void do_count(const struct words *words)
{
    struct kvc_blocks_status s = {.size = sizeof(s)};
    struct named_region *slot = find_blocks(words, NULL);
    int r;

    if (!slot)
        return;
    r = kvc_blocks_status(slot->blocks, &s);
    if (r < 0)
        result(r);
    else
        ok("used=%" PRIu64 " free=%" PRIu64 " claimed=%" PRIu64 " offered=%" PRIu64 " mapped=%" PRIu64
           " free_pages=%" PRIu64 " waited=%" PRIu64,
           s.used_blocks, s.free_blocks, s.claimed_pages, s.offered_pages, s.mapped_pages, s.free_pages,
           s.waited_total);
}

static void do_yield(const struct words *words)
{
    struct named_region *slot = find_blocks(words, NULL);

    if (!slot)
        return;
    slot->yields = true;
    done();
}

static void do_close_blocks(const struct words *words)
{
    struct named_region *slot = find_blocks(words, NULL);

    if (!slot)
        return;
    slot->blocks = kvc_blocks_close(slot->blocks);
    slot->n_ids = 0;
    slot->yields = false;
    done();
}

const struct command blocks_commands[N_BLOCKS_COMMANDS] = {
    {"blocks", do_blocks, true},
    {"take", do_take, true},
    {"give", do_give, true},
    {"complete", do_complete, true},
    {"available", do_available, true},
    {"want", do_want, true},
    {"count", do_count, true},
    {"yield", do_yield, true},
    {"close-blocks", do_close_blocks, true},
};
