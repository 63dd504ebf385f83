/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Notices: asking peers to give back what they hold and may not need.
 *
 * A notice out of courtesy goes to those who could help somebody else: what they could give stands in the
 * lines of their leases (claims, and free pages that they keep), which is only the client's word, so it is
 * cut to what the books say the peer has. One about a limit goes to all peers of the instance, in proportion
 * to what each holds and has not pinned, or, where all is pinned, to what each holds.
 *
 * At most one is unacknowledged per peer; what comes up meanwhile is put together into the next. Needs are
 * numbered, and a peer is asked once for each: when it has acknowledged, it has given what it could, unless
 * it gave all that was wanted and still has more. One that lets the time pass has missed: nobody waits for it
 * again before it has acknowledged, whatever it returns. So every wait for others ends, and nothing runs
 * after it.
 */

#include <stdatomic.h>

#include "base/arith.h"
#include "broker-internal.h"

void broker_peer_listens(struct broker *broker, struct broker_peer *peer, bool schedules, bool obeys)
{
    peer->listens = true;
    peer->schedules = schedules;
    peer->obeys = obeys;
    list_append(&broker->listeners, &peer->listener_link);
}

/* ---- What peers could give ---- */

static uint64_t pages_to_bytes(uint64_t pages, uint64_t page_bytes)
{
    uint64_t bytes = UINT64_MAX;

    u64_mul(pages, page_bytes, &bytes);
    return bytes;
}

static uint64_t claimed_bytes(struct broker *broker, struct broker_peer *peer)
{
    uint64_t bytes = 0;

    if (peer->n_issued == 0)
        return 0;
    list_for_each (it, &peer->leases)
        bytes += lease_claimed_bytes(broker, container_of(it, struct broker_lease, link));
    return bytes;
}

/* What the word of the peer can be about: what it holds, or has on its way out of a lease; and a scheduler
 * speaks of pages of its workers, who are peers of its instance. */
static uint64_t books_bytes(struct broker *broker, const struct broker_peer *peer)
{
    uint64_t bytes = peer->schedules ? peer->instance->account.bytes[LEDGER_GRANTED] : peer->held_bytes;

    list_for_each (it, &peer->requests) {
        const struct broker_request *request = container_of(it, struct broker_request, peer_link);

        if (request->promised && request->state == BROKER_REQUEST_READY)
            bytes += request->bytes;
    }
    if (peer->n_issued == 0)
        return bytes;
    list_for_each (it, &peer->leases)
        bytes += lease_spent_bytes(broker, container_of(it, struct broker_lease, link));
    return bytes;
}

/* Free pages, and memory on its way to become such. Who has scribbled over a word is not believed otherwise
 * either. Of one who has nothing no line is read: there may be very many such lines. */
static uint64_t cached_bytes(struct broker *broker, const struct broker_peer *peer)
{
    uint64_t books = books_bytes(broker, peer), bytes = 0;

    list_for_each (it, &peer->leases) {
        struct broker_lease *lease = container_of(it, struct broker_lease, link);

        if (bytes >= books)
            break;
        if (lease_is_open(broker, lease))
            bytes = u64_add_ceil(bytes,
                                 pages_to_bytes(atomic_load(&lease->line->cached_pages), lease->page_bytes));
    }
    return u64_min(bytes, books);
}

/* Claims first: a client counts what it spends before the claims are gone. */
static uint64_t hinted_bytes(struct broker *broker, struct broker_peer *peer)
{
    uint64_t claimed = claimed_bytes(broker, peer);

    return claimed + cached_bytes(broker, peer);
}

static uint64_t issued_bytes(const struct broker_peer *peer)
{
    uint64_t bytes = 0;

    list_for_each (it, &peer->leases) {
        const struct broker_lease *lease = container_of(it, struct broker_lease, link);

        bytes += lease->issued * lease->page_bytes;
    }
    return bytes;
}

/* By its own word. */
static uint64_t pinned_bytes(const struct broker_peer *peer)
{
    uint64_t bytes = 0;

    list_for_each (it, &peer->leases) {
        const struct broker_lease *lease = container_of(it, struct broker_lease, link);

        bytes =
            u64_add_ceil(bytes, pages_to_bytes(atomic_load(&lease->line->pinned_pages), lease->page_bytes));
    }
    return bytes;
}

