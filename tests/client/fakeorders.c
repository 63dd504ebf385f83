/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The fake daemon and orders. To a worker it gives the orders that the test wants. To a scheduler it plays
 * the worker, too: it notes what is mapped where, and fails the test when something is mapped twice, or not
 * counted.
 */

#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "fakeinternal.h"

#define ATTACHED_PAGES 16 /* at rank 0; each further rank has one more */

/* ---- To schedulers ---- */

static void on_attach(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__RegionAttach *attach = (const Kvcached__RegionAttach *)m->body;
    Kvcached__RegionAttached body = KVCACHED__REGION_ATTACHED__INIT;
    uint32_t counts[CLASSES_MAX] = {attach->rank + 1};

    body.region = peer->lines != NULL;
    while (peer->region_open[body.region])
        check(++body.region < REGIONS_MAX);
    peer->region_open[body.region] = true;
    peer->attached[body.region] = (struct attached){.open = true, .rank = attach->rank};
    memcpy(peer->regions[body.region], counts, sizeof(counts));
    d->counts.regions++;
    body.capacity_pages = lie == FAKE_NO_EXTENTS ? 0 : ATTACHED_PAGES + attach->rank * !d->settings.even;
    body.page_extents = counts;
    body.n_page_extents = lie == FAKE_TOO_MANY ? d->n_classes + 1 : d->n_classes;
    body.segments = lie == FAKE_TOO_FEW ? 0 : 1;
    body.session = ++d->last_session;
    if (lie == FAKE_SMALL_EXTENTS)
        counts[0] = 0;
    if (lie == FAKE_LATE) /* whoever comes too late finds nobody */
        orders_hold(d, peer, MESSAGE_REGION_ATTACHED, m->request);
    else
        fake_answer(peer->fd, lie, MESSAGE_REGION_ATTACHED, m->request, &body.base, NULL, 0);
}

static void answer(struct daemon *d, int fd, enum fake_lie lie, uint16_t type, uint32_t request)
{
    Kvcached__Mapped mapped = KVCACHED__MAPPED__INIT;
    Kvcached__Unmapped unmapped = KVCACHED__UNMAPPED__INIT;
    Kvcached__Returned returned = KVCACHED__RETURNED__INIT;
    Kvcached__RegionAttached attached = KVCACHED__REGION_ATTACHED__INIT;
    uint32_t counts[CLASSES_MAX] = {1};

    attached.capacity_pages = ATTACHED_PAGES;
    attached.page_extents = counts;
    attached.n_page_extents = d->n_classes;
    attached.segments = 1;
    fake_answer(fd, lie, type, request,
                type == MESSAGE_MAPPED     ? &mapped.base
                : type == MESSAGE_UNMAPPED ? &unmapped.base
                : type == MESSAGE_RETURNED ? &returned.base
                                           : &attached.base,
                NULL, 0);
}

void orders_hold(struct daemon *d, struct peer *peer, uint16_t type, uint32_t request)
{
    check(d->n_held < HELD_MAX);
    d->held[d->n_held++] = (struct held){.fd = peer->fd, .type = type, .request = request};
    d->counts.late++;
}

static void answer_now_or_later(struct daemon *d, struct peer *peer, enum fake_lie lie, uint16_t type,
                                uint32_t request)
{
    if (lie == FAKE_LATE)
        orders_hold(d, peer, type, request);
    else
        answer(d, peer->fd, lie, type, request);
}

static struct attached *attached(struct peer *peer, uint32_t region)
{
    check(region < REGIONS_MAX && peer->attached[region].open);
    return &peer->attached[region];
}

static void on_map(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__Map *map = (const Kvcached__Map *)m->body;
    struct attached *region = attached(peer, map->region);

    if (map->leased && !end_lease(d, peer, map->region, (uint32_t)map->n_pages)) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_INVALID, "There is no such lease");
        return;
    }
    if (d->settings.take_max && extents_of(d, peer, map->region, map->n_pages) > d->settings.take_max) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_INVALID, "Too many extents for one Map");
        return;
    }
    for (size_t i = 0; i < map->n_pages; i++) {
        check(map->pages[i] < ATTACHED_PAGES + region->rank);
        check(!(region->mapped >> map->pages[i] & 1));
        region->mapped |= UINT64_C(1) << map->pages[i];
    }
    d->counts.mapped += map->n_pages;
    answer_now_or_later(d, peer, lie, MESSAGE_MAPPED, m->request);
}

static void on_unmap(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__Unmap *unmap = (const Kvcached__Unmap *)m->body;
    struct attached *region = attached(peer, unmap->region);

    for (size_t i = 0; i < unmap->n_pages; i++) {
        check(region->mapped >> unmap->pages[i] & 1);
        region->mapped &= ~(UINT64_C(1) << unmap->pages[i]);
    }
    d->counts.mapped -= unmap->n_pages;
    answer_now_or_later(d, peer, lie, MESSAGE_UNMAPPED, m->request);
}

void orders_note(struct daemon *d, struct peer *peer, const struct message *m)
{
    if (m->type == MESSAGE_MAP) {
        const Kvcached__Map *map = (const Kvcached__Map *)m->body;

        d->counts.maps++;
        check_eq(map->number, ++attached(peer, map->region)->number);
        check(map->n_pages > 0);
    } else if (m->type == MESSAGE_UNMAP) {
        const Kvcached__Unmap *unmap = (const Kvcached__Unmap *)m->body;

        d->counts.unmaps++;
        check_eq(unmap->number, ++attached(peer, unmap->region)->number);
        check((unmap->n_pages == 0) == (unmap->number == 1));
    }
}

