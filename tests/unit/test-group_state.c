/* SPDX-License-Identifier: Apache-2.0 */
#include "group_state.h"

#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "test.h"

#define PAGES 13
#define RANKS 3

static struct group_state *make(uint64_t pages, uint32_t ranks)
{
    struct group_state *state;

    check_eq(group_state_new(pages, ranks, &state), 0);
    return state;
}

static int claim(struct group_state *state, uint64_t page, bool map)
{
    uint64_t culprit;

    return group_state_claim(state, &page, 1, map, &culprit);
}

static size_t ask(struct group_state *state, uint32_t rank, uint64_t page, bool map)
{
    uint64_t asked;

    return group_state_ask(state, rank, &page, 1, map, &asked);
}

static void settle(struct group_state *state, uint32_t rank, uint64_t page, bool done)
{
    group_state_settle(state, rank, &page, 1, done);
}

static void release(struct group_state *state, uint64_t page)
{
    group_state_release(state, &page, 1);
}

/* Maps or unmaps a page at the ranks whose bits are set; the others do nothing of it. */
static void change(struct group_state *state, uint64_t page, bool map, uint32_t ranks)
{
    check_eq(claim(state, page, map), 0);
    for (uint32_t rank = 0; rank < RANKS; rank++)
        if (ask(state, rank, page, map))
            settle(state, rank, page, ranks >> rank & 1);
    release(state, page);
}

TEST(a_page_is_mapped_when_all_ranks_have_it)
{
    struct group_state *state = make(PAGES, RANKS);

    check_eq(group_state_page(state, 4), GROUP_PAGE_EMPTY);
    check_eq(claim(state, 4, true), 0);
    for (uint32_t rank = 0; rank < RANKS; rank++)
        check_eq(ask(state, rank, 4, true), 1);
    check_eq(group_state_doubts(state), 3);
    settle(state, 0, 4, true);
    settle(state, 2, 4, true);
    check_eq(group_state_page(state, 4), GROUP_PAGE_IN_DOUBT);
    settle(state, 1, 4, true);
    check_eq(group_state_page(state, 4), GROUP_PAGE_MAPPED);
    check_eq(group_state_doubts(state), 0);
    release(state, 4);
    check_eq(claim(state, 4, true), GROUP_E_MAPPED);
    check_eq(group_state_page(state, 3), GROUP_PAGE_EMPTY);
    check_eq(group_state_page(state, 5), GROUP_PAGE_EMPTY);
    group_state_free(state);
}

TEST(one_missing_rank_is_asked_alone)
{
    struct group_state *state = make(PAGES, RANKS);

    change(state, 7, true, 5);
    check_eq(group_state_page(state, 7), GROUP_PAGE_PARTIAL);
    check_eq(group_state_rank(state, 7, 0), GROUP_RANK_MAPPED);
    check_eq(group_state_rank(state, 7, 1), GROUP_RANK_EMPTY);
    check_eq(claim(state, 7, true), 0);
    check_eq(ask(state, 0, 7, true), 0);
    check_eq(ask(state, 2, 7, true), 0);
    check_eq(ask(state, 1, 7, true), 1);
    settle(state, 1, 7, true);
    check_eq(group_state_page(state, 7), GROUP_PAGE_MAPPED);
    group_state_free(state);
}

TEST(what_is_half_mapped_can_be_unmapped)
{
    struct group_state *state = make(PAGES, RANKS);

    change(state, 7, true, 2);
    check_eq(claim(state, 7, false), 0);
    check_eq(ask(state, 0, 7, false), 0);
    check_eq(ask(state, 1, 7, false), 1);
    check_eq(group_state_rank(state, 7, 1), GROUP_RANK_UNMAPPING);
    settle(state, 1, 7, false);
    check_eq(group_state_page(state, 7), GROUP_PAGE_PARTIAL);
    release(state, 7);
    change(state, 7, false, 7);
    check_eq(group_state_page(state, 7), GROUP_PAGE_EMPTY);
    check_eq(claim(state, 7, false), GROUP_E_NOT_MAPPED);
    group_state_free(state);
}

