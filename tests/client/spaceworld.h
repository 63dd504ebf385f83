/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A region of two segments, its client and daemon, and the driver that they use.
 */

#include "support.h"

#define PAGE (10 * MIB) /* 8 + 2 */
#define SEGMENTS 2

struct space {
    struct fake *fake;
    struct kvc_client *client;
    struct emulator *emulator;
    struct kvc_region *region;
};

/* The client keeps up to so many free pages. */
struct space space_begin(int max_reserved_pages, uint32_t flags, uint64_t pages);

/* With a plan as in KVCACHED_EMULATE_FAULTS. */
struct space space_begin_failing(const char *plan, int max_reserved_pages, uint32_t flags, uint64_t pages);

/* Without a region, at a daemon that the caller has started. */
struct space space_join(struct fake *fake, int max_reserved_pages);

/* Nothing may be lent then. */
void space_end(struct space *s);

struct kvc_region *open_with(struct kvc_client *client, uint32_t flags, uint64_t pages);

/* In every segment of the region. */
void stamp_page(struct space *s, uint64_t page, uint32_t value);
void check_page(struct space *s, uint64_t page, uint32_t value);

/* Pages, over all regions of the client. */
uint64_t mapped(struct kvc_client *client);

/* From the next client on, a memset takes its stream so long that nobody comes too late to look. */
void slow_memsets(void);

/* The driver has not seen anything forbidden. */
bool is_whole(struct emulator *emulator);
