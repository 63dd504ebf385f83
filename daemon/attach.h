/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Attach: schedulers come to the regions of their instance's workers.
 */

#include "peer.h"

struct orders;

/* Handler of a message: see request.h. */
int attach_region(struct peer *peer, struct message *message);

/* A worker has opened a region: whoever waits for it is answered. */
void attach_waiting(struct orders *orders);

/* The peer's connection is gone: it waits for nothing any more. */
void attach_give_up(struct peer *peer);
