/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Group: regions whose pages are mapped together, one region for each rank; of this process, or of workers
 * elsewhere, on any number of daemons. Regions may differ in the size of a page, and in everything else but
 * what a page's number means.
 *
 * All functions may be called from any thread; none is called from a listener's log function. In a forked
 * child they return KVC_E_FORKED, or do nothing.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "group_state.h"

struct group;
struct kvc_region;

/* The regions, rank by rank, stay the caller's, who closes them (and their clients) after the group. 0,
 * KVC_E_INVALID, KVC_E_NOMEM, KVC_E_FORKED. */
int group_new(struct kvc_region *const *regions, uint32_t n, struct group **ret);

/* Leaves mapped what is mapped. */
struct group *group_free(struct group *group);
DEFINE_CLEANUP(struct group *, group_free);

/* Pages that every region has. */
uint64_t group_pages(const struct group *group);

/* Maps pages at every rank that doesn't have them; all ranks are asked before one is waited for. 0: mapped
 * everywhere. Otherwise the error of the first rank that failed (its sentence says which), and each page
 * is as group_page() says: a rank that has mapped it keeps it, and the next call asks only those that have
 * not. With KVC_E_TIMEOUT a rank's answer is still to come: until then its pages are in doubt, and every
 * call on them is KVC_E_IN_DOUBT. KVC_E_MAPPED: mapped everywhere already, named twice, or in another
 * thread's hands; nothing was done. `leased`: each rank's memory comes out of its region's lease, of which
 * the caller has claimed and spent group_missing() pages; what of them a rank was not asked for is claimed
 * again. Only for workers' regions. KVC_E_WORKER_GONE: see group_is_over(). */
int group_map(struct group *group, const uint64_t *pages, size_t n, bool leased);

/* The same the other way round. KVC_E_NOT_MAPPED: mapped at no rank. */
int group_unmap(struct group *group, const uint64_t *pages, size_t n);

/* How many of the pages a map would ask of a rank. */
size_t group_missing(struct group *group, uint32_t rank, const uint64_t *pages, size_t n);

enum group_page_state group_page(struct group *group, uint64_t page);
enum group_rank_state group_page_at(struct group *group, uint64_t page, uint32_t rank);

/* Whether some rank's worker is known to be gone: nothing can be mapped any more. group_check(): 0, or
 * KVC_E_WORKER_GONE with the rank and the reason. Neither takes a lock. */
bool group_is_over(const struct group *group);
int group_check(const struct group *group);

/* Takes late answers that have come, without waiting; group_map() and group_unmap() do so first.
 * *ret_left: how many orders are unanswered still. An event loop polls the clients' descriptors for them.
 * 0 or KVC_E_FORKED. */
int group_poll(struct group *group, size_t *ret_left);

/* Nobody wants to know any more what is in doubt: what a rank may still map it unmaps right behind that, and
 * its pages count as empty. A rank that has left something unanswered is not waited for again. */
void group_abandon(struct group *group);