TEST(a_doubt_outlives_its_transaction)
{
    struct group_state *state = make(PAGES, RANKS);

    for (int map = 1; map >= 0; map--) {
        check_eq(claim(state, 0, map), 0);
        for (uint32_t rank = 0; rank < RANKS; rank++)
            check_eq(ask(state, rank, 0, map), 1);
        settle(state, 0, 0, true);
        settle(state, 1, 0, true);
        release(state, 0);
        check_eq(group_state_doubts(state), 1);
        check_eq(claim(state, 0, true), GROUP_E_DOUBT);
        check_eq(claim(state, 0, false), GROUP_E_DOUBT);
        settle(state, 2, 0, true);
        check_eq(group_state_page(state, 0), map ? GROUP_PAGE_MAPPED : GROUP_PAGE_EMPTY);
    }
    group_state_free(state);
}

TEST(all_pages_are_claimed_or_none)
{
    const uint64_t twice[] = {1, 2, 1}, beyond[] = {3, PAGES}, fine[] = {1, 2, 3};
    struct group_state *state = make(PAGES, RANKS);
    uint64_t culprit = 99;

    check_eq(group_state_claim(state, twice, 3, true, &culprit), GROUP_E_CLAIMED);
    check_eq(culprit, 1);
    check_eq(group_state_claim(state, beyond, 2, true, &culprit), GROUP_E_RANGE);
    check_eq(culprit, PAGES);
    check_eq(group_state_claim(state, fine, 3, true, &culprit), 0);
    check_eq(claim(state, 2, true), GROUP_E_CLAIMED);
    check_eq(claim(state, 2, false), GROUP_E_CLAIMED);
    check_eq(claim(state, 4, true), 0);
    group_state_release(state, fine, 3);
    check_eq(claim(state, 2, true), 0);
    check_eq(claim(state, 4, true), GROUP_E_CLAIMED);
    group_state_free(state);
}

TEST(a_lost_rank_has_nothing)
{
    struct group_state *state = make(PAGES, RANKS);

    change(state, 1, true, 7);
    change(state, 2, true, 3);
    check_eq(claim(state, 3, true), 0);
    check_eq(ask(state, 1, 3, true), 1);
    group_state_lose(state, 1);
    check_eq(group_state_doubts(state), 0);
    check_eq(group_state_page(state, 1), GROUP_PAGE_PARTIAL);
    check_eq(group_state_rank(state, 1, 0), GROUP_RANK_MAPPED);
    check_eq(group_state_rank(state, 1, 1), GROUP_RANK_EMPTY);
    check_eq(group_state_page(state, 3), GROUP_PAGE_EMPTY);
    /* An answer that was on its way changes nothing. */
    settle(state, 1, 3, true);
    check_eq(group_state_rank(state, 3, 1), GROUP_RANK_EMPTY);
    group_state_free(state);
}

TEST(absurd_sizes)
{
    struct group_state *state;

    check(group_state_new(UINT64_MAX / 2, 8, &state) < 0);
    check(group_state_new(UINT64_MAX, 1, &state) < 0);
}

/* ---- Random transactions against a table ---- */

struct model {
    enum group_rank_state state[PAGES][RANKS];
    bool claimed[PAGES];
};

static enum group_page_state page_of(const struct model *m, uint64_t page)
{
    unsigned n[4] = {0};

    for (uint32_t rank = 0; rank < RANKS; rank++)
        n[m->state[page][rank]]++;
    if (n[GROUP_RANK_MAPPING] + n[GROUP_RANK_UNMAPPING] > 0)
        return GROUP_PAGE_IN_DOUBT;
    return n[GROUP_RANK_MAPPED] == RANKS ? GROUP_PAGE_MAPPED
           : n[GROUP_RANK_MAPPED]        ? GROUP_PAGE_PARTIAL
                                         : GROUP_PAGE_EMPTY;
}

static void compare(const struct group_state *state, const struct model *m)
{
    uint64_t doubts = 0;

    for (uint64_t page = 0; page < PAGES; page++) {
        for (uint32_t rank = 0; rank < RANKS; rank++) {
            check_eq(group_state_rank(state, page, rank), m->state[page][rank]);
            doubts +=
                m->state[page][rank] == GROUP_RANK_MAPPING || m->state[page][rank] == GROUP_RANK_UNMAPPING;
        }
        check_eq(group_state_page(state, page), page_of(m, page));
    }
    check_eq(group_state_doubts(state), doubts);
}

