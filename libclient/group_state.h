/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Group state: which page is mapped at which rank, where several ranks map the same pages. Pure.
 *
 * A transaction claims its pages, then has each rank do what is missing there: pages that a rank has mapped
 * already are not mapped again. What a rank has been asked to do and has not answered is in doubt, and the
 * page with it: no transaction touches it until that rank is settled.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"

enum {
    _GROUP_E_SUCCESS,
    GROUP_E_RANGE,      /* there is no such page */
    GROUP_E_CLAIMED,    /* named twice, or another transaction has it */
    GROUP_E_DOUBT,      /* some rank has not answered */
    GROUP_E_MAPPED,     /* to be mapped, and mapped at all ranks */
    GROUP_E_NOT_MAPPED, /* to be unmapped, and mapped at no rank */
};

/* Of a page at one rank. */
enum group_rank_state {
    GROUP_RANK_EMPTY,
    GROUP_RANK_MAPPED,
    GROUP_RANK_MAPPING,   /* asked to map it */
    GROUP_RANK_UNMAPPING, /* asked to unmap it */
};

/* Of a page at all of them. */
enum group_page_state {
    GROUP_PAGE_EMPTY,
    GROUP_PAGE_PARTIAL, /* mapped at some ranks: it can be mapped, or unmapped */
    GROUP_PAGE_MAPPED,
    GROUP_PAGE_IN_DOUBT,
};

struct group_state;

/* 0 or -ENOMEM. At least one page and one rank. */
int group_state_new(uint64_t pages, uint32_t ranks, struct group_state **ret);
struct group_state *group_state_free(struct group_state *state);
DEFINE_CLEANUP(struct group_state *, group_state_free);

enum group_page_state group_state_page(const struct group_state *state, uint64_t page);
enum group_rank_state group_state_rank(const struct group_state *state, uint64_t page, uint32_t rank);

/* How many (page, rank) have been asked and are not settled. */
uint64_t group_state_doubts(const struct group_state *state);

/* Claims all pages for a transaction that maps or unmaps them, or none. 0 or GROUP_E_* with the culprit in
 * *ret_page. */
int group_state_claim(struct group_state *state, const uint64_t *pages, size_t n, bool map,
                      uint64_t *ret_page);

/* The transaction is over; what is not settled stays in doubt. */
void group_state_release(struct group_state *state, const uint64_t *pages, size_t n);

/* Those of the claimed pages that a rank has to map (unmap), into ret_pages, which has room for all of them:
 * they count as asked from now on. Returns their number. */
size_t group_state_ask(struct group_state *state, uint32_t rank, const uint64_t *pages, size_t n, bool map,
                       uint64_t *ret_pages);

/* A rank has done what it was asked, or nothing of it. */
void group_state_settle(struct group_state *state, uint32_t rank, const uint64_t *pages, size_t n, bool done);

/* A rank is gone, and with it what it had mapped. Nothing of it is in doubt. */
void group_state_lose(struct group_state *state, uint32_t rank);
