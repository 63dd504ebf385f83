/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The client: what belongs to one handle of kvc_open(). All of it is touched under the connection's lock,
 * except for what kvc_status() reads.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "conn.h"
#include "gpu.h"
#include "news.h"
#include "notice.h"
#include "options.h"
#include "page_cache.h"
#include "reservation.h"
#include "shape.h"
#include "wire/lease_file.h"
#include "wire/status.h"

struct loop;
struct worker;

struct kvc_client {
    const volatile uint32_t *ours; /* a word that reads as zero in a forked child */
    struct conn *conn;
    enum kvc_role role;
    uint64_t features;     /* bits of Kvcached__Feature that hold on this connection */
    struct gpu *gpu;       /* NULL in a scheduler and in a controller */
    CUstream fences;       /* in which the GPU comes to fences one after the other; NULL: none so far */
    unsigned n_fences;     /* that have not been passed, of all regions */
    struct worker *worker; /* NULL: the host dispatches */
    struct loop *loop;     /* in which it does; NULL: it doesn't */
    const struct status_page *status;
    struct lease_line *leases; /* by region number; NULL: the daemon knows no leases */
    struct kvc_listener listener;
    void *listener_data;
    uint64_t report_ns;
    struct news news;
    struct notice notice;
    struct reservation_state reservation;
    kvc_log_fn log;
    void *log_data;
    bool told_death;

    struct kvc_device device;
    uint64_t min_reserved_pages, max_reserved_pages;

    struct list regions;
    struct list remotes; /* regions of workers elsewhere */
    struct list orders;  /* that have not come completely, see orders.h */
    unsigned n_ordered;  /* regions that orders may come for at any time */
    struct list takes;   /* unanswered, see borrow.h */
    struct list leaving; /* memory that could not be given back yet, see borrow.h */
    unsigned n_takers;   /* threads that wait for memory: reserves are not filled meanwhile */
    uint64_t n_rounds;   /* see blocks_give.c */
    struct page_cache_bytes cached;
    _Atomic uint64_t mapped_bytes, cached_bytes; /* for kvc_status() */
};

/* True in a child of the process that made the client. */
static inline bool client_is_forked(const struct kvc_client *client)
{
    return *client->ours == 0;
}

/* In such a child: whether memory can be freed. If some thread of the parent was at work when it forked, its
 * work is half done for ever. */
bool client_is_at_rest(struct kvc_client *client);

/* One region after the other, this process's and workers' ones. NULL gives the first, and comes after the
 * last. */
struct kvc_region *client_next_region(const struct kvc_client *client, const struct kvc_region *region);

/* With the lock: whoever has to act upon what there is to do now is woken. client_call(): the same without
 * the lock, whatever there is. */
void client_poke(struct kvc_client *client);
void client_call(struct kvc_client *client);

/* Every call begins and ends with these. 0 with the lock held, or KVC_E_INVALID (no handle), KVC_E_FORKED. */
int client_enter(struct kvc_client *client);
void client_leave(struct kvc_client *client);

/* What there is to do without a caller: receive, send, do what the daemon wants, refill reserves. */
void client_work(struct kvc_client *client);

/* Whether client_work() would start something. */
bool client_has_work(const struct kvc_client *client);

/* Whether something may come from the daemon that no thread waits for. */
bool client_listens(const struct kvc_client *client);

/* In how many ms it will have something to do, by itself; -1: never. */
int client_timeout_ms(struct kvc_client *client);

/* The end of a wait of so long from now; negative: none; 0: of the client's timeout. */
uint64_t client_deadline(const struct kvc_client *client, int timeout_ms);

/* True while nothing should be kept: the instance is above its limit, or frozen, or asked to give back. */
bool client_must_shrink(const struct kvc_client *client);

void client_log(struct kvc_client *client, enum kvc_log_level level, const char *format, ...)
    __attribute__((cold, format(printf, 3, 4)));
