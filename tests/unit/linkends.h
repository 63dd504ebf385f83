/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The two ends of a socket: as links, or one of them bare.
 */

#include "test.h"
#include "wire/link.h"

#define QUEUE_MAX 32

/* A link that may receive descriptors, and one that may not. */
struct ends {
    struct link *client, *server;
};

void make_pair(int ret_fds[2]);
struct ends make_ends(void);
void free_ends(struct ends *ends);

/* A link and the other end as a bare socket, for what a link would never send. */
struct link *make_half(bool receive_fds, int *ret_raw);
void send_raw(int raw, const void *bytes, size_t size, const int *fds, unsigned n_fds);

int open_something(void);