void orders_forgo(struct daemon *d, struct peer *peer, const struct message *m)
{
    const Kvcached__Map *map = (const Kvcached__Map *)m->body;

    if (m->type == MESSAGE_MAP && map->leased)
        check(end_lease(d, peer, map->region, (uint32_t)map->n_pages));
}

void orders_lose_worker(struct daemon *d, struct peer *peer, const struct message *m)
{
    Kvcached__Refused body = KVCACHED__REFUSED__INIT;
    struct attached *region =
        attached(peer, m->type == MESSAGE_MAP ? ((const Kvcached__Map *)m->body)->region
                                              : ((const Kvcached__Unmap *)m->body)->region);

    d->counts.mapped -= (uint64_t)__builtin_popcountll(region->mapped);
    region->mapped = 0;
    body.error = KVCACHED__ERROR__ERROR_WORKER;
    body.reason = (char *)"The worker is gone";
    body.over = true;
    fake_answer(peer->fd, FAKE_HONEST, MESSAGE_REFUSED, m->request, &body.base, NULL, 0);
}

void orders_release(struct daemon *d)
{
    for (unsigned i = 0; i < d->n_held; i++)
        answer(d, d->held[i].fd, FAKE_HONEST, d->held[i].type, d->held[i].request);
    d->counts.late -= d->n_held;
    d->n_held = 0;
}

/* ---- To workers ---- */

/* A worker carries orders out as they come. */
static void on_done(struct daemon *d, struct peer *peer, const struct message *m)
{
    const Kvcached__OrderDone *done = (const Kvcached__OrderDone *)m->body;

    check(m->request > peer->last_done && m->request <= d->last_order);
    peer->last_done = m->request;
    d->counts.orders_done++;
    d->counts.lent_at_done = d->counts.extents;
    d->counts.order_error = (int)done->error;
    snprintf(d->counts.order_reason, sizeof(d->counts.order_reason), "%s", done->reason);
}

bool orders_message(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    switch (m->type) {
    case MESSAGE_REGION_ATTACH:
        on_attach(d, peer, m, lie);
        return true;
    case MESSAGE_MAP:
        on_map(d, peer, m, lie);
        return true;
    case MESSAGE_UNMAP:
        on_unmap(d, peer, m, lie);
        return true;
    case MESSAGE_ORDER_DONE:
        on_done(d, peer, m);
        return true;
    default:
        return false;
    }
}

static struct peer *find_worker(struct daemon *d, uint32_t *ret_region)
{
    for (unsigned i = 0; i < PEERS_MAX; i++)
        for (uint32_t region = 0; d->peers[i] && region < REGIONS_MAX; region++)
            if (d->peers[i]->region_ordered[region]) {
                *ret_region = region;
                return d->peers[i];
            }
    test_fail(__FILE__, __LINE__, "nobody has opened a region for orders");
}

void orders_send_packet(struct peer *peer, struct grant *grant, uint64_t *ids, const int *fds, unsigned n)
{
    struct fake_order *order = &grant->order;
    Kvcached__MapOrder body = KVCACHED__MAP_ORDER__INIT;

    body.region = order->region;
    body.session = order->session;
    body.number = order->number;
    body.pages = order->pages;
    body.n_pages = order->n;
    body.extents = ids;
    body.n_extents = order->lie == FAKE_NO_EXTENTS ? 0 : n;
    body.remaining = grant->n_left + (order->lie == FAKE_TOO_MANY) * 5;
    fake_answer(peer->fd, order->lie, MESSAGE_MAP_ORDER, grant->request, &body.base, fds,
                (unsigned)body.n_extents);
    grant->held = order->hold;
    order->n = 0;
    order->hold = false;
    order->lie = FAKE_HONEST;
}

static void give_map(struct daemon *d, struct peer *peer, const struct fake_order *order, uint32_t region)
{
    struct grant *grant = calloc(1, sizeof(*grant));

    list_init(&grant->extents);
    grant->request = d->last_order;
    grant->is_order = true;
    grant->order = *order;
    grant->order.region += region;
    for (unsigned i = d->n_classes; i-- > 0;)
        for (uint64_t j = 0; j < peer->regions[region][i] * order->n; j++, grant->n_left++)
            list_append(&grant->extents, &lend(d, i)->link);
    list_append(&peer->grants, &grant->link);
}

void orders_give(struct daemon *d, const struct fake_order *order)
{
    Kvcached__UnmapOrder body = KVCACHED__UNMAP_ORDER__INIT;
    uint32_t region = 0;
    struct peer *peer = find_worker(d, &region);

    d->last_order++;
    if (order->map) {
        give_map(d, peer, order, region);
        return;
    }
    body.region = region + order->region;
    body.session = order->session;
    body.number = order->number;
    body.pages = (uint64_t *)order->pages;
    body.n_pages = order->n;
    fake_answer(peer->fd, order->lie, MESSAGE_UNMAP_ORDER, d->last_order, &body.base, NULL, 0);
}
