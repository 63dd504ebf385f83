/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Two bits for each page and rank, four to a byte, and a bit for each page that is claimed: a million pages
 * on eight ranks take two MiB. Summaries are computed when asked for: a transaction looks at few pages.
 */

#include "group_state.h"

#include <errno.h>
#include <stdlib.h>

#include "base/arith.h"

#define STATES_PER_BYTE 4
#define PAGES_PER_BYTE 8

struct group_state {
    uint64_t pages;
    uint32_t ranks;
    uint64_t doubts;
    uint8_t *claimed;
    uint8_t states[]; /* of a page's ranks, then of the next page's */
};

int group_state_new(uint64_t pages, uint32_t ranks, struct group_state **ret)
{
    struct group_state *state;
    uint64_t n;

    if (!u64_mul(pages, ranks, &n) || n > SIZE_MAX / 2)
        return -ENOMEM;
    state = calloc(1, sizeof(*state) + n / STATES_PER_BYTE + 1);
    if (!state)
        return -ENOMEM;
    state->pages = pages;
    state->ranks = ranks;
    state->claimed = calloc(pages / PAGES_PER_BYTE + 1, 1);
    if (!state->claimed) {
        group_state_free(state);
        return -ENOMEM;
    }
    *ret = state;
    return 0;
}

struct group_state *group_state_free(struct group_state *state)
{
    if (!state)
        return NULL;
    free(state->claimed);
    free(state);
    return NULL;
}

/* ---- Single states ---- */

enum group_rank_state group_state_rank(const struct group_state *state, uint64_t page, uint32_t rank)
{
    uint64_t i = page * state->ranks + rank;

    return state->states[i / STATES_PER_BYTE] >> i % STATES_PER_BYTE * 2 & 3;
}

static bool is_asked(enum group_rank_state s)
{
    return s == GROUP_RANK_MAPPING || s == GROUP_RANK_UNMAPPING;
}

static void set(struct group_state *state, uint64_t page, uint32_t rank, enum group_rank_state to)
{
    uint64_t i = page * state->ranks + rank;
    unsigned shift = i % STATES_PER_BYTE * 2;
    uint8_t *byte = &state->states[i / STATES_PER_BYTE];

    state->doubts += is_asked(to);
    state->doubts -= is_asked(*byte >> shift & 3);
    *byte = (uint8_t)((*byte & ~(3u << shift)) | (unsigned)to << shift);
}

static bool is_claimed(const struct group_state *state, uint64_t page)
{
    return state->claimed[page / PAGES_PER_BYTE] >> page % PAGES_PER_BYTE & 1;
}

enum group_page_state group_state_page(const struct group_state *state, uint64_t page)
{
    uint32_t mapped = 0;

    for (uint32_t rank = 0; rank < state->ranks; rank++) {
        enum group_rank_state s = group_state_rank(state, page, rank);

        if (is_asked(s))
            return GROUP_PAGE_IN_DOUBT;
        mapped += s == GROUP_RANK_MAPPED;
    }
    if (mapped == state->ranks)
        return GROUP_PAGE_MAPPED;
    return mapped > 0 ? GROUP_PAGE_PARTIAL : GROUP_PAGE_EMPTY;
}

uint64_t group_state_doubts(const struct group_state *state)
{
    return state->doubts;
}

/* ---- Transactions ---- */

static int may_claim(const struct group_state *state, uint64_t page, bool map)
{
    if (page >= state->pages)
        return GROUP_E_RANGE;
    if (is_claimed(state, page))
        return GROUP_E_CLAIMED;
    switch (group_state_page(state, page)) {
    case GROUP_PAGE_IN_DOUBT:
        return GROUP_E_DOUBT;
    case GROUP_PAGE_MAPPED:
        return map ? GROUP_E_MAPPED : 0;
    case GROUP_PAGE_EMPTY:
        return map ? 0 : GROUP_E_NOT_MAPPED;
    default:
        return 0;
    }
}

int group_state_claim(struct group_state *state, const uint64_t *pages, size_t n, bool map,
                      uint64_t *ret_page)
{
    for (size_t i = 0; i < n; i++) {
        int r = may_claim(state, pages[i], map);

        if (r != 0) {
            group_state_release(state, pages, i);
            *ret_page = pages[i];
            return r;
        }
        state->claimed[pages[i] / PAGES_PER_BYTE] |= (uint8_t)(1u << pages[i] % PAGES_PER_BYTE);
    }
    return 0;
}

void group_state_release(struct group_state *state, const uint64_t *pages, size_t n)
{
    for (size_t i = 0; i < n; i++)
        state->claimed[pages[i] / PAGES_PER_BYTE] &= (uint8_t) ~(1u << pages[i] % PAGES_PER_BYTE);
}

size_t group_state_ask(struct group_state *state, uint32_t rank, const uint64_t *pages, size_t n, bool map,
                       uint64_t *ret_pages)
{
    enum group_rank_state from = map ? GROUP_RANK_EMPTY : GROUP_RANK_MAPPED;
    enum group_rank_state to = map ? GROUP_RANK_MAPPING : GROUP_RANK_UNMAPPING;
    size_t n_asked = 0;

    for (size_t i = 0; i < n; i++) {
        if (group_state_rank(state, pages[i], rank) != from)
            continue;
        set(state, pages[i], rank, to);
        ret_pages[n_asked++] = pages[i];
    }
    return n_asked;
}

void group_state_settle(struct group_state *state, uint32_t rank, const uint64_t *pages, size_t n, bool done)
{
    for (size_t i = 0; i < n; i++) {
        enum group_rank_state s = group_state_rank(state, pages[i], rank);

        /* Of a rank that was lost meanwhile. */
        if (!is_asked(s))
            continue;
        set(state, pages[i], rank, (s == GROUP_RANK_MAPPING) == done ? GROUP_RANK_MAPPED : GROUP_RANK_EMPTY);
    }
}

void group_state_lose(struct group_state *state, uint32_t rank)
{
    for (uint64_t page = 0; page < state->pages; page++)
        set(state, page, rank, GROUP_RANK_EMPTY);
}
