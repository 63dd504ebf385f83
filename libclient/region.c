/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Opening checks everything that can be told before memory is asked for: the arithmetic of the shape, what
 * the daemon could ever grant, and how many mappings the driver allows one context. Past that ceiling access
 * to a mapping fails with "out of memory", which would send people looking in the wrong place.
 *
 * Closing must come to an end whatever fails. Memory that cannot be unmapped, even at a second try, is not
 * given back: it stays on the instance's bill until the process ends, and so does the reservation.
 */

#include "region.h"

#include <errno.h>
#include <inttypes.h>

#include "base/arith.h"
#include "base/parse.h"
#include "blocks.h"
#include "clear.h"
#include "fence.h"
#include "hold.h"
#include "holes.h"
#include "orders.h"
#include "remote.h"
#include "reserve.h"

#define DRIVER_MAPPINGS_MAX 520000
#define CLOSE_BATCH 64

/* ---- States of pages ---- */

void region_page_mapped(struct kvc_region *region, uint64_t page, struct backing *backing)
{
    region->pages[page] =
        (struct page){.backing = backing, .state = PAGE_MAPPED, .hole = region->pages[page].hole};
    region->n_mapped++;
    region->client->mapped_bytes += region->shape->slot_bytes;
}

void region_count_unmapped(struct kvc_region *region, uint64_t n)
{
    region->n_mapped -= n;
    region->client->mapped_bytes -= n * region->shape->slot_bytes;
}

void region_page_empty(struct kvc_region *region, uint64_t page)
{
    enum hole hole = region->pages[page].hole;

    region->n_occupied -= region->pages[page].state != PAGE_EMPTY;
    region->pages[page] = (struct page){.state = PAGE_EMPTY, .hole = hole};
    if (!holes_cover(region, page))
        region_page_broken(region, page, NULL);
}

void region_page_broken(struct kvc_region *region, uint64_t page, struct backing *backing)
{
    if (region->pages[page].state == PAGE_MAPPED)
        region_count_unmapped(region, 1);
    region->n_occupied += region->pages[page].state == PAGE_EMPTY;
    region->pages[page] =
        (struct page){.backing = backing, .state = PAGE_BROKEN, .hole = region->pages[page].hole};
    client_log(region->client, KVC_LOG_ERROR,
               "Page %" PRIu64 " is unusable from now on: the driver failed while a failure was undone",
               page);
}

/* ---- Opening ---- */

static int explain_shape(int r, const struct shape_request *q, uint64_t granularity)
{
    char page[FORMAT_SIZE_MAX], grain[FORMAT_SIZE_MAX], stride[FORMAT_SIZE_MAX];

    format_size(page, q->page_bytes);
    format_size(grain, granularity);
    format_size(stride, q->stride_bytes);
    switch (r) {
    case -ENOMEM:
        return error_nomem();
    case SHAPE_E_SEGMENTS:
        return error_set(KVC_E_INVALID, "A region has at most %u segments, not %" PRIu64, SHAPE_SEGMENTS_MAX,
                         q->segments);
    case SHAPE_E_PAGE:
        return error_set(KVC_E_INVALID,
                         "A page of %" PRIu64 " bytes is not a multiple of the granularity, %s",
                         q->page_bytes, grain);
    case SHAPE_E_STRIDE:
        return error_set(KVC_E_INVALID,
                         "A stride of %" PRIu64 " bytes is smaller than a segment, or not a multiple of %s",
                         q->stride_bytes, grain);
    case SHAPE_E_CAPACITY:
        return error_set(KVC_E_INVALID, "A region needs at least one page");
    case SHAPE_E_CLASS:
        return error_set(KVC_E_INVALID, "The daemon lends no extents of one of the listed sizes");
    case SHAPE_E_SUM:
        return error_set(KVC_E_INVALID, "The daemon's extents do not add up to a page of %s", page);
    case SHAPE_E_SLOTS:
        return error_set(KVC_E_INVALID, "A page takes more than %u extents", SHAPE_SLOTS_MAX);
    default:
        return error_set(KVC_E_NOSPACE,
                         "A region of %" PRIu64 " segments with %" PRIu64
                         " pages of %s is larger than any address space",
                         q->segments, q->pages, page);
    }
}

