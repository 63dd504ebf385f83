/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the fake daemon answers, truly or not, and the memory that it lends. Leases and orders have files of
 * their own.
 */

#include "fakeinternal.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"

/* ---- Memory ---- */

void show_status(struct daemon *d)
{
    struct status_values values = {
        .limit_bytes = d->limit,
        .used_bytes = d->used,
        .budget_bytes = d->settings.total_bytes,
        .flags = d->used > d->limit ? STATUS_FLAG_OVER_LIMIT : 0,
        .pressure_bytes = d->pressure,
    };

    status_page_write(d->status, &values);
}

struct lent *lend(struct daemon *d, unsigned class)
{
    CUmemAllocationProp prop = {
        .type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = d->device},
    };
    struct lent *lent = calloc(1, sizeof(*lent));

    check_eq(d->driver->cuMemCreate(&lent->handle, d->settings.class_bytes[class], &prop, 0), CUDA_SUCCESS);
    check_eq(d->driver->cuMemExportToShareableHandle(&lent->fd, lent->handle,
                                                     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
             CUDA_SUCCESS);
    lent->id = ++d->last_id;
    lent->class = class;
    d->used += d->settings.class_bytes[class];
    d->counts.extents++;
    return lent;
}

static void take_back(struct daemon *d, struct lent *lent)
{
    list_unlink(&lent->link);
    close_fd(lent->fd);
    check_eq(d->driver->cuMemRelease(lent->handle), CUDA_SUCCESS);
    d->used -= d->settings.class_bytes[lent->class];
    d->counts.extents--;
    if (lent->held)
        --*lent->held;
    free(lent);
}

static void take_all_back(struct daemon *d, struct list *extents)
{
    while (!list_is_empty(extents))
        take_back(d, list_first(extents, struct lent, link));
}

static void grant_free(struct daemon *d, struct grant *grant)
{
    d->counts.late -= grant->held;
    take_all_back(d, &grant->extents);
    list_unlink(&grant->link);
    free(grant);
}

static struct grant *next_grant(struct peer *peer)
{
    list_for_each (it, &peer->grants) {
        struct grant *grant = container_of(it, struct grant, link);

        if (!grant->held)
            return grant;
    }
    return NULL;
}

static size_t packet_max(const struct grant *grant)
{
    return grant->is_order && grant->order.packet_max ? grant->order.packet_max : FRAME_FDS_MAX;
}

void answers_send_grants(struct daemon *d, struct peer *peer)
{
    struct grant *grant = next_grant(peer);
    Kvcached__Grant body = KVCACHED__GRANT__INIT;
    uint64_t ids[FRAME_FDS_MAX];
    int fds[FRAME_FDS_MAX];
    struct lent *lent;

    if (!grant || peer->awaits_ack)
        return;
    body.extents = ids;
    while (body.n_extents < packet_max(grant) && (lent = list_first(&grant->extents, struct lent, link))) {
        ids[body.n_extents] = lent->id;
        fds[body.n_extents++] = lent->fd;
        list_unlink(&lent->link);
        list_append(&peer->extents, &lent->link);
    }
    grant->n_left -= body.n_extents;
    body.remaining = grant->n_left;
    if (grant->is_order)
        orders_send_packet(peer, grant, ids, fds, (unsigned)body.n_extents);
    else
        fake_answer(peer->fd, FAKE_HONEST, MESSAGE_GRANT, grant->request, &body.base, fds,
                    (unsigned)body.n_extents);
    peer->awaits_ack = true;
    d->counts.late += grant->held;
    d->counts.unacknowledged++;
    for (size_t i = 0; i < body.n_extents; i++)
        list_for_each (it, &peer->extents) {
            lent = container_of(it, struct lent, link);
            if (lent->id == ids[i])
                lent->fd = close_fd(lent->fd);
        }
    if (grant->n_left == 0)
        grant_free(d, grant);
}

/* ---- Answers ---- */

