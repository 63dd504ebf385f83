/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fdset: who owns descriptors that travel with a packet. A set owns what is in it and closes that in
 * fdset_deinit(). Not thread-safe.
 */

#include "wire/frame.h"

struct fdset {
    unsigned n;
    int fds[FRAME_FDS_MAX];
};

/* Empty; as {0}, which writes a kilobyte. */
static inline struct fdset *fdset_init(struct fdset *set)
{
    set->n = 0;
    return set;
}

/* The set takes the descriptor over. 0, or -ENOSPC when it is full (the descriptor stays the caller's). */
int fdset_consume(struct fdset *set, int fd);

/* The set gets a duplicate (close-on-exec). 0, -ENOSPC, -EMFILE... */
int fdset_dup(struct fdset *set, int fd);

/* Still the set's; -1 when there is no such entry. */
int fdset_borrow(const struct fdset *set, unsigned index);

/* The caller's from now on; the entry becomes -1. -1 when there is none. */
int fdset_steal(struct fdset *set, unsigned index);

/* Moves everything to *to, which must be empty. */
void fdset_move(struct fdset *to, struct fdset *from);

/* Closes them; those that are -1 are nobody's. */
void fds_close(const int *fds, unsigned n);

/* Closes everything; the set is empty and usable again. */
void fdset_deinit(struct fdset *set);
