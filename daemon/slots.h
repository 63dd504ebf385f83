/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Slots: what the server keeps beside each extent of the broker: the driver's handle, the exported descriptor
 * while there is one, and the region that it was granted for. Records have stable addresses, because the
 * backing thread works on them.
 */

#include <stddef.h>
#include <stdint.h>

#include "backing.h"

#define SLOTS_CHUNK 1024

struct grant;

struct slot {
    struct backing_job job; /* job.handle; job.fd is -1 while there is no descriptor */
    uint64_t id;            /* 0: the record is not in use */
    struct grant *grant;    /* that is still to send it; NULL: there is none */
    uint32_t region;        /* of the peer that holds it */
    bool granted_export;    /* the export under way is for a cold grant, not the broker's */
    bool release_wanted;    /* once that is over */
};

struct slots {
    struct slot **chunks;
    size_t n_chunks;
};

void slots_init(struct slots *slots);
void slots_deinit(struct slots *slots);

/* A record for a new id. 0 or -ENOMEM. */
int slots_add(struct slots *slots, uint64_t id, struct slot **ret);
void slot_remove(struct slot *slot);

/* NULL for an id that is not in use, which peers may ask for. */
struct slot *slots_find(const struct slots *slots, uint64_t id);