static void lie_about_grant(struct daemon *d, struct peer *peer, enum fake_lie lie, uint32_t request,
                            uint64_t n)
{
    Kvcached__Grant body = KVCACHED__GRANT__INIT;
    uint64_t ids[FRAME_FDS_MAX];
    int fds[FRAME_FDS_MAX];

    check(n < FRAME_FDS_MAX - 1);
    body.n_extents = lie == FAKE_NO_EXTENTS ? 0 : lie == FAKE_TOO_MANY ? n + 1 : n;
    /* Too many are made to look consistent: the rest is less than nothing. */
    body.remaining = lie == FAKE_TOO_FEW ? 5 : n - body.n_extents;
    body.extents = ids;
    for (size_t i = 0; i < body.n_extents; i++) {
        struct lent *lent = lend(d, 0);

        list_append(&peer->extents, &lent->link);
        ids[i] = lent->id;
        fds[i] = lent->fd;
    }
    fake_answer(peer->fd, lie, MESSAGE_GRANT, request, &body.base, fds, (unsigned)body.n_extents);
    list_for_each (it, &peer->extents)
        container_of(it, struct lent, link)->fd = close_fd(container_of(it, struct lent, link)->fd);
}

static struct lent *lend_to(struct daemon *d, unsigned class, uint64_t *held)
{
    struct lent *lent = lend(d, class);

    lent->held = held;
    ++*held;
    return lent;
}

static void on_take(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__Take *take = (const Kvcached__Take *)m->body;
    uint32_t region = take->region % REGIONS_MAX;
    const uint32_t *counts = peer->regions[region];
    uint64_t n = 0, bytes = 0;
    struct grant *grant;

    for (unsigned i = 0; i < d->n_classes; i++) {
        n += (uint64_t)counts[i] * take->pages;
        bytes += counts[i] * d->settings.class_bytes[i] * take->pages;
    }
    d->counts.takes++;
    if (take->leased && !end_lease(d, peer, region, take->pages)) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_INVALID, "There is no such lease");
        return;
    }
    if (peer->held[region] + n > peer->capacity[region]) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_INVALID, "The region has no room for it");
        return;
    }
    if (!take->leased)
        leases_withdraw_if_short(d, bytes);
    if (d->settings.take_max && n > d->settings.take_max) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_INVALID, "Too many extents for one Take");
        return;
    }
    if (!take->leased && d->used + bytes > d->limit) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_LIMIT, "The limit cannot hold it");
        return;
    }
    if (lie != FAKE_HONEST && lie != FAKE_LATE) {
        lie_about_grant(d, peer, lie, m->request, n);
        return;
    }
    grant = calloc(1, sizeof(*grant));
    list_init(&grant->extents);
    grant->request = m->request;
    grant->held = lie == FAKE_LATE;
    d->counts.late += grant->held;
    grant->n_left = n;
    for (unsigned i = d->n_classes; i-- > 0;)
        for (uint64_t j = 0; j < (uint64_t)counts[i] * take->pages; j++)
            list_append(&grant->extents, &lend_to(d, i, &peer->held[region])->link);
    list_append(&peer->grants, &grant->link);
}

/* Peers have numbers, in the order in which they were welcome. */
static void choose_uuid(struct daemon *d, struct peer *peer, char *uuid)
{
    peer->number = d->n_welcome++;
    snprintf(uuid, CUDA_UUID_MAX, "%s", d->settings.uuid ? d->settings.uuid : d->uuid);
    if (d->settings.falling_uuids)
        uuid[strlen("GPU-")] = (char)('9' - peer->number);
}

