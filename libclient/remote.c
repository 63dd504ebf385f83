/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A scheduler's region is a name for a worker's: there is no address and no driver here, and what is mapped
 * is the worker's to know. Every Map and Unmap has a number, so that nothing is done twice.
 *
 * The first order of a session is an empty Unmap: the worker unmaps then what an earlier scheduler has left,
 * which would otherwise stay charged, and perhaps keep this one's first Map from being admitted.
 *
 * A call belongs to who began it, and to the connection until it is answered. One that is not answered in
 * time stays with both: the worker may have done it, so its owner must learn what became of it; the answer
 * waits in the call, whoever receives it. It is answered at the latest when the connection ends.
 */

#include "remote.h"

#include <inttypes.h>

#include "base/arith.h"
#include "map.h"

/* ---- Calls ---- */

struct remote_call {
    struct request request;
    struct kvc_client *client;
    uint16_t answer;
    bool owned; /* somebody still wants to know */
};

static int call_receive(struct request *request, const struct message *message, struct fdset *fds,
                        bool truncated)
{
    struct remote_call *call = container_of(request, struct remote_call, request);

    if (message->type == call->answer)
        return 0;
    return request_violated(request, "kvcachedd answered with %s where %s was due",
                            codec_type_name(message->type), codec_type_name(call->answer));
}

static void call_finish(struct request *request)
{
    struct remote_call *call = container_of(request, struct remote_call, request);

    if (!call->owned)
        free(call);
}

static int call_send(struct kvc_region *region, uint16_t type, uint16_t answer, const ProtobufCMessage *body,
                     struct remote_call **ret)
{
    struct remote_call *call = calloc(1, sizeof(*call));
    int r;

    if (!call)
        return error_nomem();
    request_init(&call->request, call_receive, call_finish);
    call->client = region->client;
    call->answer = answer;
    call->owned = true;
    r = conn_ask(region->client->conn, &call->request, type, body);
    if (r < 0) {
        free(call);
        return r;
    }
    region->remote->number++;
    *ret = call;
    return 0;
}

static int send_map(struct kvc_region *region, const uint64_t *pages, size_t n, bool leased,
                    struct remote_call **ret)
{
    Kvcached__Map body = KVCACHED__MAP__INIT;

    body.region = region->id;
    body.number = region->remote->number + 1;
    body.pages = (uint64_t *)pages;
    body.n_pages = n;
    body.leased = leased;
    return call_send(region, MESSAGE_MAP, MESSAGE_MAPPED, &body.base, ret);
}

static int send_unmap(struct kvc_region *region, const uint64_t *pages, size_t n, struct remote_call **ret)
{
    Kvcached__Unmap body = KVCACHED__UNMAP__INIT;

    body.region = region->id;
    body.number = region->remote->number + 1;
    body.pages = (uint64_t *)pages;
    body.n_pages = n;
    return call_send(region, MESSAGE_UNMAP, MESSAGE_UNMAPPED, &body.base, ret);
}

static int check_pages(const struct kvc_region *region, const uint64_t *pages, size_t n)
{
    if (n < 1 || n > REMOTE_PAGES_MAX)
        return error_set(KVC_E_INVALID, "A worker takes 1 to %d pages at once, not %zu", REMOTE_PAGES_MAX, n);
    for (size_t i = 0; i < n; i++)
        if (pages[i] >= region->remote->pages)
            return error_set(KVC_E_INVALID, "There is no page %" PRIu64 " in a region of %" PRIu64, pages[i],
                             region->remote->pages);
    return 0;
}

int remote_map_begin(struct kvc_region *region, const uint64_t *pages, size_t n, bool leased,
                     struct remote_call **ret)
{
    int r;

    r = client_enter(region->client);
    if (r < 0)
        return r;
    r = check_pages(region, pages, n);
    if (r == 0)
        r = send_map(region, pages, n, leased, ret);
    if (r < 0 && leased)
        lease_put_back(region, n);
    client_leave(region->client);
    return r;
}

int remote_unmap_begin(struct kvc_region *region, const uint64_t *pages, size_t n, struct remote_call **ret)
{
    int r;

    r = client_enter(region->client);
    if (r < 0)
        return r;
    r = check_pages(region, pages, n);
    if (r == 0)
        r = send_unmap(region, pages, n, ret);
    client_leave(region->client);
    return r;
}

uint64_t remote_deadline(const struct kvc_region *region)
{
    return conn_deadline(region->client->conn->timeout_ns);
}

