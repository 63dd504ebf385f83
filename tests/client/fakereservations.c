/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Controllers and what they reserve. One that asks for more than the limit is refused; foreign bytes are
 * taken note of, and nothing else.
 */

#include "fakeinternal.h"

static void on_reserve(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__Reserve *reserve = (const Kvcached__Reserve *)m->body;
    Kvcached__Reserved body = KVCACHED__RESERVED__INIT;

    d->counts.reserves++;
    check(!peer->reserves || d->noisy);
    if (reserve->bytes == 0 && reserve->foreign_bytes == 0) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_INVALID, "That is nothing");
        return;
    }
    if (reserve->bytes > d->limit) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_LIMIT, "The limit cannot hold it");
        return;
    }
    peer->reserves = true;
    d->counts.reserved += reserve->bytes;
    d->counts.foreign += reserve->foreign_bytes;
    if (lie == FAKE_LATE) {
        peer->reserve = m->request;
        d->counts.late++;
        return;
    }
    fake_answer(peer->fd, lie, MESSAGE_RESERVED, m->request, &body.base, NULL, 0);
}

static void on_release(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    Kvcached__Released body = KVCACHED__RELEASED__INIT;

    d->counts.releases++;
    if (!peer->reserves) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_INVALID, "Nothing is reserved");
        return;
    }
    reservations_end(d, peer);
    if (peer->reserve) {
        fake_refuse(peer->fd, peer->reserve, KVCACHED__ERROR__ERROR_INVALID, "It was released");
        peer->reserve = 0;
        d->counts.late--;
    }
    fake_answer(peer->fd, lie, MESSAGE_RELEASED, m->request, &body.base, NULL, 0);
}

bool reservations_message(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    if (m->type != MESSAGE_RESERVE && m->type != MESSAGE_RELEASE)
        return false;
    if (m->type == MESSAGE_RESERVE)
        on_reserve(d, peer, m, lie);
    else
        on_release(d, peer, m, lie);
    return true;
}

void reservations_release(struct daemon *d, struct peer *peer)
{
    Kvcached__Reserved body = KVCACHED__RESERVED__INIT;

    if (!peer->reserve)
        return;
    fake_answer(peer->fd, FAKE_HONEST, MESSAGE_RESERVED, peer->reserve, &body.base, NULL, 0);
    peer->reserve = 0;
    d->counts.late--;
}

/* A fake daemon has one controller at a time. */
void reservations_end(struct daemon *d, struct peer *peer)
{
    if (peer->reserves)
        d->counts.reserved = d->counts.foreign = 0;
    peer->reserves = false;
}