static void on_hello(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    uint32_t request = m->request;
    Kvcached__Welcome body = KVCACHED__WELCOME__INIT;
    Kvcached__Challenge challenge = KVCACHED__CHALLENGE__INIT;
    int fds[2] = {d->status_fd, -1};
    char uuid[CUDA_UUID_MAX];
    unsigned n_fds = 1;

    bool is_controller = m->type == MESSAGE_HELLO &&
                         ((const Kvcached__Hello *)m->body)->role == KVCACHED__ROLE__ROLE_CONTROLLER;

    if (is_controller && !d->settings.reservations) {
        fake_refuse(peer->fd, 0, KVCACHED__ERROR__ERROR_INVALID, "the role is unknown");
        shutdown(peer->fd, SHUT_RDWR);
        return;
    }
    if (m->type == MESSAGE_HELLO)
        peer->has_leases = d->settings.leases &&
                           ((const Kvcached__Hello *)m->body)->features & KVCACHED__FEATURE__FEATURE_LEASES;
    if (lie == FAKE_CHALLENGE || lie == FAKE_CHALLENGE_TWICE) {
        challenge.nonce = (ProtobufCBinaryData){.len = 16, .data = (uint8_t *)"0123456789abcdef"};
        fake_answer(peer->fd, FAKE_HONEST, MESSAGE_CHALLENGE, request, &challenge.base, NULL, 0);
        if (lie == FAKE_CHALLENGE_TWICE)
            fake_answer(peer->fd, FAKE_HONEST, MESSAGE_CHALLENGE, request, &challenge.base, NULL, 0);
        return;
    }
    body.version = FRAME_VERSION;
    choose_uuid(d, peer, uuid);
    body.gpu_uuid = uuid;
    body.emulated_folder = d->devices;
    body.total_bytes = d->settings.told_total;
    body.granularity_bytes = lie == FAKE_BAD_WELCOME ? 0 : 2 * MIB;
    body.class_bytes = d->settings.class_bytes;
    body.n_class_bytes = d->n_classes;
    body.daemon_version = (char *)"fake";
    body.features = d->settings.orders ? KVCACHED__FEATURE__FEATURE_ORDERS : 0;
    if (is_controller)
        body.features = KVCACHED__FEATURE__FEATURE_RESERVATIONS;
    if (lie == FAKE_BAD_STATUS) {
        fds[0] = memfd_create("short", MFD_CLOEXEC);
        check_eq(ftruncate(fds[0], STATUS_PAGE_SIZE), 0);
    }
    if (peer->has_leases) {
        check_eq(lease_file_new(&peer->lines, &fds[n_fds++]), 0);
        body.features |= KVCACHED__FEATURE__FEATURE_LEASES;
    }
    fake_answer(peer->fd, lie, MESSAGE_WELCOME, request, &body.base, fds, n_fds);
    if (lie == FAKE_BAD_STATUS)
        close_fd(fds[0]);
    close_fd(fds[1]);
}

static void on_region_open(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__RegionOpen *open = (const Kvcached__RegionOpen *)m->body;
    Kvcached__RegionOpened body = KVCACHED__REGION_OPENED__INIT;

    if (open->n_page_extents != d->n_classes && d->noisy) {
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_INVALID, "Those are not the classes");
        return;
    }
    check(open->n_page_extents == d->n_classes);
    body.region = peer->lines != NULL;
    while (peer->region_open[body.region])
        check(++body.region < REGIONS_MAX);
    peer->region_open[body.region] = true;
    peer->region_ordered[body.region] = open->ordered;
    memcpy(peer->regions[body.region], open->page_extents, d->n_classes * sizeof(uint32_t));
    peer->capacity[body.region] = 0;
    for (unsigned i = 0; i < d->n_classes; i++)
        peer->capacity[body.region] += open->page_extents[i] * open->capacity_pages;
    d->counts.regions++;
    fake_answer(peer->fd, lie, MESSAGE_REGION_OPENED, m->request, &body.base, NULL, 0);
}

static void on_region_close(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__RegionClose *close = (const Kvcached__RegionClose *)m->body;
    Kvcached__RegionClosed body = KVCACHED__REGION_CLOSED__INIT;

    if (close->region < REGIONS_MAX && peer->region_open[close->region]) {
        peer->region_open[close->region] = false;
        leases_close_region(d, peer, close->region);
        peer->region_ordered[close->region] = false;
        peer->attached[close->region] = (struct attached){0};
        d->counts.regions--;
    } else {
        check(d->noisy);
    }
    fake_answer(peer->fd, lie, MESSAGE_REGION_CLOSED, m->request, &body.base, NULL, 0);
}

static struct lent *find_lent(struct peer *peer, uint64_t id)
{
    list_for_each (it, &peer->extents)
        if (container_of(it, struct lent, link)->id == id)
            return container_of(it, struct lent, link);
    return NULL;
}

