/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the engine and the owner do, right or wrong. What the allocator must answer follows from the rows by
 * search.
 */

#include "block-world.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "block-rows.h"
#include "block_alloc.h"

#define BATCH 64

static uint32_t pick(struct block_world *w, uint32_t below)
{
    w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return below ? (uint32_t)(w->random >> 33) % below : 0;
}

static void compare(struct block_world *w)
{
    uint64_t page = pick(w, (uint32_t)w->config.pages);

    rows_compare(w, page, pick(w, PAGES + 1));
}

/* ---- The engine ---- */

/* Whether this block is the next to be taken, after one of page `last`. */
static bool is_next(struct block_world *w, uint32_t id, int last)
{
    int page = id < w->n_blocks ? w->page_of[id] : NO_PAGE;
    bool partly = false;

    if (page == NO_PAGE || rows_is_null(w, id) || w->used[id] || !rows_has_room(w, (uint64_t)page))
        return false;
    for (uint32_t lower = id; lower-- > 0 && w->page_of[lower] == page;)
        if (!w->used[lower])
            return false;
    if (page == last)
        return true;
    for (uint64_t other = 0; other < w->config.pages; other++) {
        if (!rows_has_room(w, other))
            continue;
        partly |= w->pages[other].used > 0;
        if (w->pages[other].used > w->pages[page].used)
            return false;
    }
    for (int lower = 0; !partly && lower < page; lower++)
        if (rows_has_room(w, (uint64_t)lower))
            return false;
    return true;
}

static void do_take(struct block_world *w)
{
    uint32_t ids[BATCH], n = pick(w, 4) ? pick(w, 8) : pick(w, BATCH + 1);
    int last = NO_PAGE, r = block_alloc_take(w->alloc, n, ids);

    rows_expect(w, r == (n > w->sums.free_blocks ? BLOCK_ALLOC_E_SHORT : 0), "a take is judged wrongly");
    for (uint32_t i = 0; r == 0 && i < n && !w->failure; i++) {
        rows_expect(w, is_next(w, ids[i], last), "a block is taken that is not the next");
        if (w->failure)
            return;
        last = w->page_of[ids[i]];
        w->used[ids[i]] = true;
        w->pages[last].used++;
    }
    if (r == 0)
        w->reserved = u64_sub_floor(w->reserved, n);
}

static int judge_give(const struct block_world *w, bool *used, const uint32_t *ids, uint32_t n)
{
    memcpy(used, w->used, sizeof(w->used));
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] >= w->n_blocks || rows_is_null(w, ids[i]) || w->page_of[ids[i]] == NO_PAGE ||
            !rows_is_mapped(w, (uint64_t)w->page_of[ids[i]]))
            return BLOCK_ALLOC_E_FOREIGN;
        if (!used[ids[i]])
            return BLOCK_ALLOC_E_FREE;
        used[ids[i]] = false;
    }
    return 0;
}

static void give(struct block_world *w, const uint32_t *ids, uint32_t n, uint64_t epoch)
{
    bool used[BLOCKS];
    int should = judge_give(w, used, ids, n);

    rows_expect(w, block_alloc_give(w->alloc, ids, n, epoch) == should, "a give is judged wrongly");
    if (should != 0)
        return;
    memcpy(w->used, used, sizeof(used));
    for (uint32_t i = 0; i < n; i++) {
        struct page_row *row = &w->pages[w->page_of[ids[i]]];

        row->epoch = u64_max(row->epoch, epoch);
    }
}

/* Mostly now, often when the GPU is done, at times some other epoch. */
static uint64_t some_epoch(struct block_world *w)
{
    switch (pick(w, 4)) {
    case 0:
        return ++w->epoch;
    case 1:
        return pick(w, (uint32_t)w->epoch + 1);
    default:
        return 0;
    }
}

static void do_give(struct block_world *w, bool any)
{
    uint32_t ids[BATCH], n = 0, max = 1 + pick(w, pick(w, 3) ? 6 : BATCH);
    uint32_t id = pick(w, w->n_blocks);

    for (uint32_t tries = 0; n < max && tries < 4 * max; tries++) {
        id = pick(w, 3) ? (id + 1) % w->n_blocks : pick(w, w->n_blocks);
        if (w->used[id] && !rows_is_null(w, id)) {
            bool again = false;

            for (uint32_t i = 0; i < n; i++)
                again |= ids[i] == id;
            if (!again)
                ids[n++] = id;
        }
    }
    if (any)
        ids[n ? pick(w, n) : n++] = pick(w, 4) ? pick(w, w->n_blocks) : pick(w, w->n_blocks + 3);
    if (any && n > 1 && pick(w, 2))
        ids[n - 1] = ids[pick(w, n - 1)];
    give(w, ids, n, some_epoch(w));
}

