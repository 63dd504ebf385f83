/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The part of a replayed engine that touches the GPU: it holds the weights and the region of its KV blocks,
 * stamps blocks and checks the stamps. In the scheduler's process, or (remote.h) in one of its own.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "kvclient.h"
#include "layout.h"
#include "model.h"

#define WORKER_ERROR_MAX 512
#define WORKERS_MAX 8 /* of an engine */

struct worker;

struct worker_options {
    const char *socket; /* NULL: as libkvclient finds it */
    const char *instance;
    const struct model *model;
    bool per_layer;      /* a segment for each layer */
    uint64_t page_bytes; /* of one segment; 0: as small as can be */
    uint64_t weights_bytes;
    unsigned workers; /* whose pages are mapped by a scheduler in another process; 0: this is the only one */
    unsigned rank;    /* among them */
    bool reserves;    /* the library keeps memory ready, and gives it back when others need it */
    unsigned report_ms; /* for how long a report of available blocks holds */
    bool hold;          /* what was mapped once stays mapped */
};

/* Connects, puts the weights on the GPU, opens the region. A negative errno with a sentence. */
int worker_new(const struct worker_options *options, struct worker **ret_worker,
               char error[static WORKER_ERROR_MAX]);
/* Whatever is still borrowed goes back. */
struct worker *worker_free(struct worker *worker);

DEFINE_CLEANUP(struct worker *, worker_free);

/* -EBADMSG from checking is a wrong stamp; after any negative errno, worker_error() says what happened. */
int worker_stamp(struct worker *worker, const uint32_t *blocks, size_t n);
int worker_check(struct worker *worker, const uint32_t *blocks, size_t n);
const char *worker_error(const struct worker *worker);

struct kvc_client *worker_client(struct worker *worker);
struct kvc_region *worker_region(struct worker *worker);
const struct layout *worker_layout(const struct worker *worker);

struct worker_counts {
    uint64_t stamps;  /* found to be right */
    uint64_t retries; /* of driver calls that failed */
};
struct worker_counts worker_counts(const struct worker *worker);

/* Opens a client of the engine, in the given role. A call that failed within the driver is made again, a few
 * times. 0 or KVC_E_*. */
int worker_open_client(const struct worker_options *options, enum kvc_role role, uint64_t *retries,
                       struct kvc_client **ret_client);

/* The result of the last attempt at a library call: a replay must get through a driver that fails now and
 * then. Also when it says that there are no addresses: an emulated failure may have any name. */
#define WORKER_ATTEMPTS 3
#define worker_try(retries, call)                                                                            \
    ({                                                                                                       \
        int worker_result = (call);                                                                          \
        for (int worker_n = 1; worker_may_try(worker_result) && worker_n < WORKER_ATTEMPTS; worker_n++) {    \
            ++*(retries);                                                                                    \
            worker_result = (call);                                                                          \
        }                                                                                                    \
        worker_result;                                                                                       \
    })

static inline bool worker_may_try(int error)
{
    return error == KVC_E_DRIVER || error == KVC_E_NOSPACE || error == KVC_E_WORKER;
}