static int call_result(const struct remote_call *call)
{
    return call->request.result < 0 ? error_set(call->request.result, "%s", call->request.reason) : 0;
}

static int call_wait(struct remote_call *call, uint64_t deadline_ns)
{
    int r = conn_wait_until(call->client->conn, &call->request, deadline_ns);

    if (call->request.done)
        return call_result(call);
    return r == KVC_E_TIMEOUT ? error_set(r, "The worker has not answered in time") : r;
}

int remote_call_wait(struct remote_call *call, uint64_t deadline_ns, bool *ret_answered)
{
    int r;

    r = client_enter(call->client);
    if (r < 0)
        return r;
    r = call_wait(call, deadline_ns);
    *ret_answered = call->request.done;
    client_leave(call->client);
    return r;
}

int remote_call_poll(struct remote_call *call, bool *ret_answered)
{
    int r;

    r = client_enter(call->client);
    if (r < 0)
        return r;
    if (!call->request.done)
        conn_dispatch(call->client->conn);
    *ret_answered = call->request.done;
    r = call->request.done ? call_result(call) : KVC_E_TIMEOUT;
    client_leave(call->client);
    return r;
}

const char *remote_call_over(const struct remote_call *call)
{
    return call->request.done && call->request.over ? call->request.reason : NULL;
}

static void call_release(struct remote_call *call)
{
    call->owned = false;
    if (call->request.done)
        free(call);
}

/* A call of its own, from beginning to end. */
static int call_finish_within(struct remote_call *call, uint64_t deadline_ns)
{
    int r = call_wait(call, deadline_ns);

    call_release(call);
    return r;
}

struct remote_call *remote_call_free(struct remote_call *call)
{
    struct kvc_client *client;

    if (!call)
        return NULL;
    client = call->client;
    if (client_enter(client) < 0)
        return NULL;
    call_release(call);
    client_leave(client);
    return NULL;
}

struct remote_call *remote_call_forget(struct remote_call *call)
{
    if (!call)
        return NULL;
    if (!call->request.done)
        list_unlink(&call->request.link);
    free(call);
    return NULL;
}

bool remote_is_gone(const struct kvc_region *region)
{
    return !region->client->conn->alive;
}

/* ---- One call, and its answer ---- */

static int change_now(struct kvc_region *region, const uint64_t *pages, size_t n, bool map)
{
    struct remote_call *call = NULL;
    int r;

    r = check_pages(region, pages, n);
    if (r == 0)
        r = map ? send_map(region, pages, n, false, &call) : send_unmap(region, pages, n, &call);
    return r == 0 ? call_finish_within(call, remote_deadline(region)) : r;
}

static int change(struct kvc_region *region, const uint64_t *pages, size_t n, bool map)
{
    int r;

    r = client_enter(region->client);
    if (r < 0)
        return r;
    r = map_check_host(region);
    if (r == 0)
        r = n > 0 ? change_now(region, pages, n, map) : conn_check(region->client->conn);
    client_leave(region->client);
    return r;
}

int remote_map(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    return change(region, pages, n, true);
}

int remote_unmap(struct kvc_region *region, const uint64_t *pages, size_t n)
{
    return change(region, pages, n, false);
}

/* ---- Attaching ---- */

struct attachment {
    struct request request;
    struct kvc_client *client;
    uint32_t region_id;
    struct remote remote;
};

/* A region that no worker can have is a daemon's lie: later arithmetic relies on what is said here. */
static bool read_shape(const Kvcached__RegionAttached *body, const struct kvc_device *device,
                       struct remote *ret)
{
    uint64_t bytes, total;

    if (body->n_page_extents != device->n_classes || body->segments < 1 ||
        body->segments > SHAPE_SEGMENTS_MAX)
        return false;
    for (size_t i = 0; i < body->n_page_extents; i++)
        if (!u64_mul(body->page_extents[i], device->class_bytes[i], &bytes) ||
            !u64_add(ret->page_bytes, bytes, &ret->page_bytes))
            return false;
    ret->pages = body->capacity_pages;
    ret->segments = body->segments;
    ret->session = body->session;
    return ret->page_bytes > 0 && ret->pages > 0 && u64_mul(ret->pages, ret->page_bytes, &total);
}

