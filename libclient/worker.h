/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The library's own thread, for hosts without an event loop: receives what nobody waits for, refills
 * reserves, notices the end of the connection.
 */

struct kvc_client;
struct worker;

int worker_start(struct kvc_client *client, struct worker **ret);

/* Ends the thread and waits for it. Without the client's lock. */
struct worker *worker_stop(struct worker *worker);

/* Frees host memory only, in a forked child, where there is no such thread. */
struct worker *worker_forget(struct worker *worker);

/* With the client's lock: makes the thread look, if there is something that it doesn't wait for already. */
void worker_poke(struct worker *worker);

/* Without the lock: makes the thread look, whatever there is. A system call. */
void worker_call(struct worker *worker);
