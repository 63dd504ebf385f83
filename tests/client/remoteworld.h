/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A scheduler whose workers the fake daemon plays. It fails the test when a page is mapped twice at a rank,
 * or unmapped where it isn't, so these tests are exact about what the library believes of each rank.
 */

#include "support.h"

#define PAGES 16 /* of rank 0; each further rank has one more */
#define TIMEOUT_MS 100
#define LONG_MS 20000

struct fake *fake_with_orders(void);
struct kvc_client *open_scheduler(struct fake *fake, int timeout_ms, int own_thread);
struct kvc_region *attach(struct kvc_client *client, uint32_t rank);