static bool obeys_somebody(const struct broker_peer *peer)
{
    if (!peer->obeys)
        return false;
    list_for_each (it, &peer->instance->peers) {
        const struct broker_peer *other = container_of(it, struct broker_peer, link);

        if (other->schedules && other->listens && !other->lost)
            return true;
    }
    return false;
}

/* Of what workers hold, whose scheduler this is. */
static uint64_t workers_bytes(const struct broker_peer *scheduler, bool heed_pins)
{
    uint64_t bytes = 0;

    list_for_each (it, &scheduler->instance->peers) {
        const struct broker_peer *peer = container_of(it, struct broker_peer, link);

        if (peer->obeys && !peer->lost)
            bytes += u64_sub_floor(peer->held_bytes, heed_pins ? pinned_bytes(peer) : 0);
    }
    return bytes;
}

/* What it could be made to give for a limit. Words are not believed beyond that. */
static uint64_t givable_bytes(const struct broker_peer *peer, bool heed_pins)
{
    uint64_t bytes = peer->held_bytes + issued_bytes(peer);

    bytes = u64_sub_floor(bytes, heed_pins ? pinned_bytes(peer) : 0);
    return peer->schedules ? bytes + workers_bytes(peer, heed_pins) : bytes;
}

static bool is_due(const struct broker_peer *peer)
{
    return peer->courtesy_bytes || peer->limit_bytes;
}

/* One who is at it counts for what it was asked for: that may be on its way back already. */
static uint64_t hoped_bytes(struct broker *broker, struct broker_peer *peer)
{
    return u64_max(hinted_bytes(broker, peer), peer->noticed ? peer->asked_bytes : 0);
}

/* Is there anything to be hoped for from it, for the need of that number? */
static bool may_help(const struct broker_peer *peer, uint64_t serial)
{
    if (!peer->listens || peer->lost || peer->missed)
        return false;
    return peer->asked_serial < serial || peer->noticed || is_due(peer);
}

static struct broker_peer *of_list(struct list *it, const struct broker_instance *instance)
{
    return instance ? container_of(it, struct broker_peer, link)
                    : container_of(it, struct broker_peer, listener_link);
}

uint64_t notices_hope(struct broker *broker, struct broker_instance *instance,
                      const struct broker_request *request, uint64_t enough)
{
    uint64_t bytes = 0;

    list_for_each (it, instance ? &instance->peers : &broker->listeners) {
        struct broker_peer *peer = of_list(it, instance);

        if (bytes >= enough)
            break;
        if (peer != request->peer && may_help(peer, request->serial))
            bytes += hoped_bytes(broker, peer);
    }
    return bytes;
}

/* ---- Asking ---- */

static void await(struct broker *broker, struct broker_peer *peer, bool courtesy)
{
    peer->notice_ns =
        u64_add_ceil(broker->now_ns, courtesy ? broker->config.courtesy_ns : broker->config.notice_ns);
    list_append(&broker->awaited[courtesy], &peer->notice_link);
}

static void make_due(struct broker *broker, struct broker_peer *peer)
{
    if (!peer->noticed && list_is_empty(&peer->notice_link))
        list_append(&broker->due, &peer->notice_link);
    instance_touch(broker, peer->instance);
}

/* One who has no notice; else it is asked when that is acknowledged, if need be. */
static void ask(struct broker *broker, struct broker_peer *peer, uint64_t serial, uint64_t bytes,
                uint64_t could_bytes)
{
    peer->asked_serial = serial;
    peer->hinted_bytes = could_bytes;
    peer->courtesy_bytes = u64_min(peer->courtesy_bytes + bytes, could_bytes);
    make_due(broker, peer);
}

/* What is still to be asked for: some may be at it. */
static uint64_t unasked_bytes(struct broker *broker, struct broker_instance *instance,
                              const struct broker_peer *but, uint64_t serial, uint64_t bytes)
{
    list_for_each (it, instance ? &instance->peers : &broker->listeners) {
        struct broker_peer *peer = of_list(it, instance);

        if (bytes && peer != but && (peer->noticed || peer->asked_serial >= serial) && may_help(peer, serial))
            bytes = u64_sub_floor(bytes, hoped_bytes(broker, peer));
    }
    return bytes;
}