static int make_shape(struct kvc_region *region, const struct kvc_region_options *options)
{
    const struct kvc_device *device = &region->client->device;
    struct shape_request request = {
        .segments = options->segments,
        .pages = options->pages,
        .page_bytes = options->page_bytes,
        .stride_bytes = options->stride_bytes,
        .extent_bytes = options->extent_bytes,
        .n_extents = options->n_extents,
    };
    int r;

    r = shape_new(&request, device->granularity_bytes, device->class_bytes, device->n_classes,
                  &region->shape);
    return r != 0 ? explain_shape(r, &request, device->granularity_bytes) : 0;
}

/* What could be backed at once is bounded by the device, however much address space is wanted. */
static int check_size(const struct kvc_region *region)
{
    const struct shape *shape = region->shape;
    uint64_t total = region->client->device.total_bytes, n_mappings;
    char page[FORMAT_SIZE_MAX], budget[FORMAT_SIZE_MAX];
    struct status_values status;

    status_page_read(region->client->status, &status);
    if (shape->slot_bytes > status.budget_bytes)
        return error_set(KVC_E_BUDGET,
                         "A page of %s over all segments is larger than the daemon's budget of %s",
                         format_size(page, shape->slot_bytes), format_size(budget, status.budget_bytes));
    n_mappings = u64_max(u64_min(shape->pages, total / shape->slot_bytes) * shape->n_slots,
                         holes_mappings(region->flags, shape));
    if (n_mappings > DRIVER_MAPPINGS_MAX)
        return error_set(KVC_E_NOSPACE,
                         "The region could need %" PRIu64
                         " mappings and the driver has %u; use larger extents",
                         n_mappings, DRIVER_MAPPINGS_MAX);
    return 0;
}

static int reserve_addresses(struct kvc_region *region)
{
    struct gpu *gpu = region->client->gpu;
    char size[FORMAT_SIZE_MAX];
    CUcontext previous;
    CUresult result;
    int r;

    r = gpu_enter(gpu, &previous);
    if (r < 0)
        return r;
    result = gpu->driver->cuMemAddressReserve(&region->address, region->shape->total_bytes, 0, 0, 0);
    gpu_leave(gpu, previous);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return error_set(KVC_E_NOSPACE, "The driver has no %s of address space",
                         format_size(size, region->shape->total_bytes));
    if (result != CUDA_SUCCESS)
        region->address = 0;
    return gpu_result(gpu, result, "cuMemAddressReserve");
}

/* A question with one packet for an answer. */
struct region_request {
    struct request request;
    uint16_t answer;
    uint32_t region_id;
    struct kvc_client *client;
    struct kvc_region *opening; /* NULL: nobody waits for it any more */
};

/* At once, for the next packet may be an order for it. */
static void region_opened(struct kvc_region *region, uint32_t id)
{
    region->id = id;
    news_outdate_orders(&region->client->news, id);
    lease_open(region);
    list_append(&region->client->regions, &region->link);
    region->client->n_ordered += region->orders != NULL;
}

static int region_receive(struct request *request, const struct message *message, struct fdset *fds,
                          bool truncated)
{
    struct region_request *question = container_of(request, struct region_request, request);

    if (message->type != question->answer)
        return request_violated(request, "kvcachedd answered with %s where %s was due",
                                codec_type_name(message->type), codec_type_name(question->answer));
    if (message->type == MESSAGE_REGION_OPENED)
        question->region_id = ((const Kvcached__RegionOpened *)message->body)->region;
    if (message->type == MESSAGE_REGION_OPENED && question->opening)
        region_opened(question->opening, question->region_id);
    return 0;
}

/* Nobody waits any more: a region that was opened too late is closed. */
static void region_finish(struct request *request)
{
    struct region_request *question = container_of(request, struct region_request, request);

    if (request->result == 0 && question->answer == MESSAGE_REGION_OPENED)
        region_tell_closed(question->client, question->region_id, false);
    free(question);
}

