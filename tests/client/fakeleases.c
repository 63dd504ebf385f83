/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The fake daemon's leases and notices. It offers what the limit has room for, and takes offers back when a
 * Take needs the room.
 */

#include "base/arith.h"
#include "fakeinternal.h"

static uint64_t page_bytes(const struct daemon *d, const struct peer *peer, uint32_t region)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < d->n_classes; i++)
        bytes += peer->regions[region][i] * d->settings.class_bytes[i];
    return bytes;
}

uint64_t extents_of(const struct daemon *d, const struct peer *peer, uint32_t region, uint64_t pages)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < d->n_classes; i++)
        n += peer->regions[region][i] * pages;
    return n;
}

static uint64_t leased_extents(const struct daemon *d)
{
    uint64_t n = 0;

    for (unsigned i = 0; i < PEERS_MAX; i++)
        for (uint32_t region = 0; d->peers[i] && region < REGIONS_MAX; region++)
            n += extents_of(d, d->peers[i], region, d->peers[i]->issued[region]);
    return n;
}

/* What schedulers have mapped is lent by nobody here, but weighs on the limit. */
static uint64_t bytes_at_workers(const struct daemon *d)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < PEERS_MAX; i++)
        for (uint32_t region = 0; d->peers[i] && region < REGIONS_MAX; region++)
            bytes += (uint64_t)__builtin_popcountll(d->peers[i]->attached[region].mapped) *
                     page_bytes(d, d->peers[i], region);
    return bytes;
}

/* `pages` of what was issued are in no lease any more. */
static void unissue(struct daemon *d, struct peer *peer, uint32_t region, uint32_t pages)
{
    check(pages <= peer->issued[region]);
    peer->issued[region] -= pages;
    d->counts.issued -= pages;
    d->used -= pages * page_bytes(d, peer, region);
}

void leases_withdraw(struct daemon *d, uint32_t pages)
{
    for (unsigned i = 0; i < PEERS_MAX; i++)
        for (uint32_t region = 1; d->peers[i] && d->peers[i]->lines && region < REGIONS_MAX; region++)
            unissue(d, d->peers[i], region, lease_withdraw(&d->peers[i]->lines[region - 1], pages));
    show_status(d);
}

void leases_withdraw_if_short(struct daemon *d, uint64_t bytes)
{
    if (d->used + bytes > d->limit)
        leases_withdraw(d, UINT32_MAX);
}

static bool refuse_many(struct daemon *d, const struct peer *peer, uint32_t request, uint64_t extents)
{
    if (d->settings.lease_max && leased_extents(d) + extents > d->settings.lease_max)
        leases_withdraw(d, UINT32_MAX);
    if (d->settings.take_max && extents > d->settings.take_max)
        fake_refuse(peer->fd, request, KVCACHED__ERROR__ERROR_INVALID, "Too many extents for one Lease");
    else if (d->settings.lease_max && leased_extents(d) + extents > d->settings.lease_max)
        fake_refuse(peer->fd, request, KVCACHED__ERROR__ERROR_RESOURCES, "Too many extents in leases");
    else
        return false;
    return true;
}

static void answer(struct daemon *d, struct peer *peer, const struct wish *wish, enum fake_lie lie)
{
    uint64_t bytes = wish->pages * page_bytes(d, peer, wish->region);
    Kvcached__Leased body = KVCACHED__LEASED__INIT;

    if (refuse_many(d, peer, wish->request, extents_of(d, peer, wish->region, wish->pages)))
        return;
    if (d->used + bytes_at_workers(d) + bytes > d->limit) {
        fake_refuse(peer->fd, wish->request, KVCACHED__ERROR__ERROR_LIMIT, "The limit cannot hold it");
        return;
    }
    body.pages = wish->pages + (lie == FAKE_OTHER_LEASE);
    peer->issued[wish->region] += wish->pages;
    d->counts.issued += wish->pages;
    d->used += bytes;
    if (lie != FAKE_FORGET)
        check(lease_offer(&peer->lines[wish->region - 1], wish->pages));
    show_status(d);
    fake_answer(peer->fd, lie, MESSAGE_LEASED, wish->request, &body.base, NULL, 0);
}