static void do_reserve(struct block_world *w)
{
    uint64_t n = pick(w, 12);
    bool fits = w->reserved + n <= w->sums.free_blocks;

    rows_expect(w, block_alloc_reserve(w->alloc, n) == (fits ? 0 : BLOCK_ALLOC_E_SHORT),
                "a reserve is judged wrongly");
    w->reserved += fits ? n : 0;
}

static void do_clear(struct block_world *w)
{
    uint64_t epoch = some_epoch(w);

    block_alloc_clear(w->alloc, epoch);
    for (uint32_t id = 0; id < w->n_blocks; id++) {
        if (!w->used[id] || rows_is_null(w, id))
            continue;
        w->used[id] = false;
        if (w->page_of[id] > 0 || !w->config.null_block) /* that page is never shed */
            w->pages[w->page_of[id]].epoch = u64_max(w->pages[w->page_of[id]].epoch, epoch);
    }
    w->reserved = 0;
}

/* ---- The owner ---- */

static void plan(struct block_world *w, size_t n)
{
    uint64_t pages[PAGES + 1];
    bool fits = n <= w->sums.empty_pages;
    uint64_t page = 0;

    rows_expect(w, block_alloc_plan(w->alloc, n, pages) == (fits ? 0 : BLOCK_ALLOC_E_FULL),
                "a plan is judged wrongly");
    for (size_t i = 0; fits && i < n; i++, page++) {
        while (!rows_can_plan(w, page))
            page++;
        rows_expect(w, pages[i] == page, "a plan names other pages");
        w->pages[page].state = BLOCK_ALLOC_MAPPING;
    }
}

static void do_grow(struct block_world *w)
{
    uint64_t n = pick(w, pick(w, 2) ? 20 : 1000), blocks = w->sums.free_blocks, should = 0;
    uint64_t missing = block_alloc_missing(w->alloc, n);

    for (uint64_t page = 0; page < w->config.pages && blocks < n; page++)
        if (rows_can_plan(w, page)) {
            blocks += w->pages[page].n;
            should++;
        }
    if (blocks < n) {
        rows_expect(w, missing > w->sums.empty_pages, "what is not there at all is not missing");
        return;
    }
    rows_expect(w, missing == should, "other pages are missing");
    if (missing <= PAGES)
        plan(w, missing);
}

static void do_shed(struct block_world *w)
{
    uint64_t pages[PAGES], page = w->config.pages, keep = pick(w, 4) ? 0 : pick(w, 5);
    size_t max = pick(w, PAGES + 1), n = block_alloc_shed(w->alloc, keep, max, pages), i = 0;

    while (page-- > 0 && i < max) {
        if (!rows_can_shed(w, page))
            continue;
        if (!rows_is_removed(w, page) &&
            (w->sums.free_pages <= keep || w->sums.free_blocks - w->pages[page].n < w->reserved))
            break;
        rows_expect(w, i < n && pages[i] == page, "other pages are shed");
        w->pages[page].state = BLOCK_ALLOC_UNMAPPING;
        rows_add_up(w);
        i++;
    }
    rows_expect(w, i == n, "more pages are shed than can be");
}

static const struct saying {
    int (*say)(struct block_alloc *alloc, const uint64_t *pages, size_t n);
    unsigned from;
    enum block_alloc_state to;
} sayings[] = {
#define IN(state) (1u << BLOCK_ALLOC_##state)
    {block_alloc_mapped, IN(MAPPING) | IN(DOUBT), BLOCK_ALLOC_MAPPED},
    {block_alloc_mapped, IN(MAPPING) | IN(DOUBT), BLOCK_ALLOC_MAPPED},
    {block_alloc_mapped, IN(MAPPING) | IN(DOUBT), BLOCK_ALLOC_MAPPED},
    {block_alloc_unmapped, IN(MAPPING) | IN(DOUBT) | IN(UNMAPPING), BLOCK_ALLOC_EMPTY},
    {block_alloc_keep, IN(UNMAPPING), BLOCK_ALLOC_MAPPED},
    {block_alloc_doubt, IN(MAPPING) | IN(UNMAPPING), BLOCK_ALLOC_DOUBT},
    {block_alloc_broken, IN(MAPPING) | IN(DOUBT) | IN(UNMAPPING), BLOCK_ALLOC_BROKEN},
#undef IN
};

