/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Address space: the driver calls that put extents behind addresses, and take them away again.
 */

#include "region.h"

/* A page's memory, at a page. */
struct placement {
    uint64_t page;
    struct backing *backing;
};

/* By page, ascending: what the others expect, so that neighbours become one call. */
void space_sort(struct placement *places, size_t n);

/* Maps all imported extents and makes everything accessible. Fails without undoing: the extents' states say
 * how far it got. In the primary context. 0 or KVC_E_DRIVER. */
int space_attach(struct kvc_region *region, const struct placement *places, size_t n);

/* Unmaps all mapped extents. Goes on after a failure; the states say what is left. What the
 * GPU clears is waited for, and holes are filled. 0 or KVC_E_DRIVER. */
int space_detach(struct kvc_region *region, const struct placement *places, size_t n);

/* Undoes a detach that failed. A page on which this fails is not all mapped afterwards, the others are. */
void space_reattach(struct kvc_region *region, const struct placement *places, size_t n);

/* As space_detach(), for who keeps what was detached before a failure: each page is all mapped afterwards or
 * not at all, and has its hole, unless undoing fails, too. */
int space_vacate(struct kvc_region *region, const struct placement *places, size_t n);
