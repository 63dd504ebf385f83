/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * News: what the daemon says without having been asked, kept until the library is dispatched.
 */

#include <stdbool.h>

#include "base/list.h"
#include "wire/codec.h"

struct kvc_client;

struct news {
    struct list items;
    unsigned n;
};

void news_init(struct news *news);
void news_deinit(struct news *news);

/* Moves the message into the queue. 0, KVC_E_PROTOCOL when more has come than any daemon may send,
 * KVC_E_NOMEM: it stays the caller's. */
int news_keep(struct news *news, struct message *message);

bool news_has_any(const struct news *news);
bool news_has_notice(const struct news *news);

/* A region of this number has been opened: orders to unmap there that came before were an earlier one's. */
void news_outdate_orders(struct news *news, uint32_t region);

/* Takes note of notices, and leaves the rest for news_handle(). */
void news_take_notices(struct kvc_client *client);

/* Does what they say, in the order in which they came. With the client's lock, which is released while
 * the engine is called. */
void news_handle(struct kvc_client *client);