static int attach_receive(struct request *request, const struct message *message, struct fdset *fds,
                          bool truncated)
{
    struct attachment *attachment = container_of(request, struct attachment, request);
    const Kvcached__RegionAttached *body = (const Kvcached__RegionAttached *)message->body;

    if (message->type != MESSAGE_REGION_ATTACHED)
        return request_violated(request, "kvcachedd answered RegionAttach with %s",
                                codec_type_name(message->type));
    if (!read_shape(body, &attachment->client->device, &attachment->remote))
        return request_violated(request, "kvcachedd describes a worker's region that cannot be");
    attachment->region_id = body->region;
    return 0;
}

/* Nobody waits any more. */
static void attach_finish(struct request *request)
{
    struct attachment *attachment = container_of(request, struct attachment, request);

    if (request->result == 0)
        region_tell_closed(attachment->client, attachment->region_id, false);
    free(attachment);
}

static int ask(struct kvc_client *client, uint32_t group, uint32_t rank, struct attachment **ret)
{
    Kvcached__RegionAttach body = KVCACHED__REGION_ATTACH__INIT;
    struct attachment *attachment = calloc(1, sizeof(*attachment));
    int r;

    if (!attachment)
        return error_nomem();
    request_init(&attachment->request, attach_receive, attach_finish);
    attachment->client = client;
    body.group = group;
    body.rank = rank;
    r = conn_ask(client->conn, &attachment->request, MESSAGE_REGION_ATTACH, &body.base);
    if (r < 0) {
        free(attachment);
        return r;
    }
    *ret = attachment;
    return 0;
}

static int region_of(struct attachment *attachment, struct kvc_region **ret)
{
    struct kvc_region *region = calloc(1, sizeof(*region));
    struct remote *remote = calloc(1, sizeof(*remote));

    if (!region || !remote) {
        free(region);
        free(remote);
        region_tell_closed(attachment->client, attachment->region_id, false);
        return error_nomem();
    }
    *remote = attachment->remote;
    region->remote = remote;
    region->client = attachment->client;
    region->id = attachment->region_id;
    list_init(&region->link);
    list_init(&region->fences);
    list_init(&region->lease.asks);
    list_append(&region->client->remotes, &region->link);
    lease_open(region);
    *ret = region;
    return 0;
}

static int find_worker(struct kvc_client *client, uint32_t group, uint32_t rank, uint64_t deadline_ns,
                       struct kvc_region **ret)
{
    struct attachment *attachment = NULL;
    int r;

    r = ask(client, group, rank, &attachment);
    if (r < 0)
        return r;
    r = conn_wait_until(client->conn, &attachment->request, deadline_ns);
    if (!attachment->request.done && r == KVC_E_TIMEOUT)
        return error_set(r, "No worker has opened region %" PRIu32 " of rank %" PRIu32 " in time", group,
                         rank);
    if (!attachment->request.done)
        return r;
    if (r == 0)
        r = region_of(attachment, ret);
    free(attachment);
    return r;
}

static int attach(struct kvc_client *client, uint32_t group, uint32_t rank, uint64_t deadline_ns,
                  struct kvc_region **ret)
{
    struct kvc_region *region = NULL;
    struct remote_call *call = NULL;
    int r;

    r = find_worker(client, group, rank, deadline_ns, &region);
    if (r < 0)
        return r;
    r = send_unmap(region, NULL, 0, &call);
    if (r == 0)
        r = call_finish_within(call, deadline_ns);
    if (r < 0) {
        error_hold();
        remote_close(region);
        error_release();
        return r;
    }
    *ret = region;
    return 0;
}

KVC_API int kvc_region_attach(struct kvc_client *client, uint32_t group, uint32_t rank, int timeout_ms,
                              struct kvc_region **ret)
{
    int r;

    if (!ret)
        return error_set(KVC_E_INVALID, "Nowhere to put the handle");
    r = client_enter(client);
    if (r < 0)
        return r;
    if (client->role != KVC_ROLE_SCHEDULER)
        r = error_set(KVC_E_INVALID, "Only a scheduler (KVC_ROLE_SCHEDULER) attaches to workers' regions");
    if (r == 0)
        r = attach(client, group, rank, client_deadline(client, timeout_ms), ret);
    client_leave(client);
    return r;
}

int remote_close(struct kvc_region *region)
{
    struct kvc_client *client = region->client;
    int r = 0;

    lease_close(region);
    if (client->conn->alive)
        r = region_tell_closed(client, region->id, true);
    region_forget(region);
    return r;
}