/* `opening`: the region that the answer is to open, or NULL. */
static int ask(struct kvc_client *client, uint16_t type, uint16_t answer, const ProtobufCMessage *body,
               bool wait, struct kvc_region *opening)
{
    struct region_request *question = calloc(1, sizeof(*question));
    int r;

    if (!question)
        return error_nomem();
    question->opening = opening;
    request_init(&question->request, region_receive, region_finish);
    question->answer = answer;
    question->client = client;
    r = conn_ask(client->conn, &question->request, type, body);
    if (r < 0) {
        free(question);
        return r;
    }
    if (!wait)
        return 0;
    r = conn_wait(client->conn, &question->request);
    question->opening = NULL;
    if (question->request.done)
        free(question);
    return r;
}

int region_tell_closed(struct kvc_client *client, uint32_t region_id, bool wait)
{
    Kvcached__RegionClose body = KVCACHED__REGION_CLOSE__INIT;

    body.region = region_id;
    return ask(client, MESSAGE_REGION_CLOSE, MESSAGE_REGION_CLOSED, &body.base, wait, NULL);
}

static int tell_opened(struct kvc_region *region)
{
    Kvcached__RegionOpen body = KVCACHED__REGION_OPEN__INIT;

    body.segments = (uint32_t)region->shape->segments;
    body.capacity_pages = region->shape->pages;
    body.n_page_extents = region->shape->n_classes;
    body.page_extents = region->shape->class_counts;
    if (region->orders) {
        body.ordered = true;
        body.group = region->orders->group;
        body.rank = region->orders->rank;
    }
    return ask(region->client, MESSAGE_REGION_OPEN, MESSAGE_REGION_OPENED, &body.base, true, region);
}

static int prepare_store(struct kvc_region *region, const struct kvc_region_options *options)
{
    struct kvc_client *client = region->client;
    int r;

    region->flags = options->flags;
    region->stream = options->stream;
    r = make_shape(region, options);
    if (r == 0)
        r = check_size(region);
    if (r < 0)
        return r;
    region->take_max = SHAPE_SLOTS_MAX / region->shape->n_slots;
    page_cache_init(&region->cache, &client->cached, region->shape->slot_bytes, client->max_reserved_pages);
    return 0;
}

static int prepare(struct kvc_region *region, const struct kvc_region_options *options)
{
    int r = prepare_store(region, options);

    if (r < 0)
        return r;
    /* First: what the driver accepts bounds what the table of pages takes. */
    r = reserve_addresses(region);
    if (r < 0)
        return r;
    region->pages = calloc(region->shape->pages, sizeof(*region->pages));
    return region->pages ? 0 : error_nomem();
}

static int prepare_orders(struct kvc_region *region, const struct kvc_region_options *options)
{
    if (!(options->flags & KVC_REGION_ORDERED))
        return 0;
    region->orders = calloc(1, sizeof(*region->orders));
    if (!region->orders)
        return error_nomem();
    region->orders->group = options->group;
    region->orders->rank = options->rank;
    return 0;
}

static void free_addresses(struct kvc_region *region)
{
    struct gpu *gpu = region->client->gpu;
    CUresult result;

    if (region->address == 0)
        return;
    result = region->hold ? hold_drop(region->hold)
                          : gpu_free_addresses(gpu, region->address, region->shape->total_bytes);
    region->hold = NULL;
    if (result != CUDA_SUCCESS)
        client_log(region->client, KVC_LOG_ERROR, "The address space of a region stays reserved: %s",
                   cuda_error_name(gpu->driver, result));
}

static struct kvc_region *region_new(struct kvc_client *client)
{
    struct kvc_region *region = calloc(1, sizeof(*region));

    if (!region)
        return NULL;
    list_init(&region->link);
    list_init(&region->lease.asks);
    list_init(&region->fences);
    region->client = client;
    return region;
}