/* Of as few as might have so much, or of all who have something. */
static void ask_for(struct broker *broker, struct broker_instance *instance, const struct broker_peer *but,
                    uint64_t serial, uint64_t bytes, bool all)
{
    if (!all)
        bytes = unasked_bytes(broker, instance, but, serial, bytes);
    list_for_each (it, instance ? &instance->peers : &broker->listeners) {
        struct broker_peer *peer = of_list(it, instance);
        uint64_t could;

        if (bytes == 0)
            return;
        if (peer == but || peer->noticed || peer->asked_serial >= serial || !may_help(peer, serial))
            continue;
        could = hinted_bytes(broker, peer);
        if (could)
            ask(broker, peer, serial, u64_min(could, bytes), could);
        if (!all)
            bytes = u64_sub_floor(bytes, could);
    }
}

void notices_ask(struct broker *broker, struct broker_instance *instance,
                 const struct broker_request *request, uint64_t bytes)
{
    ask_for(broker, instance, request->peer, request->serial, bytes, request->asks_all);
}

void notices_budget(struct broker *broker, uint64_t bytes)
{
    ask_for(broker, NULL, NULL, ++broker->need_serial, bytes, false);
}

void notices_ask_claims(struct broker *broker, const struct broker_peer *needy)
{
    uint64_t serial = ++broker->need_serial;

    list_for_each (it, &broker->listeners) {
        struct broker_peer *peer = of_list(it, NULL);
        uint64_t claimed;

        if (peer == needy || (needy && peer->instance->domain != needy->instance->domain))
            continue;
        claimed = may_help(peer, serial) ? claimed_bytes(broker, peer) : 0;
        if (claimed && !peer->noticed)
            ask(broker, peer, serial, claimed, hinted_bytes(broker, peer));
    }
}

/* ---- Limits and the budget ---- */

uint64_t broker_over_limit(const struct broker_instance *instance)
{
    return u64_sub_floor(broker_used(instance), policy_limit(instance->has_limit, instance->limit_of, NULL));
}

uint64_t broker_over_budget(const struct broker *broker)
{
    return u64_sub_floor(broker->ledger.charged_bytes, broker->budget.bytes);
}

static void call_off(struct broker_instance *instance)
{
    list_unlink(&instance->pressed_link);
    list_for_each (it, &instance->peers) {
        struct broker_peer *peer = container_of(it, struct broker_peer, link);

        peer->limit_bytes = 0;
        if (!peer->noticed && !is_due(peer))
            list_unlink(&peer->notice_link);
    }
}

/* Notes what each could give; words can change while they are read, so each is read once. Where all is pinned
 * by what they say, they are asked all the same: a word is no way out of a limit. Returns how much it is. */
static uint64_t weigh_peers(struct broker_instance *instance, bool heed_pins)
{
    uint64_t total = 0;

    list_for_each (it, &instance->peers) {
        struct broker_peer *peer = container_of(it, struct broker_peer, link);

        if (!peer->listens || peer->lost || obeys_somebody(peer))
            continue;
        peer->limit_bytes = givable_bytes(peer, heed_pins);
        total += peer->limit_bytes;
    }
    return total;
}

/* Each gets its share of the whole, so that all shares together are exactly that. */
static void share_out(struct broker *broker, struct broker_instance *instance, uint64_t bytes, uint64_t total)
{
    uint64_t givable = 0, shared = 0;

    list_for_each (it, &instance->peers) {
        struct broker_peer *peer = container_of(it, struct broker_peer, link);
        uint64_t until;

        givable += peer->limit_bytes;
        until = (uint64_t)((unsigned __int128)bytes * givable / total);
        peer->limit_bytes = until - shared;
        shared = until;
        if (peer->limit_bytes)
            make_due(broker, peer);
    }
}

void notices_limit(struct broker *broker, struct broker_instance *instance)
{
    uint64_t over = broker_over_limit(instance), total;

    call_off(instance);
    if (over == 0)
        return;
    total = weigh_peers(instance, true);
    if (total == 0)
        total = weigh_peers(instance, false);
    if (total == 0)
        return;
    share_out(broker, instance, u64_min(over, total), total);
    instance->pressed_ns = u64_add_ceil(broker->now_ns, broker->config.notice_ns);
    list_append(&broker->pressed, &instance->pressed_link);
}

uint64_t broker_pressure(const struct broker_instance *instance)
{
    uint64_t bytes = 0;

    list_for_each (it, &instance->peers) {
        const struct broker_peer *peer = container_of(it, struct broker_peer, link);

        bytes += peer->asked_bytes + u64_max(peer->courtesy_bytes, peer->limit_bytes);
    }
    return u64_max(bytes, broker_over_limit(instance));
}

/* ---- Sent, acknowledged, missed ---- */

