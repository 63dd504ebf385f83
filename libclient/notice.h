/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Notices: memory that the daemon wants back.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "wire/codec.h"

struct kvc_client;
struct request;

struct notice {
    atomic_bool open; /* not acknowledged yet: nothing new is promised meanwhile. Read by any thread */
    bool answering;   /* some thread sees to it */
    uint32_t number;
    uint64_t bytes; /* wanted */
    uint64_t deadline_ns;
    uint64_t answer_by_ns; /* somewhat earlier, so that the daemon has it in time */
    bool courtesy;

    _Atomic uint64_t pressing_until_ns; /* what is freed goes back at once; 0: as the status page says */

    bool reclaim_due; /* the engine is to be asked for what is missing */
    uint64_t missing_bytes;
};

/* One has come. KVC_E_PROTOCOL when it makes no sense. */
int notice_arrived(struct kvc_client *client, const Kvcached__Notice *body);

/* When the notice that is open can be answered: until then a report holds. UINT64_MAX: none is open. */
uint64_t notice_due_ns(const struct kvc_client *client);
bool notice_is_due(const struct kvc_client *client);

/* Gives back what the engine doesn't use, if no report promises it any more, and says so. */
void notice_work(struct kvc_client *client);

/* Asks the engine for the rest, without the lock. */
void notice_reclaim(struct kvc_client *client);

/* As conn_wait_while(), for a thread that may wait long; until a moment, or UINT64_MAX. Sees to notices. */
int notice_wait_while(struct kvc_client *client, bool (*pending)(const void *data), const void *data,
                      uint64_t deadline_ns);

/* As conn_wait(), for questions whose answer may depend on what this client gives back. */
int notice_wait(struct kvc_client *client, struct request *request, uint64_t timeout_ns);
