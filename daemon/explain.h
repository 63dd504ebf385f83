/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Explain: what an instance's bytes are, each of them, and since when. Pure.
 */

#include "base/cleanup.h"
#include "broker.h"
#include "since.h"
#include "snapshot.h"

/* What the server has seen of an instance over time. */
struct explain_times {
    struct since destroying, gone, over_limit, missed, frozen; /* gone: limbo or destroying */
};

/* `times` may be NULL: nothing was seen. 0 or -ENOMEM. */
int explain_instance(struct broker *broker, const struct broker_instance *instance,
                     const struct explain_times *times, uint64_t now_ns, Kvcached__WhyReply **ret);
Kvcached__WhyReply *explain_free(Kvcached__WhyReply *reply);
DEFINE_CLEANUP(Kvcached__WhyReply *, explain_free);
