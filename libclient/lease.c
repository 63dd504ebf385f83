/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The daemon answers a Lease after it has raised the word, so whoever has waited for the answer finds the
 * memory there, unless somebody was faster: then it asks again. What is offered and not claimed can go at any
 * time; only claims are counted on.
 *
 * The word is shared with the daemon, so a number in it is never more than a number: what the daemon says it
 * doesn't know is taken as it says.
 */

#include "lease.h"

#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "notice.h"
#include "region.h"

struct lease_ask {
    struct request request;
    struct list link;          /* of the region's asks */
    struct kvc_region *region; /* NULL: nobody wants it any more */
    uint32_t pages;
    bool courtesy;
};

uint64_t lease_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

void lease_open(struct kvc_region *region)
{
    struct kvc_client *client = region->client;

    if (client->leases && region->id >= 1 && region->id <= LEASE_LINES)
        region->lease.line = &client->leases[region->id - 1];
}

static void forget_ask(struct lease_ask *ask)
{
    if (!ask->region)
        return;
    ask->region->lease.asked_pages -= ask->pages;
    list_unlink(&ask->link);
    ask->region = NULL;
}

void lease_close(struct kvc_region *region)
{
    list_for_each_safe (it, &region->lease.asks)
        forget_ask(container_of(it, struct lease_ask, link));
    lease_hint(region, 0, 0);
    lease_give_up(region, UINT32_MAX);
}

bool lease_is_too_much(int r)
{
    return r == KVC_E_RESOURCES || r == KVC_E_INVALID;
}

bool lease_is_short(const struct kvc_region *region, uint64_t pages)
{
    uint32_t too_many = region->lease.too_many;

    return too_many > 0 && pages >= too_many;
}

bool lease_is_on(const struct kvc_region *region)
{
    return region->lease.line != NULL;
}

uint64_t lease_claim_up_to(struct kvc_region *region, uint64_t pages)
{
    struct lease lease = lease_of(region);

    if (lease.claimed >= pages || lease.offered == 0)
        return lease.claimed;
    return lease.claimed +
           lease_claim(region->lease.line, (uint32_t)u64_min(pages - lease.claimed, UINT32_MAX));
}

uint64_t lease_give_up(struct kvc_region *region, uint64_t pages)
{
    if (!region->lease.line)
        return 0;
    return lease_unclaim(region->lease.line, (uint32_t)u64_min(pages, UINT32_MAX));
}

void lease_put_back(struct kvc_region *region, size_t pages)
{
    if (region->lease.line && region->client->conn->alive)
        lease_unspend(region->lease.line, (uint32_t)pages);
}

/* Other threads read the pointer without the lock: the word is emptied, and stays so. */
void lease_over(struct kvc_region *region)
{
    if (region->lease.line)
        atomic_store(&region->lease.line->word, 0);
    region->lease.refused = true;
    status_page_read(region->client->status, &region->lease.refused_at);
}

void lease_hint(struct kvc_region *region, uint64_t cached_pages, uint64_t pinned_pages)
{
    struct lease_line *line = region->lease.line;

    if (!line)
        return;
    atomic_store_explicit(&line->cached_pages, cached_pages, memory_order_relaxed);
    atomic_store_explicit(&line->pinned_pages, pinned_pages, memory_order_relaxed);
}

/* ---- Asking ---- */

static int ask_receive(struct request *request, const struct message *message, struct fdset *fds,
                       bool truncated)
{
    const struct lease_ask *ask = container_of(request, struct lease_ask, request);

    if (message->type != MESSAGE_LEASED)
        return request_violated(request, "kvcachedd answered Lease with %s", codec_type_name(message->type));
    if (((const Kvcached__Leased *)message->body)->pages != ask->pages)
        return request_violated(request, "kvcachedd leased another number of pages than was asked for");
    return 0;
}

static int ask_end(struct lease_ask *ask)
{
    struct kvc_region *region = ask->region;
    int r = ask->request.result;

    forget_ask(ask);
    if (region && ask->courtesy) {
        region->lease.refused = r < 0;
        status_page_read(region->client->status, &region->lease.refused_at);
    }
    if (region && !ask->courtesy)
        region->lease.too_many = lease_is_too_much(r) ? ask->pages : 0;
    if (region)
        region->work_wanted = true;
    free(ask);
    return r;
}

static void ask_finish(struct request *request)
{
    ask_end(container_of(request, struct lease_ask, request));
}

static int send_ask(struct kvc_region *region, uint64_t pages, bool courtesy, struct lease_ask **ret)
{
    Kvcached__Lease body = KVCACHED__LEASE__INIT;
    struct lease_ask *ask = calloc(1, sizeof(*ask));
    int r;

    if (!ask)
        return error_nomem();
    list_init(&ask->link);
    request_init(&ask->request, ask_receive, ask_finish);
    ask->region = region;
    ask->pages = (uint32_t)u64_min(pages, UINT32_MAX);
    ask->courtesy = courtesy;
    body.region = region->id;
    body.pages = ask->pages;
    body.courtesy = courtesy;
    r = conn_ask(region->client->conn, &ask->request, MESSAGE_LEASE, &body.base);
    if (r < 0) {
        free(ask);
        return r;
    }
    list_append(&region->lease.asks, &ask->link);
    region->lease.asked_pages += ask->pages;
    *ret = ask;
    return 0;
}

int lease_ask(struct kvc_region *region, uint64_t pages, bool courtesy)
{
    struct lease_ask *ask;

    return send_ask(region, pages, courtesy, &ask);
}

int lease_ask_and_wait(struct kvc_region *region, uint64_t pages, uint64_t timeout_ns)
{
    struct lease_ask *ask = NULL;
    int r;

    r = send_ask(region, pages, false, &ask);
    if (r < 0)
        return r;
    r = notice_wait(region->client, &ask->request, timeout_ns);
    if (!ask->request.done)
        return r;
    ask_end(ask);
    return r;
}

/* One that has been answered stays in the list until its thread wakes: nobody would be told of that. */
bool lease_is_asked(const struct kvc_region *region)
{
    list_for_each (it, &region->lease.asks) {
        const struct request *request = &container_of(it, struct lease_ask, link)->request;

        if (!request->done && !request->expired)
            return true;
    }
    return false;
}

void lease_start_time(struct kvc_region *region)
{
    list_for_each (it, &region->lease.asks) {
        struct request *request = &container_of(it, struct lease_ask, link)->request;

        if (!request->waited)
            conn_start_time(region->client->conn, request);
    }
}

bool lease_may_ask(const struct kvc_region *region)
{
    struct status_values status;

    if (!region->lease.line)
        return false;
    if (!region->lease.refused)
        return true;
    status_page_read(region->client->status, &status);
    return memcmp(&status, &region->lease.refused_at, sizeof(status)) != 0;
}