static int may_claim(const struct model *m, const uint64_t *pages, size_t n, bool map)
{
    for (size_t i = 0; i < n; i++) {
        enum group_page_state s;

        for (size_t j = 0; j < i; j++)
            if (pages[j] == pages[i])
                return GROUP_E_CLAIMED;
        if (pages[i] >= PAGES)
            return GROUP_E_RANGE;
        if (m->claimed[pages[i]])
            return GROUP_E_CLAIMED;
        s = page_of(m, pages[i]);
        if (s == GROUP_PAGE_IN_DOUBT)
            return GROUP_E_DOUBT;
        if (s == (map ? GROUP_PAGE_MAPPED : GROUP_PAGE_EMPTY))
            return map ? GROUP_E_MAPPED : GROUP_E_NOT_MAPPED;
    }
    return 0;
}

static void random_transaction(struct group_state *state, struct model *m, uint64_t *random)
{
    uint64_t pages[4], asked[4], culprit;
    size_t n = 1 + test_random(random) % 4;
    bool map = test_random(random) % 2;
    int r;

    for (size_t i = 0; i < n; i++)
        pages[i] = test_random(random) % (PAGES + 1);
    r = group_state_claim(state, pages, n, map, &culprit);
    check_eq(r, may_claim(m, pages, n, map));
    if (r != 0)
        return;
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        size_t n_asked = group_state_ask(state, rank, pages, n, map, asked), n_wanted = 0;
        uint64_t outcome = test_random(random) % 3;

        for (size_t i = 0; i < n; i++) {
            enum group_rank_state *s = &m->state[pages[i]][rank];

            if (*s != (map ? GROUP_RANK_EMPTY : GROUP_RANK_MAPPED))
                continue;
            check_eq(asked[n_wanted++], pages[i]);
            *s = map ? GROUP_RANK_MAPPING : GROUP_RANK_UNMAPPING;
            if (outcome < 2)
                *s = map == (outcome == 1) ? GROUP_RANK_MAPPED : GROUP_RANK_EMPTY;
        }
        check_eq(n_asked, n_wanted);
        if (outcome < 2)
            group_state_settle(state, rank, asked, n_asked, outcome == 1);
    }
    /* Some transactions last. */
    if (test_random(random) % 4 == 0)
        for (size_t i = 0; i < n; i++)
            m->claimed[pages[i]] = true;
    else
        group_state_release(state, pages, n);
}

static void random_settlement(struct group_state *state, struct model *m, uint64_t *random)
{
    uint64_t page = test_random(random) % PAGES;
    uint32_t rank = (uint32_t)(test_random(random) % RANKS);
    enum group_rank_state *s = &m->state[page][rank];
    bool done = test_random(random) % 2;

    settle(state, rank, page, done);
    if (*s == GROUP_RANK_MAPPING)
        *s = done ? GROUP_RANK_MAPPED : GROUP_RANK_EMPTY;
    else if (*s == GROUP_RANK_UNMAPPING)
        *s = done ? GROUP_RANK_EMPTY : GROUP_RANK_MAPPED;
}

static void end_transactions(struct group_state *state, struct model *m)
{
    for (uint64_t page = 0; page < PAGES; page++)
        if (m->claimed[page])
            release(state, page);
    memset(m->claimed, 0, sizeof(m->claimed));
}

TEST(random_transactions)
{
    struct group_state *state = make(PAGES, RANKS);
    struct model model = {0};
    uint64_t random = test_seed();

    for (int i = 0; i < 20000; i++) {
        uint64_t what = test_random(&random) % 100;
        uint32_t rank = (uint32_t)(test_random(&random) % RANKS);

        if (what < 45) {
            random_transaction(state, &model, &random);
        } else if (what < 90) {
            random_settlement(state, &model, &random);
        } else if (what < 99) {
            end_transactions(state, &model);
        } else {
            group_state_lose(state, rank);
            for (uint64_t page = 0; page < PAGES; page++)
                model.state[page][rank] = GROUP_RANK_EMPTY;
        }
        compare(state, &model);
    }
    group_state_free(state);
}
