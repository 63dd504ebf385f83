/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A daemon that kvtop looks at again and again, without ever waiting for it.
 */

#include <poll.h>

#include "control.h"
#include "fleet.h"

#define TOP_PATIENCE_MS 1000 /* with a daemon that doesn't answer */

enum top_phase {
    TOP_RESTING, /* until the next look */
    TOP_CONNECTING,
    TOP_ASKING, /* about the GPU */
    TOP_LISTING,
};

/* Zero-initialised but for the member, which is borrowed. */
struct top_source {
    struct fleet_member *member;
    enum top_phase phase;
    uint64_t next_ns;               /* the next look, or when this one began */
    struct message info;            /* an InfoReply; no body: not yet */
    struct control_listing listing; /* of all instances */
};

/*
 * Goes on with a look, or begins one where it is time. 0: it has come, in info and listing;
 * CONTROL_E_PENDING: it hasn't; else the daemon is lost, and control_reason() of its control says why.
 * After anything but CONTROL_E_PENDING, top_source_rest().
 */
int top_source_turn(struct top_source *source, uint64_t now_ns);
void top_source_rest(struct top_source *source, uint64_t period_ns);

/* What to wait for until the next turn; fd -1 where only time can bring it. Returns for how long, in ms. */
int top_source_wait(const struct top_source *source, uint64_t now_ns, struct pollfd *ret_pollfd);