/* The client doesn't list it: whoever has its memory mapped closes it. */
int region_open_store(struct kvc_client *client, const struct kvc_region_options *options,
                      struct kvc_region **ret)
{
    struct kvc_region *store = region_new(client);
    int r;

    if (!store)
        return error_nomem();
    r = prepare_store(store, options);
    if (r == 0)
        r = tell_opened(store);
    if (r < 0) {
        region_forget(store);
        return r;
    }
    list_unlink(&store->link);
    *ret = store;
    return 0;
}

/* Nothing is awaited after what was not answered in time, but the daemon is told all the same. */
static int give_up(struct kvc_client *client, uint32_t region_id, int r)
{
    int told = client->conn->alive ? region_tell_closed(client, region_id, !error_is_unanswered(r)) : r;

    return error_is_unanswered(r) ? r : told;
}

void region_close_store(struct kvc_region *store)
{
    lease_close(store);
    give_up(store->client, store->id, borrow_settle(store));
    region_forget(store);
}

static int open_region(struct kvc_client *client, const struct kvc_region_options *options,
                       struct kvc_region **ret)
{
    struct kvc_region *region = region_new(client);
    int r;

    if (!region)
        return error_nomem();
    r = prepare(region, options);
    if (r == 0)
        r = prepare_orders(region, options);
    if (r == 0)
        r = holes_open(region); /* before the daemon knows it: from then on orders may come */
    if (r == 0)
        r = tell_opened(region);
    if (r < 0) {
        error_hold();
        holes_close(region);
        free_addresses(region);
        error_release();
        region_forget(region);
        return r;
    }
    *ret = region;
    return 0;
}

static int check_request(const struct kvc_client *client, const struct kvc_region_options *options)
{
    if (client->role == KVC_ROLE_CONTROLLER)
        return error_set(KVC_E_INVALID, "A controller has no GPU: it reserves memory for others");
    if (client->role == KVC_ROLE_SCHEDULER)
        return error_set(KVC_E_INVALID, "A scheduler has no GPU: it attaches to its workers' regions");
    if (options->flags & ~(uint32_t)(KVC_REGION_ZERO_ON_MAP | KVC_REGION_HOLES_ZERO | KVC_REGION_ORDERED))
        return error_set(KVC_E_INVALID, "Flags of a region that this library does not know");
    if (clear_check_stream(options->stream) < 0)
        return KVC_E_INVALID;
    if (!(options->flags & KVC_REGION_ORDERED))
        return 0;
    if (client->role != KVC_ROLE_WORKER)
        return error_set(KVC_E_INVALID, "Only a worker (KVC_ROLE_WORKER) leaves mapping to a scheduler");
    if (!(client->features & KVCACHED__FEATURE__FEATURE_ORDERS))
        return error_set(KVC_E_VERSION, "This kvcachedd is too old for regions that a scheduler maps");
    return 0;
}

KVC_API int kvc_region_open(struct kvc_client *client, const struct kvc_region_options *options,
                            struct kvc_region **ret)
{
    struct kvc_region_options copy;
    int r;

    if (!ret || !options || !options_copy(&copy, sizeof(copy), REGION_OPTIONS_SIZE_FIRST, options))
        return error_set(KVC_E_INVALID, "kvc_region_options has a size that this library does not know");
    r = client_enter(client);
    if (r < 0)
        return r;
    r = check_request(client, &copy);
    if (r == 0)
        r = conn_check(client->conn);
    if (r == 0)
        r = open_region(client, &copy, ret);
    client_leave(client);
    return r;
}

KVC_API uint64_t kvc_region_address(const struct kvc_region *region)
{
    return region ? region->address : 0;
}

KVC_API uint64_t kvc_region_stride(const struct kvc_region *region)
{
    return region && region->shape ? region->shape->stride_bytes : 0;
}

void region_show_pins(struct kvc_region *region)
{
    if (!region->blocks)
        lease_hint(region, region->cache.n_pages, region->n_pinned);
}

KVC_API uint64_t kvc_region_pages(const struct kvc_region *region)
{
    if (!region)
        return 0;
    return region->remote ? region->remote->pages : region->shape->pages;
}