static int judge_saying(const struct block_world *w, const struct saying *saying, const uint64_t *pages,
                        size_t n)
{
    bool named[PAGES] = {};

    for (size_t i = 0; i < n; i++) {
        if (pages[i] >= w->config.pages)
            return BLOCK_ALLOC_E_PAGE;
        if (named[pages[i]] || !(saying->from >> w->pages[pages[i]].state & 1))
            return BLOCK_ALLOC_E_STATE;
        named[pages[i]] = true;
    }
    return 0;
}

static void say(struct block_world *w, const struct saying *saying, const uint64_t *pages, size_t n)
{
    int should = judge_saying(w, saying, pages, n);

    rows_expect(w, saying->say(w->alloc, pages, n) == should, "what became of pages is judged wrongly");
    for (size_t i = 0; should == 0 && i < n; i++)
        w->pages[pages[i]].state = saying->to;
}

static void do_settle(struct block_world *w)
{
    /* A page lost for ever is rare, or soon there are no others. */
    unsigned n_sayings = ARRAY_SIZE(sayings) - (pick(w, 50) != 0);
    const struct saying *saying = &sayings[pick(w, n_sayings)];
    uint64_t pages[PAGES + 2];
    size_t n = 0, max = 1 + pick(w, 6);
    uint32_t start = pick(w, (uint32_t)w->config.pages);

    for (uint32_t i = 0; i < w->config.pages && n < max; i++) {
        uint64_t page = (start + i) % w->config.pages;

        if (saying->from >> w->pages[page].state & 1)
            pages[n++] = page;
    }
    if (pick(w, 16) == 0)
        pages[n++] = pick(w, 3) ? pick(w, (uint32_t)w->config.pages) : w->config.pages + pick(w, 2);
    say(w, saying, pages, n);
}

static void do_pin(struct block_world *w, bool pin)
{
    uint64_t first = pick(w, (uint32_t)w->config.pages + 1), n = pick(w, 3);
    int r = pin ? block_alloc_pin(w->alloc, first, n) : block_alloc_unpin(w->alloc, first, n);
    int should = first + n > w->config.pages ? BLOCK_ALLOC_E_PAGE : 0;

    for (uint64_t page = first; should == 0 && page < first + n; page++)
        if (pin ? !rows_is_mapped(w, page) : w->pages[page].pins == 0)
            should = BLOCK_ALLOC_E_STATE;
    rows_expect(w, r == should, "pins are judged wrongly");
    for (uint64_t page = first; should == 0 && page < first + n; page++)
        w->pages[page].pins += pin ? 1 : -1u;
}

static void do_resize(struct block_world *w)
{
    w->max_pages = pick(w, 2) ? w->config.pages : pick(w, (uint32_t)w->config.pages + 1);
    block_alloc_resize(w->alloc, w->max_pages);
    rows_add_up(w);
    w->reserved = u64_min(w->reserved, w->sums.free_blocks);
}

static void do_complete(struct block_world *w)
{
    uint64_t epoch = pick(w, (uint32_t)w->epoch + 1);

    block_alloc_complete(w->alloc, epoch);
    w->completed = u64_max(w->completed, epoch);
}

/* ---- The world ---- */

/* A page of few blocks or of many, with straddlers or without. */
static void choose_geometry(struct block_world *w)
{
    struct block_alloc_config *config = &w->config;
    uint32_t most = pick(w, 8) ? 6 : PAGE_BLOCKS;

    config->pages = 1 + pick(w, pick(w, 4) ? 8 : PAGES);
    config->block_bytes = 1 + pick(w, 30);
    config->page_bytes = config->block_bytes * (1 + pick(w, most - 1));
    if (pick(w, 2))
        config->page_bytes += pick(w, (uint32_t)config->block_bytes);
    config->max_pages = pick(w, 2) ? config->pages : pick(w, (uint32_t)config->pages + 5);
    config->max_blocks = pick(w, 2) ? UINT64_MAX : 1 + pick(w, BLOCKS);
    config->null_block = pick(w, 2);
}