static void on_lease(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__Lease *lease = (const Kvcached__Lease *)m->body;
    struct wish wish = {.request = m->request, .region = lease->region % REGIONS_MAX, .pages = lease->pages};

    check(peer->lines);
    if (d->counts.leases < FAKE_ASKERS)
        d->counts.askers[d->counts.leases] = peer->number;
    d->counts.leases++;
    d->counts.courtesies += lease->courtesy;
    if (lie != FAKE_LATE) {
        answer(d, peer, &wish, lie);
        return;
    }
    check(peer->n_wishes < HELD_MAX);
    peer->wishes[peer->n_wishes++] = wish;
    d->counts.late++;
}

void leases_release(struct daemon *d, struct peer *peer)
{
    for (unsigned i = 0; i < peer->n_wishes; i++)
        answer(d, peer, &peer->wishes[i], FAKE_HONEST);
    d->counts.late -= peer->n_wishes;
    peer->n_wishes = 0;
}

bool end_lease(struct daemon *d, struct peer *peer, uint32_t region, uint32_t pages)
{
    struct lease lease = lease_read(&peer->lines[region - 1]);

    d->counts.leased_takes++;
    if (pages + (uint64_t)lease.offered + lease.claimed > peer->issued[region])
        return false;
    unissue(d, peer, region, pages);
    return true;
}

void leases_close_region(struct daemon *d, struct peer *peer, uint32_t region)
{
    if (!peer->lines)
        return;
    unissue(d, peer, region, peer->issued[region]);
    atomic_store(&peer->lines[region - 1].word, 0);
}

void leases_end(struct daemon *d, struct peer *peer)
{
    for (uint32_t region = 0; region < REGIONS_MAX; region++)
        unissue(d, peer, region, peer->issued[region]);
    d->counts.late -= peer->n_wishes;
    peer->lines = lease_file_unmap(peer->lines);
}

void leases_scribble(struct daemon *d)
{
    for (unsigned i = 0; i < PEERS_MAX; i++)
        for (uint32_t region = 1; d->peers[i] && d->peers[i]->lines && region < REGIONS_MAX; region++)
            atomic_store(&d->peers[i]->lines[region - 1].word, UINT64_MAX);
}

void leases_count_hints(struct daemon *d)
{
    d->counts.cached = d->counts.pinned = 0;
    for (unsigned i = 0; i < PEERS_MAX; i++)
        for (uint32_t region = 1; d->peers[i] && d->peers[i]->lines && region < REGIONS_MAX; region++) {
            d->counts.cached += d->peers[i]->lines[region - 1].cached_pages;
            d->counts.pinned += d->peers[i]->lines[region - 1].pinned_pages;
        }
}

/* ---- Notices ---- */

void leases_notify(struct daemon *d, uint64_t bytes, uint32_t deadline_ms, bool courtesy)
{
    for (unsigned i = 0; i < PEERS_MAX; i++) {
        Kvcached__Notice body = KVCACHED__NOTICE__INIT;

        if (!d->peers[i] || !d->peers[i]->lines || d->peers[i]->notices > d->peers[i]->acks)
            continue;
        body.number = ++d->peers[i]->notices;
        body.bytes = bytes;
        body.deadline_ms = deadline_ms;
        body.courtesy = courtesy;
        fake_answer(d->peers[i]->fd, FAKE_HONEST, MESSAGE_NOTICE, 0, &body.base, NULL, 0);
    }
}

static void on_notice_ack(struct daemon *d, struct peer *peer, const struct message *m)
{
    check_eq(((const Kvcached__NoticeAck *)m->body)->number, peer->notices);
    check_eq(++peer->acks, peer->notices);
    d->counts.acks++;
}

bool leases_message(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    switch (m->type) {
    case MESSAGE_LEASE:
        on_lease(d, peer, m, lie);
        return true;
    case MESSAGE_NOTICE_ACK:
        on_notice_ack(d, peer, m);
        return true;
    default:
        return false;
    }
}