KVC_API uint64_t kvc_region_page_bytes(const struct kvc_region *region)
{
    if (!region)
        return 0;
    return region->remote ? region->remote->page_bytes : region->shape->slot_bytes;
}

KVC_API uint32_t kvc_region_segments(const struct kvc_region *region)
{
    if (!region)
        return 0;
    return (uint32_t)(region->remote ? region->remote->segments : region->shape->segments);
}

/* ---- Closing ---- */

struct kvc_region *region_forget(struct kvc_region *region)
{
    if (!region)
        return NULL;
    list_unlink(&region->link);
    if (region->blocks)
        blocks_forget(region->blocks);
    if (region->pages && region->shape)
        for (uint64_t i = 0; i < region->shape->pages; i++)
            free(region->pages[i].backing);
    if (region->address)
        backing_free_all(&region->cache.imported);
    fence_forget(region);
    holes_forget(region->holes);
    free(region->pages);
    free(region->orders);
    free(region->remote);
    shape_free(region->shape);
    free(region);
    return NULL;
}

/* From page *next on; fewer than CLOSE_BATCH when that was all. */
static size_t gather(struct kvc_region *region, uint64_t *next, struct placement *places)
{
    size_t n = 0;

    for (; *next < region->shape->pages && n < CLOSE_BATCH; ++*next) {
        struct page *page = &region->pages[*next];

        if (!page->backing)
            continue;
        if (page->state == PAGE_CACHED)
            page_cache_remove(&region->cache, &page->backing->entry);
        if (page->state == PAGE_MAPPED || page->state == PAGE_LEAVING)
            region_count_unmapped(region, 1);
        page->state = PAGE_BROKEN;
        places[n++] = (struct placement){.page = *next, .backing = page->backing};
    }
    return n;
}

static void detach_batch(struct kvc_region *region, const struct placement *places, size_t n,
                         struct list *leaving)
{
    if (space_detach(region, places, n) < 0)
        space_detach(region, places, n);
    for (size_t i = 0; i < n; i++) {
        if (!backing_is(places[i].backing, EXTENT_IMPORTED))
            continue;
        region_page_empty(region, places[i].page);
        list_append(leaving, &places[i].backing->entry.link);
    }
}

static void detach_all(struct kvc_region *region, struct list *leaving)
{
    struct placement places[CLOSE_BATCH];
    struct page_cache_entry *entry;
    uint64_t next = 0;
    CUcontext previous;
    size_t n;

    if (gpu_enter_again(region->client->gpu, &previous) < 0)
        return;
    while ((n = gather(region, &next, places)) > 0)
        detach_batch(region, places, n, leaving);
    gpu_leave(region->client->gpu, previous);
    while ((entry = page_cache_empty(&region->cache)))
        list_append(leaving, &entry->link);
}

int region_close(struct kvc_region *region)
{
    struct kvc_client *client = region->client;
    struct list leaving = LIST_INIT(leaving);
    int r;

    if (region->remote)
        return remote_close(region);
    lease_close(region);
    if (region->refill)
        borrow_abandon(region->refill);
    region->refill = NULL;
    region->refill_wanted = false;
    fence_abandon(region);
    holes_close(region);
    orders_abandon(region);
    client->n_ordered -= region->orders != NULL;
    detach_all(region, &leaving);
    clear_close(region);
    r = borrow_return(client, &leaving, true);
    if (!error_is_unanswered(r))
        r = borrow_settle(region);
    r = give_up(client, region->id, r);
    free_addresses(region);
    region_forget(region);
    return r;
}

KVC_API struct kvc_region *kvc_region_close(struct kvc_region *region)
{
    struct kvc_client *client;

    if (!region)
        return NULL;
    client = region->client;
    if (client_is_forked(client))
        return client_is_at_rest(client) ? region_forget(region) : NULL;
    blocks_close_with(region);
    client_enter(client);
    region_close(region);
    client_leave(client);
    return NULL;
}
