/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The host's event loop, where the library has no thread of its own. The descriptor that it polls stands for
 * the socket, and for work that another thread of the host has left: a thread that waits for an answer may
 * receive what is the loop's to act upon, and then the socket is empty.
 */

#include <stdbool.h>

struct kvc_client;
struct loop;

/* NULL: no memory. There are no descriptors until the host asks for one. */
struct loop *loop_new(struct kvc_client *client);
struct loop *loop_free(struct loop *loop);

/* Frees host memory only, in a forked child. */
struct loop *loop_forget(struct loop *loop);

/* With the client's lock. The descriptor, which stays the loop's, to be polled for POLLIN; or KVC_E_NOFILE,
 * KVC_E_NOMEM. */
int loop_get_fd(struct loop *loop);

/* With the client's lock: whether the host has asked for it. */
bool loop_is_polled(const struct loop *loop);

/* With the client's lock. The host is about to poll: said before it is found to have nothing to do. And it is
 * at work again. */
void loop_fall_asleep(struct loop *loop);
void loop_wake_up(struct loop *loop);

/* With the client's lock: makes the descriptor stand for what the socket needs now. */
void loop_watch(struct loop *loop);

/* With the client's lock: the same for a host that sleeps, and wakes it if there is work. */
void loop_poke(struct loop *loop);

/* Without the lock: wakes it, if it sleeps. */
void loop_call(struct loop *loop);
