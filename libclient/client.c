/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Opening and closing, and the frame of every call: fork check, lock, and on the way out the host's log and
 * the library's thread.
 *
 * A forked child is recognised by a word in a page that the kernel wipes there. (A process id can be cached,
 * faked or equal in another namespace, and asking for it is a system call.) In the child the lock may be held
 * by a thread that doesn't exist, so that word is all that is looked at.
 */

#include "client.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/arith.h"
#include "blocks.h"
#include "borrow.h"
#include "discovery.h"
#include "fence.h"
#include "hello.h"
#include "loop.h"
#include "orders.h"
#include "region.h"
#include "remote.h"
#include "reserve.h"
#include "worker.h"

#define FORK_PAGE_SIZE 4096

KVC_API const char *kvc_version(void)
{
    return KVCACHED_VERSION;
}

/* ---- The frame of a call ---- */

bool client_is_at_rest(struct kvc_client *client)
{
    if (pthread_mutex_trylock(&client->conn->lock) != 0)
        return false;
    pthread_mutex_unlock(&client->conn->lock);
    return true;
}

/* For calls that take no lock. */
static int check_handle(const struct kvc_client *client)
{
    if (!client)
        return error_set(KVC_E_INVALID, "No client");
    if (client_is_forked(client))
        return error_set(KVC_E_FORKED,
                         "The handle belongs to the process that opened it, not to its forked child");
    return 0;
}

int client_enter(struct kvc_client *client)
{
    int r = check_handle(client);

    if (r < 0)
        return r;
    pthread_mutex_lock(&client->conn->lock);
    return 0;
}

static void tell_death(struct kvc_client *client)
{
    if (client->conn->alive || client->told_death)
        return;
    client->told_death = true;
    client_log(client, KVC_LOG_WARNING, "The connection to kvcachedd has ended: %s", client->conn->reason);
}

static struct kvc_region *region_at(const struct list *list, const struct list *link)
{
    return link == list ? NULL : container_of(link, struct kvc_region, link);
}

struct kvc_region *client_next_region(const struct kvc_client *client, const struct kvc_region *region)
{
    struct kvc_region *next;

    if (region && region->remote)
        return region_at(&client->remotes, region->link.next);
    next = region_at(&client->regions, region ? region->link.next : client->regions.next);
    return next ? next : region_at(&client->remotes, client->remotes.next);
}

/* Of the regions that the host maps itself: blocks show their own. */
static void show_hints(struct kvc_client *client)
{
    list_for_each (it, &client->regions) {
        struct kvc_region *region = container_of(it, struct kvc_region, link);

        if (!region->blocks)
            region_show_pins(region);
    }
}

void client_poke(struct kvc_client *client)
{
    if (client->worker)
        worker_poke(client->worker);
    if (client->loop)
        loop_poke(client->loop);
}

void client_call(struct kvc_client *client)
{
    if (client->worker)
        worker_call(client->worker);
    if (client->loop)
        loop_call(client->loop);
}

void client_leave(struct kvc_client *client)
{
    tell_death(client);
    client->cached_bytes = client->cached.bytes;
    show_hints(client);
    client_poke(client);
    pthread_mutex_unlock(&client->conn->lock);
}

void client_log(struct kvc_client *client, enum kvc_log_level level, const char *format, ...)
{
    char sentence[ERROR_SENTENCE_MAX];
    va_list args;

    if (!client->log)
        return;
    va_start(args, format);
    vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    client->log(client->log_data, level, sentence);
}

static bool is_pressing(const struct kvc_client *client)
{
    uint64_t until_ns = atomic_load_explicit(&client->notice.pressing_until_ns, memory_order_relaxed);

    return until_ns > 0 && conn_now_ns() < until_ns;
}

bool client_must_shrink(const struct kvc_client *client)
{
    struct status_values status;

    status_page_read(client->status, &status);
    return (status.flags & (STATUS_FLAG_OVER_LIMIT | STATUS_FLAG_FROZEN)) != 0 || status.pressure_bytes > 0 ||
           is_pressing(client);
}

