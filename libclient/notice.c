/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A notice is answered at once, unless the engine was told a moment ago what is available: a report is a
 * promise, so nothing is given back before it has run out. While a notice is open reports promise nothing
 * that the notice may take, so that moment comes. Memory on its way into the reserves is waited for as well:
 * the daemon counts on it, and nothing follows it there while a notice is open.
 *
 * The library gives in the order in which it hurts least: claims, memory in caches, free pages of block
 * allocators; and no more than is wanted. What is still missing is the engine's to give; it is asked from
 * kvc_dispatch() or the library's own thread, never from inside another call of its own.
 *
 * A thread that waits for memory sees to notices itself: they may be about what it waits for, and a host
 * without the library's thread has nobody else.
 */

#include "notice.h"

#include "base/arith.h"
#include "blocks.h"
#include "client.h"
#include "region.h"
#include "reserve.h"

int notice_arrived(struct kvc_client *client, const Kvcached__Notice *body)
{
    struct notice *notice = &client->notice;

    if (body->number == 0)
        return KVC_E_PROTOCOL;
    notice->number = body->number;
    notice->bytes = body->bytes;
    notice->deadline_ns = u64_add_ceil(conn_now_ns(), body->deadline_ms * NSEC_PER_MSEC);
    notice->answer_by_ns = u64_add_ceil(conn_now_ns(), body->deadline_ms * NSEC_PER_MSEC / 4 * 3);
    notice->courtesy = body->courtesy;
    atomic_store(&notice->open, true);
    return 0;
}

uint64_t notice_due_ns(const struct kvc_client *client)
{
    uint64_t due_ns = 0;

    if (!atomic_load(&client->notice.open) || client->notice.answering)
        return UINT64_MAX;
    for (const struct kvc_region *region = NULL; (region = client_next_region(client, region));) {
        if (region->blocks)
            due_ns = u64_max(due_ns, blocks_report_until(region->blocks));
        if (region->refill && region->refill->leased)
            due_ns = u64_max(due_ns, client->notice.answer_by_ns);
    }
    return due_ns;
}

bool notice_is_due(const struct kvc_client *client)
{
    uint64_t due_ns = notice_due_ns(client);

    return due_ns == 0 || (due_ns != UINT64_MAX && due_ns <= conn_now_ns());
}

/* ---- Giving back ---- */

static uint64_t pages_for(const struct kvc_region *region, uint64_t bytes)
{
    uint64_t page_bytes = kvc_region_page_bytes(region);

    return bytes / page_bytes + (bytes % page_bytes != 0);
}

static uint64_t give_claims(struct kvc_client *client, uint64_t wanted)
{
    uint64_t given = 0;

    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        given += kvc_region_page_bytes(region) *
                 lease_give_up(region, pages_for(region, u64_sub_floor(wanted, given)));
    return given;
}

static uint64_t give_blocks(struct kvc_client *client, uint64_t wanted, struct list *leaving)
{
    uint64_t given = 0;

    list_for_each (it, &client->regions) {
        struct kvc_region *region = container_of(it, struct kvc_region, link);

        if (region->blocks && given < wanted)
            given += kvc_region_page_bytes(region) *
                     blocks_shed(region->blocks, pages_for(region, wanted - given), leaving);
    }
    return given;
}

static uint64_t give(struct kvc_client *client, uint64_t wanted)
{
    struct list leaving = LIST_INIT(leaving);
    uint64_t given = give_claims(client, wanted), cached = client->cached.bytes;

    error_hold();
    if (given < wanted) {
        reserve_empty(client, &leaving);
        given += cached - client->cached.bytes;
    }
    if (given < wanted)
        given += give_blocks(client, wanted - given, &leaving);
    borrow_return(client, &leaving, true);
    if (given < wanted)
        given += blocks_give(client, NULL, wanted - given);
    error_release();
    return given;
}

/* What the daemon wants of this peer may be a part of what the instance has too much, of which the others
 * have theirs to give; but above a limit there is no reason to keep what is not used. */
static uint64_t wanted_of(const struct kvc_client *client)
{
    struct status_values status;

    if (client->notice.courtesy)
        return client->notice.bytes;
    status_page_read(client->status, &status);
    return u64_max(client->notice.bytes, u64_sub_floor(status.used_bytes, status.limit_bytes));
}

static void answer(struct kvc_client *client)
{
    struct notice *notice = &client->notice;
    Kvcached__NoticeAck ack = KVCACHED__NOTICE_ACK__INIT;
    uint64_t bytes = notice->bytes, missing;

    ack.number = notice->number;
    notice->answering = true;
    missing = u64_sub_floor(bytes, give(client, wanted_of(client)));
    notice->answering = false;
    /* Another may have come while we waited for the daemon: it is answered on its own. */
    if (notice->number == ack.number) {
        notice->reclaim_due = !notice->courtesy && missing > 0 && client->listener.reclaim;
        notice->missing_bytes = missing;
        /* The status page may say so a moment later, and what the engine gives now must not be kept. */
        atomic_store(&notice->pressing_until_ns, missing && !notice->courtesy ? notice->deadline_ns : 0);
        atomic_store(&notice->open, false);
    }
    conn_tell(client->conn, MESSAGE_NOTICE_ACK, 0, &ack.base);
}

/* Threads that find one being answered leave the next one to who is at it. */
void notice_work(struct kvc_client *client)
{
    while (notice_is_due(client))
        answer(client);
}

void notice_reclaim(struct kvc_client *client)
{
    struct notice *notice = &client->notice;
    uint64_t bytes = notice->missing_bytes, left_ns;

    if (!notice->reclaim_due)
        return;
    notice->reclaim_due = false;
    left_ns = u64_sub_floor(notice->deadline_ns, conn_now_ns());
    pthread_mutex_unlock(&client->conn->lock);
    client->listener.reclaim(client->listener_data, client, bytes, (unsigned)(left_ns / NSEC_PER_MSEC));
    pthread_mutex_lock(&client->conn->lock);
}

/* ---- Waiting ---- */

struct wait {
    struct kvc_client *client;
    bool (*pending)(const void *data);
    const void *data;
    uint64_t deadline_ns;
};

static bool is_pending(const struct wait *wait)
{
    return wait->pending(wait->data) &&
           (wait->deadline_ns == UINT64_MAX || conn_now_ns() < wait->deadline_ns);
}

static bool is_quiet(const void *data)
{
    const struct wait *wait = data;

    return is_pending(wait) && !news_has_notice(&wait->client->news) && !notice_is_due(wait->client);
}

int notice_wait_while(struct kvc_client *client, bool (*pending)(const void *data), const void *data,
                      uint64_t deadline_ns)
{
    struct wait wait = {.client = client, .pending = pending, .data = data, .deadline_ns = deadline_ns};
    int r = 0;

    while (is_pending(&wait) && r == 0) {
        news_take_notices(client);
        notice_work(client);
        r = conn_wait_while_until(client->conn, is_quiet, &wait, u64_min(deadline_ns, notice_due_ns(client)));
    }
    return r;
}

static bool is_unanswered(const void *data)
{
    const struct request *request = data;

    return !request->done && !request->expired;
}

int notice_wait(struct kvc_client *client, struct request *request, uint64_t timeout_ns)
{
    conn_wait_begin(request, conn_deadline(timeout_ns));
    return conn_wait_end(request, notice_wait_while(client, is_unanswered, request, UINT64_MAX));
}