static void on_return(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    const Kvcached__Return *body = (const Kvcached__Return *)m->body;
    Kvcached__Returned returned = KVCACHED__RETURNED__INIT;

    d->counts.returns++;
    for (size_t i = 0; i < body->n_extents; i++) {
        struct lent *lent = find_lent(peer, body->extents[i]);

        if (!lent && d->noisy)
            continue;
        if (!lent)
            test_fail(__FILE__, __LINE__, "extent %" PRIu64 " is returned and not lent", body->extents[i]);
        take_back(d, lent);
    }
    show_status(d);
    if (lie == FAKE_LATE)
        orders_hold(d, peer, MESSAGE_RETURNED, m->request);
    else
        fake_answer(peer->fd, lie, MESSAGE_RETURNED, m->request, &returned.base, NULL, 0);
}

/* A refused Take gives what it spent up. */
static void forgo_lease(struct daemon *d, struct peer *peer, const struct message *m)
{
    const Kvcached__Take *take = (const Kvcached__Take *)m->body;

    if (m->type == MESSAGE_TAKE && take->leased)
        check(end_lease(d, peer, take->region % REGIONS_MAX, take->pages));
}

/* Lies that are the same whatever was asked. True when that was the answer. */
static bool lie_bluntly(struct daemon *d, struct peer *peer, const struct message *m, enum fake_lie lie)
{
    Kvcached__LimitReply wrong = KVCACHED__LIMIT_REPLY__INIT;

    switch (lie) {
    case FAKE_SILENCE:
        return true;
    case FAKE_DISCONNECT:
        shutdown(peer->fd, SHUT_RDWR);
        return true;
    case FAKE_LAST_WORD:
        fake_refuse(peer->fd, 0, KVCACHED__ERROR__ERROR_SHUTDOWN, "The daemon is stopping");
        shutdown(peer->fd, SHUT_RDWR);
        return true;
    case FAKE_REFUSE:
        forgo_lease(d, peer, m);
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_RESOURCES,
                    "The daemon is short of descriptors");
        return true;
    case FAKE_REFUSE_WORKER:
        orders_forgo(d, peer, m);
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_WORKER, "The worker has failed");
        return true;
    case FAKE_WORKER_GONE:
        orders_forgo(d, peer, m);
        orders_lose_worker(d, peer, m);
        return true;
    case FAKE_REFUSE_VERSION:
        fake_refuse(peer->fd, m->request, KVCACHED__ERROR__ERROR_VERSION, "This daemon speaks version 7");
        return true;
    case FAKE_WRONG_TYPE:
        fake_answer(peer->fd, FAKE_HONEST, MESSAGE_LIMIT_REPLY, m->request, &wrong.base, NULL, 0);
        return true;
    default:
        return false;
    }
}

void answers_message(struct daemon *d, struct peer *peer, const struct message *m)
{
    enum fake_lie lie = FAKE_HONEST;

    if (m->type == d->lie_at && d->lie_after-- == 0) {
        lie = d->lie;
        d->lie_at = 0;
    }
    orders_note(d, peer, m);
    d->noisy |= lie == FAKE_NOISE;
    if (lie_bluntly(d, peer, m, lie))
        return;
    if (m->type == MESSAGE_HELLO || m->type == MESSAGE_CHALLENGE_REPLY)
        on_hello(d, peer, m, lie);
    else if (m->type == MESSAGE_REGION_OPEN)
        on_region_open(d, peer, m, lie);
    else if (m->type == MESSAGE_REGION_CLOSE)
        on_region_close(d, peer, m, lie);
    else if (m->type == MESSAGE_TAKE)
        on_take(d, peer, m, lie);
    else if (m->type == MESSAGE_RETURN)
        on_return(d, peer, m, lie);
    else if (!leases_message(d, peer, m, lie) && !orders_message(d, peer, m, lie) &&
             !reservations_message(d, peer, m, lie) && m->type == MESSAGE_GRANT_ACK && peer->awaits_ack) {
        peer->awaits_ack = false;
        d->counts.unacknowledged--;
    }
    show_status(d);
    answers_send_grants(d, peer);
}

void answers_release(struct daemon *d, struct peer *peer)
{
    list_for_each (it, &peer->grants) {
        struct grant *grant = container_of(it, struct grant, link);

        d->counts.late -= grant->held;
        grant->held = false;
    }
    answers_send_grants(d, peer);
}

void answers_end(struct daemon *d, struct peer *peer)
{
    while (!list_is_empty(&peer->grants))
        grant_free(d, list_first(&peer->grants, struct grant, link));
    take_all_back(d, &peer->extents);
}
