/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What peers say of the memory that they were granted: free pages that they keep, and pages that they cannot
 * return. Only for being told: it is their word, cut to what the books say they have. A scheduler speaks of
 * its workers' pages, so what it says is laid to them, one after the other.
 */

#include "base/arith.h"
#include "broker-internal.h"

uint64_t broker_words_begin(struct broker *broker, const struct broker_instance *instance)
{
    uint64_t spoken_bytes = 0;

    list_for_each (it, &instance->peers) {
        const struct broker_peer *peer = container_of(it, struct broker_peer, link);

        if (peer->schedules)
            spoken_bytes = u64_add_ceil(spoken_bytes, notices_cached(broker, peer));
    }
    return spoken_bytes;
}

struct broker_words broker_words_next(struct broker *broker, const struct broker_peer *peer,
                                      uint64_t *spoken_bytes)
{
    struct broker_words words = {0};
    uint64_t spoken;

    if (peer->lost || peer->schedules)
        return words;
    words.pinned_bytes = u64_min(notices_pinned(peer), peer->held_bytes);
    words.cached_bytes = u64_min(notices_cached(broker, peer), peer->held_bytes - words.pinned_bytes);
    if (!peer->obeys)
        return words;
    spoken = u64_min(*spoken_bytes, peer->held_bytes - words.pinned_bytes - words.cached_bytes);
    words.cached_bytes += spoken;
    *spoken_bytes -= spoken;
    return words;
}

struct broker_words broker_instance_words(struct broker *broker, const struct broker_instance *instance)
{
    uint64_t spoken_bytes = broker_words_begin(broker, instance);
    struct broker_words sum = {0};

    list_for_each (it, &instance->peers) {
        struct broker_words words =
            broker_words_next(broker, container_of(it, struct broker_peer, link), &spoken_bytes);

        sum.cached_bytes += words.cached_bytes;
        sum.pinned_bytes += words.pinned_bytes;
    }
    return sum;
}

uint64_t broker_peer_leased(const struct broker_peer *peer)
{
    uint64_t bytes = 0;

    if (peer->n_issued == 0)
        return 0;
    list_for_each (it, &peer->leases) {
        const struct broker_lease *lease = container_of(it, struct broker_lease, link);

        bytes += lease->issued * lease->page_bytes;
    }
    return bytes;
}

uint64_t broker_wanted(const struct broker_instance *instance)
{
    uint64_t bytes = 0;

    if (instance->n_hopeful == 0 && instance->n_undecided == 0)
        return 0;
    list_for_each (it, &instance->peers) {
        const struct broker_peer *peer = container_of(it, struct broker_peer, link);

        list_for_each (at, &peer->requests) {
            const struct broker_request *request = container_of(at, struct broker_request, peer_link);

            if (request->state == BROKER_REQUEST_UNDECIDED)
                bytes += request->bytes;
        }
    }
    return bytes;
}