bool notices_next(struct broker *broker, struct broker_action *ret)
{
    struct broker_peer *peer = list_first(&broker->due, struct broker_peer, notice_link);
    bool courtesy;

    if (!peer)
        return false;
    list_unlink(&peer->notice_link);
    courtesy = peer->limit_bytes == 0;
    peer->noticed = true;
    peer->notice_number++;
    broker->counters.n_notices[courtesy]++;
    peer->notice_bytes = peer->asked_bytes = u64_max(peer->courtesy_bytes, peer->limit_bytes);
    peer->courtesy_bytes = peer->limit_bytes = 0;
    await(broker, peer, courtesy);
    /* The next need begins with another. */
    list_unlink(&peer->listener_link);
    list_append(&broker->listeners, &peer->listener_link);
    *ret = (struct broker_action){
        .type = BROKER_ACTION_NOTICE,
        .instance = peer->instance,
        .peer = peer,
        .number = peer->notice_number,
        .bytes = peer->notice_bytes,
        .deadline_ns = peer->notice_ns - broker->now_ns,
        .courtesy = courtesy,
    };
    return true;
}

/* Who gave all that was wanted, and has more, can be asked for more. */
static void judge_answer(struct broker *broker, struct broker_peer *peer)
{
    if (u64_sub_floor(peer->hinted_bytes, hinted_bytes(broker, peer)) >= peer->notice_bytes)
        peer->asked_serial = 0;
}

void broker_notice_acked(struct broker *broker, struct broker_peer *peer, uint32_t number, uint64_t now_ns)
{
    if (!peer->noticed || peer->lost || number != peer->notice_number)
        return;
    broker->now_ns = u64_max(now_ns, broker->now_ns);
    peer->noticed = peer->missed = false;
    peer->asked_bytes = 0;
    list_unlink(&peer->notice_link);
    judge_answer(broker, peer);
    leases_withdraw(broker, peer->instance, NULL, broker_over_limit(peer->instance));
    leases_withdraw(broker, NULL, NULL, broker_over_budget(broker));
    broker->may_offer = true;
    if (is_due(peer))
        make_due(broker, peer);
    instance_touch(broker, peer->instance);
    broker_settle(broker, now_ns);
}

void notices_returned(struct broker_peer *peer, uint64_t bytes)
{
    peer->asked_bytes = u64_sub_floor(peer->asked_bytes, bytes);
}

void notices_lose(struct broker_peer *peer)
{
    list_unlink(&peer->listener_link);
    list_unlink(&peer->notice_link);
    peer->noticed = false;
    peer->asked_bytes = peer->courtesy_bytes = peer->limit_bytes = 0;
}

static void expire(struct broker *broker, struct list *awaited)
{
    struct broker_peer *peer;

    while ((peer = list_first(awaited, struct broker_peer, notice_link)) &&
           peer->notice_ns <= broker->now_ns) {
        list_unlink(&peer->notice_link);
        peer->missed = true;
        broker->counters.n_missed[awaited == &broker->awaited[true]]++;
        peer->asked_bytes = 0;
        instance_touch(broker, peer->instance);
    }
}

void notices_expire(struct broker *broker)
{
    struct broker_instance *instance;

    expire(broker, &broker->awaited[false]);
    expire(broker, &broker->awaited[true]);
    while ((instance = list_first(&broker->pressed, struct broker_instance, pressed_link)) &&
           instance->pressed_ns <= broker->now_ns) {
        list_unlink(&instance->pressed_link);
        instance->missed = true;
        instance_touch(broker, instance);
    }
}

uint64_t notices_deadline(const struct broker *broker)
{
    uint64_t deadline = UINT64_MAX;

    for (unsigned courtesy = 0; courtesy < 2; courtesy++) {
        const struct broker_peer *peer =
            list_first(&broker->awaited[courtesy], struct broker_peer, notice_link);

        if (peer)
            deadline = u64_min(deadline, peer->notice_ns);
    }
    if (!list_is_empty(&broker->pressed))
        deadline =
            u64_min(deadline, list_first(&broker->pressed, struct broker_instance, pressed_link)->pressed_ns);
    return deadline;
}

/* ---- What is told of it ---- */

uint64_t notices_cached(struct broker *broker, const struct broker_peer *peer)
{
    return peer->lost ? 0 : cached_bytes(broker, peer);
}

uint64_t notices_pinned(const struct broker_peer *peer)
{
    return peer->lost ? 0 : pinned_bytes(peer);
}