static void lay_out(struct block_world *w)
{
    uint64_t page_bytes = w->config.page_bytes, block_bytes = w->config.block_bytes;
    int page = 0;

    for (; w->n_blocks < w->config.max_blocks &&
           (w->n_blocks + 1) * block_bytes <= w->config.pages * page_bytes;
         w->n_blocks++) {
        uint64_t start = w->n_blocks * block_bytes;

        page += start >= (uint64_t)(page + 1) * page_bytes;
        w->page_of[w->n_blocks] = start + block_bytes <= (uint64_t)(page + 1) * page_bytes ? page : NO_PAGE;
    }
    w->max_pages = u64_min(w->config.max_pages, w->config.pages);
    if (w->config.null_block) {
        w->used[0] = true;
        w->pages[0].state = BLOCK_ALLOC_MAPPING;
    }
}

struct block_world *block_world_new(uint64_t seed)
{
    struct block_world *w = calloc(1, sizeof(*w));

    if (!w)
        abort();
    w->random = seed;
    choose_geometry(w);
    lay_out(w);
    if (block_alloc_new(&w->config, &w->alloc) != 0)
        abort();
    for (uint32_t id = 0; id < w->n_blocks; id++) {
        uint64_t start = id * w->config.block_bytes, page = block_alloc_page_of(w->alloc, id);

        rows_expect(w, page * w->config.page_bytes <= start && start < (page + 1) * w->config.page_bytes,
                    "a block begins in another page");
    }
    compare(w);
    return w;
}

struct block_world *block_world_free(struct block_world *world)
{
    if (!world)
        return NULL;
    block_alloc_free(world->alloc);
    free(world);
    return NULL;
}

static void act(struct block_world *w, enum block_world_op op)
{
    switch (op) {
    case BLOCK_WORLD_TAKE:
        do_take(w);
        break;
    case BLOCK_WORLD_GIVE:
    case BLOCK_WORLD_GIVE_ANY:
        do_give(w, op == BLOCK_WORLD_GIVE_ANY);
        break;
    case BLOCK_WORLD_GROW:
        do_grow(w);
        break;
    case BLOCK_WORLD_PLAN:
        plan(w, pick(w, (uint32_t)w->config.pages + 2));
        break;
    case BLOCK_WORLD_SHED:
        do_shed(w);
        break;
    case BLOCK_WORLD_SETTLE:
        do_settle(w);
        break;
    case BLOCK_WORLD_COMPLETE:
        do_complete(w);
        break;
    case BLOCK_WORLD_RESERVE:
        do_reserve(w);
        break;
    case BLOCK_WORLD_RELEASE:
        block_alloc_release(w->alloc);
        w->reserved = 0;
        break;
    case BLOCK_WORLD_PIN:
    case BLOCK_WORLD_UNPIN:
        do_pin(w, op == BLOCK_WORLD_PIN);
        break;
    case BLOCK_WORLD_RESIZE:
        do_resize(w);
        break;
    case BLOCK_WORLD_CLEAR:
        do_clear(w);
        break;
    case _BLOCK_WORLD_N:
        break;
    }
}

const char *block_world_step(struct block_world *world, enum block_world_op op, uint32_t arg)
{
    world->random = arg;
    act(world, op);
    if (!world->failure)
        compare(world);
    return world->failure;
}

const char *block_world_end(struct block_world *world)
{
    uint64_t pages[PAGES];
    size_t n;

    block_alloc_clear(world->alloc, 0);
    block_alloc_complete(world->alloc, UINT64_MAX);
    for (uint64_t page = 0; page < world->config.pages; page++)
        while (world->pages[page].pins) {
            rows_expect(world, block_alloc_unpin(world->alloc, page, 1) == 0, "a pin is lost");
            world->pages[page].pins--;
        }
    n = block_alloc_shed(world->alloc, 0, PAGES, pages);
    for (uint64_t page = 0; page < world->config.pages; page++)
        n -= rows_is_mapped(world, page) && !(world->config.null_block && page == 0);
    rows_expect(world, n == 0, "a page without a used block stays");
    return world->failure;
}
