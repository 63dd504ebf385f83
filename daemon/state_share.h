/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * State share: how another thread comes by the loop's state. It asks, the loop answers with a copy when it
 * gets to it, and is held up for no longer than copying takes.
 */

#include <stdbool.h>

#include <uv.h>

struct state;
struct state_share;

/* Runs on the loop's thread. 0, or negative: there is no state to be had. */
typedef int (*state_take_fn)(void *userdata, struct state **ret);

/* 0 or negative. */
int state_share_new(uv_loop_t *loop, state_take_fn take, void *userdata, struct state_share **ret);

/* On the loop's thread, when no other one uses it any more. The loop still has to run, once. */
struct state_share *state_share_free(struct state_share *share);

/* ---- For the other thread ---- */

/* Readable when there is something to collect, or to stop for. Borrowed. */
int state_share_fd(const struct state_share *share);

/* One answer comes to all that is asked until it is collected. */
void state_share_ask(struct state_share *share);

enum {
    _STATE_SHARE_E_SUCCESS,
    STATE_SHARE_E_NOTHING, /* no answer yet */
    STATE_SHARE_E_STOP,    /* state_share_stop() was called */
};

/* 0 and the caller's own state, STATE_SHARE_E_*, or negative: what taking it has failed with. */
int state_share_collect(struct state_share *share, struct state **ret);

/* From any thread: who uses it shall stop doing so. */
void state_share_stop(struct state_share *share);
