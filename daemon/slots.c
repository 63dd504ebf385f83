/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A table indexed by the lower half of the id, grown in chunks that never move. The upper half tells a record
 * from the one that had its place before.
 */

#include "slots.h"

#include <errno.h>
#include <stdlib.h>

void slots_init(struct slots *slots)
{
    *slots = (struct slots){0};
}

void slots_deinit(struct slots *slots)
{
    for (size_t i = 0; i < slots->n_chunks; i++)
        free(slots->chunks[i]);
    free(slots->chunks);
    slots_init(slots);
}

static int grow(struct slots *slots, size_t n_chunks)
{
    struct slot **chunks;

    chunks = reallocarray(slots->chunks, n_chunks, sizeof(*chunks));
    if (!chunks)
        return -ENOMEM;
    slots->chunks = chunks;
    while (slots->n_chunks < n_chunks) {
        chunks[slots->n_chunks] = calloc(SLOTS_CHUNK, sizeof(struct slot));
        if (!chunks[slots->n_chunks])
            return -ENOMEM;
        slots->n_chunks++;
    }
    return 0;
}

int slots_add(struct slots *slots, uint64_t id, struct slot **ret)
{
    size_t index = (uint32_t)id, chunk = index / SLOTS_CHUNK;
    struct slot *slot;

    if (chunk >= slots->n_chunks && grow(slots, chunk + 1) < 0)
        return -ENOMEM;
    slot = &slots->chunks[chunk][index % SLOTS_CHUNK];
    *slot = (struct slot){.id = id, .job.fd = -1};
    list_init(&slot->job.link);
    *ret = slot;
    return 0;
}

void slot_remove(struct slot *slot)
{
    slot->id = 0;
}

struct slot *slots_find(const struct slots *slots, uint64_t id)
{
    size_t index = (uint32_t)id, chunk = index / SLOTS_CHUNK;
    struct slot *slot;

    if (id == 0 || chunk >= slots->n_chunks)
        return NULL;
    slot = &slots->chunks[chunk][index % SLOTS_CHUNK];
    return slot->id == id ? slot : NULL;
}
