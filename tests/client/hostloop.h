/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A host's event loop, on a thread of its own: it does nothing but dispatch a client, when that asks for it.
 */

#include <pthread.h>

#include "kvclient.h"

struct event_loop {
    struct kvc_client *client;
    int end[2]; /* a pipe: readable at the end */
    pthread_t thread;
};

void start_loop(struct event_loop *loop, struct kvc_client *client);
void end_loop(struct event_loop *loop);
