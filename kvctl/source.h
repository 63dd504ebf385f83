/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A daemon that is looked at again and again, without ever waiting for it.
 */

#include <poll.h>

#include "control.h"
#include "fleet.h"

#define SOURCE_PATIENCE_MS 1000 /* with a daemon that doesn't answer */

enum source_phase {
    SOURCE_RESTING, /* until the next look */
    SOURCE_CONNECTING,
    SOURCE_ASKING, /* about the GPU */
    SOURCE_LISTING,
};

/* Zero-initialised but for the member and what is wanted of it, which are borrowed. */
struct source {
    struct fleet_member *member;
    bool wants_info; /* about the GPU, too */
    size_t n_names;  /* none: all instances */
    char *const *names;
    enum source_phase phase;
    uint64_t next_ns;               /* the next look, or when this one began */
    struct message info;            /* an InfoReply; no body: not yet, or not wanted */
    struct control_listing listing; /* of these instances */
};

/*
 * Goes on with a look, or begins one where it is time. 0: it has come, in info and listing;
 * CONTROL_E_PENDING: it hasn't; else control_reason() of its control says why not. The daemon is lost then,
 * which member->r says as well, unless it only doesn't know one of the names.
 * After anything but CONTROL_E_PENDING, source_rest().
 */
int source_turn(struct source *source, uint64_t now_ns);
void source_rest(struct source *source, uint64_t period_ns);

/* What to wait for until the next turn; fd -1 where only time can bring it. Returns for how long, in ms. */
int source_wait(const struct source *source, uint64_t now_ns, struct pollfd *ret_pollfd);