bool client_has_work(const struct kvc_client *client)
{
    if (news_has_any(&client->news) || notice_is_due(client) || client->notice.reclaim_due)
        return true;
    list_for_each (it, &client->regions) {
        struct kvc_region *region = container_of(it, struct kvc_region, link);

        if (reserve_wants_refill(region))
            return true;
    }
    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        if (region->blocks && blocks_has_work(region))
            return true;
    return false;
}

int client_timeout_ms(struct kvc_client *client)
{
    uint64_t due_ns = notice_due_ns(client), left_ns;

    if (!client->conn->alive || due_ns == UINT64_MAX)
        return -1;
    left_ns = u64_sub_floor(due_ns, conn_now_ns());
    return (int)u64_min((left_ns + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC, INT_MAX);
}

uint64_t client_deadline(const struct kvc_client *client, int timeout_ms)
{
    if (timeout_ms == 0)
        return conn_deadline(client->conn->timeout_ns);
    return conn_deadline(timeout_ms < 0 ? UINT64_MAX : (uint64_t)timeout_ms * NSEC_PER_MSEC);
}

bool client_listens(const struct kvc_client *client)
{
    return conn_has_background(client->conn) || client->n_ordered > 0 || client->leases;
}

void client_work(struct kvc_client *client)
{
    conn_dispatch(client->conn);
    news_handle(client);
    fence_poll(client);
    notice_work(client);
    list_for_each (it, &client->regions)
        reserve_refill(container_of(it, struct kvc_region, link));
    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        if (region->blocks)
            blocks_work(region);
    client->cached_bytes = client->cached.bytes;
    tell_death(client);
    notice_reclaim(client);
}

/* ---- Opening ---- */

static int mark_process(struct kvc_client *client)
{
    uint32_t *word = mmap(NULL, FORK_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (word == MAP_FAILED)
        return error_nomem();
    if (madvise(word, FORK_PAGE_SIZE, MADV_WIPEONFORK) < 0) {
        munmap(word, FORK_PAGE_SIZE);
        return error_set(KVC_E_NOMEM, "This kernel cannot wipe memory on fork: Linux 4.14 is needed");
    }
    *word = 1;
    client->ours = word;
    return 0;
}

/* Some thread that waits for an answer may be the one that receives it, and it goes on waiting: perhaps for
 * memory, which the daemon doesn't send before it knows that an order's has come. */
static int client_on_news(void *data, struct message *message, struct fdset *fds, bool truncated)
{
    struct kvc_client *client = data;
    uint64_t feature = message->type == MESSAGE_NOTICE ? KVCACHED__FEATURE__FEATURE_LEASES
                                                       : KVCACHED__FEATURE__FEATURE_ORDERS;
    int r;

    if (!(client->features & feature))
        return KVC_E_PROTOCOL;
    if (message->type == MESSAGE_MAP_ORDER && !orders_receive(client, message, fds, truncated))
        return 0;
    r = news_keep(&client->news, message);
    if (r == 0)
        client_poke(client);
    return r;
}

static int connect_daemon(struct kvc_client *client, const struct settings *settings, struct welcome *welcome)
{
    int fd = -1, r;

    r = discovery_connect(settings, &fd);
    if (r == 0)
        r = conn_new(fd, settings->timeout_ns, &client->conn);
    if (r < 0)
        return r;
    client->conn->on_news = client_on_news;
    client->conn->news_data = client;
    client->conn->interrupt = settings->interrupt;
    pthread_mutex_lock(&client->conn->lock);
    r = hello_exchange(client, settings, welcome);
    pthread_mutex_unlock(&client->conn->lock);
    return r;
}

/* Schedulers and controllers have no device of their own: it is known by name. */
static int open_device(struct kvc_client *client, const struct settings *settings,
                       const struct welcome *welcome)
{
    int r = 0;

    client->device = welcome->device;
    client->device.size = sizeof(client->device);
    client->device.ordinal = -1;
    if (client->role == KVC_ROLE_SCHEDULER || client->role == KVC_ROLE_CONTROLLER)
        return 0;
    r = gpu_open(welcome->device.uuid, welcome->emulated_folder[0] ? welcome->emulated_folder : NULL,
                 settings->emulator_dir, &client->gpu);
    if (r == 0)
        client->device.ordinal = client->gpu->device;
    return r;
}

static struct kvc_client *client_new(const struct settings *settings)
{
    struct kvc_client *client = calloc(1, sizeof(*client));

    if (!client)
        return NULL;
    list_init(&client->regions);
    list_init(&client->remotes);
    list_init(&client->orders);
    list_init(&client->takes);
    list_init(&client->leaving);
    news_init(&client->news);
    client->role = settings->role;
    client->listener = settings->listener;
    client->listener_data = settings->listener_data;
    client->report_ns = settings->report_ns;
    client->log = settings->log;
    client->log_data = settings->log_data;
    client->min_reserved_pages = settings->min_reserved_pages;
    client->max_reserved_pages = settings->max_reserved_pages;
    client->cached.max_bytes = settings->max_reserved_bytes;
    return client;
}

static struct kvc_client *client_free(struct kvc_client *client)
{
    client->loop = loop_free(client->loop);
    client->conn = conn_free(client->conn);
    if (client->gpu)
        fence_close(client);
    client->gpu = gpu_close(client->gpu);
    news_deinit(&client->news);
    orders_forget(client); /* without a region, so nothing of them was imported */
    status_page_unmap(client->status);
    lease_file_unmap(client->leases);
    backing_free_all(&client->leaving);
    if (client->ours)
        munmap((void *)client->ours, FORK_PAGE_SIZE);
    free(client);
    return NULL;
}

static int client_start(struct kvc_client *client, const struct settings *settings)
{
    _cleanup_free_ struct welcome *welcome = calloc(1, sizeof(*welcome));
    int r;

    if (!welcome)
        return error_nomem();
    r = mark_process(client);
    if (r == 0)
        r = connect_daemon(client, settings, welcome);
    if (r == 0)
        r = open_device(client, settings, welcome);
    if (r == 0 && settings->own_thread)
        r = worker_start(client, &client->worker);
    else if (r == 0 && !(client->loop = loop_new(client)))
        r = error_nomem();
    return r;
}

KVC_API int kvc_open(const struct kvc_options *options, struct kvc_client **ret)
{
    struct kvc_client *client;
    struct settings settings;
    int r;

    if (!ret)
        return error_set(KVC_E_INVALID, "Nowhere to put the handle");
    r = settings_resolve(options, &settings);
    if (r < 0)
        return r;
    client = client_new(&settings);
    if (!client)
        return error_nomem();
    r = client_start(client, &settings);
    if (r < 0) {
        error_hold();
        client_free(client);
        error_release();
        return r;
    }
    *ret = client;
    return 0;
}

/* ---- Closing ---- */

/* In a forked child: neither socket nor driver is touched. */
static struct kvc_client *client_forget(struct kvc_client *client)
{
    if (!client_is_at_rest(client))
        return NULL;
    list_for_each_safe (it, &client->regions)
        region_forget(container_of(it, struct kvc_region, link));
    list_for_each_safe (it, &client->remotes)
        region_forget(container_of(it, struct kvc_region, link));
    orders_forget(client);
    borrow_forget(client);
    worker_forget(client->worker);
    loop_forget(client->loop);
    conn_forget(client->conn);
    gpu_forget(client->gpu);
    news_deinit(&client->news);
    status_page_unmap(client->status);
    lease_file_unmap(client->leases);
    munmap((void *)client->ours, FORK_PAGE_SIZE);
    free(client);
    return NULL;
}

/* A daemon that doesn't answer is waited for once, not once for each region. */
static void close_next(struct kvc_client *client, struct list *regions)
{
    if (error_is_unanswered(region_close(list_first(regions, struct kvc_region, link))))
        conn_die(client->conn, KVC_E_TIMEOUT, "kvcachedd did not answer while the client was closed");
}

KVC_API struct kvc_client *kvc_close(struct kvc_client *client)
{
    struct list none = LIST_INIT(none);

    if (!client)
        return NULL;
    if (client_is_forked(client))
        return client_forget(client);
    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        blocks_close_with(region);
    client->worker = worker_stop(client->worker);
    client_enter(client);
    while (!list_is_empty(&client->remotes))
        close_next(client, &client->remotes);
    while (!list_is_empty(&client->regions))
        close_next(client, &client->regions);
    orders_drop(client);
    borrow_return(client, &none, true);
    client_leave(client);
    return client_free(client);
}

/* ---- Event loops ---- */

KVC_API int kvc_get_fd(const struct kvc_client *client)
{
    int fd, r = check_handle(client);

    if (r < 0)
        return r;
    pthread_mutex_lock(&client->conn->lock);
    fd = client->loop ? loop_get_fd(client->loop) : link_fd(client->conn->link);
    pthread_mutex_unlock(&client->conn->lock);
    return fd;
}

KVC_API int kvc_get_events(struct kvc_client *client)
{
    int events, r = client_enter(client);

    if (r < 0)
        return r;
    events = conn_events(client->conn);
    if (client->loop && loop_is_polled(client->loop)) {
        loop_watch(client->loop);
        events = POLLIN;
    }
    client_leave(client);
    return events;
}

KVC_API int kvc_get_timeout(struct kvc_client *client)
{
    int timeout, r = client_enter(client);

    if (r < 0)
        return r;
    if (client->loop)
        loop_fall_asleep(client->loop);
    timeout = client_has_work(client) ? 0 : client_timeout_ms(client);
    if (client->loop && timeout == 0)
        loop_wake_up(client->loop);
    client_leave(client);
    return timeout;
}

KVC_API int kvc_dispatch(struct kvc_client *client)
{
    int r = client_enter(client);

    if (r < 0)
        return r;
    if (client->loop)
        loop_wake_up(client->loop);
    client_work(client);
    r = conn_check(client->conn);
    client_leave(client);
    return r;
}

static int trim(struct kvc_client *client)
{
    struct list leaving = LIST_INIT(leaving);
    int r = 0, one;

    fence_wait(client, NULL);
    if (client->n_fences > 0)
        r = error_set(KVC_E_DRIVER,
                      "The driver does not unmap, or cannot say whether the GPU has come so far");
    one = reserve_empty(client, &leaving);
    r = r ? r : one;
    for (struct kvc_region *region = NULL; (region = client_next_region(client, region));)
        if (region->blocks)
            blocks_yield(region->blocks, region, &leaving);
    one = borrow_return(client, &leaving, true);
    blocks_give(client, NULL, UINT64_MAX);
    return r ? r : one;
}

KVC_API int kvc_trim(struct kvc_client *client)
{
    int r = client_enter(client);

    if (r < 0)
        return r;
    r = trim(client);
    if (r == 0)
        r = conn_check(client->conn);
    client_leave(client);
    return r;
}

/* ---- What there is to know ---- */

/* Fills the caller's structure as far as the caller knows it. */
static int fill(void *to, size_t first_size, const void *from, size_t from_size)
{
    size_t size;

    memcpy(&size, to, sizeof(size));
    if (size < first_size)
        return error_set(KVC_E_INVALID, "The structure has a size that this library does not know");
    memcpy((char *)to + sizeof(size), (const char *)from + sizeof(size),
           (size < from_size ? size : from_size) - sizeof(size));
    return 0;
}

KVC_API int kvc_status(struct kvc_client *client, struct kvc_status *ret)
{
    struct kvc_status status = {0};
    struct status_values values;
    int r = check_handle(client);

    if (r < 0)
        return r;
    if (!ret)
        return error_set(KVC_E_INVALID, "Nowhere to put the status");
    status_page_read(client->status, &values);
    status.limit_bytes = values.limit_bytes;
    status.used_bytes = values.used_bytes;
    status.budget_bytes = values.budget_bytes;
    status.mapped_bytes = client->mapped_bytes;
    status.cached_bytes = client->cached_bytes;
    status.over_limit = (values.flags & STATUS_FLAG_OVER_LIMIT) != 0;
    status.frozen = (values.flags & STATUS_FLAG_FROZEN) != 0;
    status.connected = client->conn->alive;
    return fill(ret, sizeof(status), &status, sizeof(status));
}

KVC_API int kvc_device(struct kvc_client *client, struct kvc_device *ret)
{
    int r = check_handle(client);

    if (r < 0)
        return r;
    if (!ret)
        return error_set(KVC_E_INVALID, "Nowhere to describe the device");
    return fill(ret, sizeof(client->device), &client->device, sizeof(client->device));
}

KVC_API const char *kvc_driver_path(const struct kvc_client *client)
{
    return client && client->gpu ? client->gpu->path : NULL;
}
