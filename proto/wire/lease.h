/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Lease word: a region's lease as both ends see it, one word in shared memory that each changes with a
 * compare-and-swap. Pure: memory and numbers.
 *
 * A lease is memory that the daemon has set aside for a region and not yet handed over, counted in the
 * region's pages. What is *offered* may be taken by either side: the client claims it, or the daemon
 * withdraws it for somebody else. What is *claimed* is the client's: a promise. The client takes claims off
 * the word when it asks for that memory (spends them), or turns them into offers again.
 *
 * The word is a message, not the books. The daemon charges what it has issued; offered and claimed can never
 * be more, and where a word says so, somebody has scribbled over it.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* One per region of a peer, a cache line each. */
struct lease_line {
    _Atomic uint64_t word;         /* offered in the lower half, claimed in the upper */
    _Atomic uint64_t cached_pages; /* the client's word: free pages that it keeps and would return if asked */
    _Atomic uint64_t pinned_pages; /* the client's word: mapped pages that it cannot return */
    uint64_t reserved[5];
};

struct lease {
    uint32_t offered, claimed; /* pages */
};

static inline struct lease lease_unpack(uint64_t word)
{
    return (struct lease){.offered = (uint32_t)word, .claimed = (uint32_t)(word >> 32)};
}

static inline uint64_t lease_pack(struct lease lease)
{
    return (uint64_t)lease.claimed << 32 | lease.offered;
}

static inline struct lease lease_read(const struct lease_line *line)
{
    return lease_unpack(atomic_load(&line->word));
}

static inline uint32_t lease_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Daemon: `pages` more are offered. False: the word would overflow, so it was scribbled over. */
static inline bool lease_offer(struct lease_line *line, uint32_t pages)
{
    uint64_t word = atomic_load(&line->word);
    struct lease lease;

    do {
        lease = lease_unpack(word);
        if (pages > UINT32_MAX - lease.offered)
            return false;
        lease.offered += pages;
    } while (!atomic_compare_exchange_weak(&line->word, &word, lease_pack(lease)));
    return true;
}

/* Daemon: takes up to `pages` offers back. Returns how many. */
static inline uint32_t lease_withdraw(struct lease_line *line, uint32_t pages)
{
    uint64_t word = atomic_load(&line->word);
    struct lease lease;
    uint32_t n;

    do {
        lease = lease_unpack(word);
        n = lease_min(lease.offered, pages);
        if (n == 0)
            return 0;
        lease.offered -= n;
    } while (!atomic_compare_exchange_weak(&line->word, &word, lease_pack(lease)));
    return n;
}

/* Client: claims up to `pages` of what is offered. Returns how many. */
static inline uint32_t lease_claim(struct lease_line *line, uint32_t pages)
{
    uint64_t word = atomic_load(&line->word);
    struct lease lease;
    uint32_t n;

    do {
        lease = lease_unpack(word);
        n = lease_min(lease_min(lease.offered, pages), UINT32_MAX - lease.claimed);
        if (n == 0)
            return 0;
        lease.offered -= n;
        lease.claimed += n;
    } while (!atomic_compare_exchange_weak(&line->word, &word, lease_pack(lease)));
    return n;
}

/* Client: turns up to `pages` claims into offers again. Returns how many. */
static inline uint32_t lease_unclaim(struct lease_line *line, uint32_t pages)
{
    uint64_t word = atomic_load(&line->word);
    struct lease lease;
    uint32_t n;

    do {
        lease = lease_unpack(word);
        n = lease_min(lease_min(lease.claimed, pages), UINT32_MAX - lease.offered);
        if (n == 0)
            return 0;
        lease.claimed -= n;
        lease.offered += n;
    } while (!atomic_compare_exchange_weak(&line->word, &word, lease_pack(lease)));
    return n;
}

/* Client: takes `pages` claims off the word, all or none, to ask for their memory. */
static inline bool lease_spend(struct lease_line *line, uint32_t pages)
{
    uint64_t word = atomic_load(&line->word);
    struct lease lease;

    do {
        lease = lease_unpack(word);
        if (lease.claimed < pages)
            return false;
        lease.claimed -= pages;
    } while (!atomic_compare_exchange_weak(&line->word, &word, lease_pack(lease)));
    return true;
}

/* Client: puts claims back that were spent on what the daemon then refused, or was never asked. */
static inline void lease_unspend(struct lease_line *line, uint32_t pages)
{
    uint64_t word = atomic_load(&line->word);
    struct lease lease;

    do {
        lease = lease_unpack(word);
        lease.claimed += lease_min(pages, UINT32_MAX - lease.claimed);
    } while (!atomic_compare_exchange_weak(&line->word, &word, lease_pack(lease)));
}
