/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Writing and checking stamps. It owns the serial number of each block in use; a block gets a new one each
 * time that it is taken, so a stamp from its last life is wrong, too. It leaves the copying to the engine's
 * GPU.
 */

#include "stamps.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define STAMP_MAGIC UINT64_C(0x6b76735f7374616d)
#define STAMP_INSTANCE_MAX 32

/* As it lies in device memory. */
struct stamp {
    uint64_t magic;
    uint64_t serial;
    uint32_t block;
    uint32_t place;                    /* segment × 2, + 1 at the piece's end */
    char instance[STAMP_INSTANCE_MAX]; /* shortened if need be, padded with NULs */
};

struct stamps {
    struct gpu *gpu;
    const struct layout *layout;
    uint64_t address, stride;
    char instance[STAMP_INSTANCE_MAX];
    uint64_t *serials; /* by block */
    uint64_t next_serial;
    uint64_t checked;
    char complaint[320];
};

int stamps_new(struct gpu *gpu, const struct layout *layout, uint64_t address, uint64_t stride,
               uint32_t n_blocks, const char *instance, struct stamps **ret_stamps)
{
    _cleanup_(stamps_freep) struct stamps *s = NULL;

    if (layout->block_bytes < 2 * sizeof(struct stamp))
        return -EINVAL;
    s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    s->gpu = gpu;
    s->layout = layout;
    s->address = address;
    s->stride = stride;
    s->next_serial = 1;
    snprintf(s->instance, sizeof(s->instance), "%s", instance);
    s->serials = calloc(n_blocks, sizeof(*s->serials));
    if (!s->serials)
        return -ENOMEM;
    *ret_stamps = steal_pointer(s);
    return 0;
}

struct stamps *stamps_free(struct stamps *s)
{
    if (s) {
        free(s->serials);
        free(s);
    }
    return NULL;
}

static uint64_t place_address(const struct stamps *s, uint32_t block, uint32_t place)
{
    uint64_t piece = s->address + layout_offset(s->layout, s->stride, block, place / 2);

    return place % 2 ? piece + s->layout->block_bytes - sizeof(struct stamp) : piece;
}

static void make_stamp(const struct stamps *s, uint32_t block, uint32_t place, struct stamp *ret)
{
    *ret = (struct stamp){.magic = STAMP_MAGIC, .serial = s->serials[block], .block = block, .place = place};
    memcpy(ret->instance, s->instance, sizeof(ret->instance));
}

static int write_block(struct stamps *s, uint32_t block)
{
    struct stamp stamp;
    int r;

    s->serials[block] = s->next_serial++;
    for (uint32_t place = 0; place < 2 * s->layout->segments; place++) {
        make_stamp(s, block, place, &stamp);
        r = gpu_write(s->gpu, place_address(s, block, place), &stamp, sizeof(stamp));
        if (r < 0)
            return r;
    }
    return 0;
}

int stamps_write(struct stamps *s, const uint32_t *blocks, size_t n)
{
    int r = 0;

    for (size_t i = 0; i < n && r == 0; i++)
        r = write_block(s, blocks[i]);
    return r;
}

static int complain(struct stamps *s, const struct stamp *wanted, const struct stamp *found)
{
    int at = snprintf(s->complaint, sizeof(s->complaint),
                      "wrong stamp: %s, block %" PRIu32 " (serial %" PRIu64
                      "), %s of its piece in segment %" PRIu32 ", should be its own but ",
                      wanted->instance, wanted->block, wanted->serial, wanted->place % 2 ? "end" : "start",
                      wanted->place / 2);

    if (found->magic != STAMP_MAGIC)
        snprintf(s->complaint + at, sizeof(s->complaint) - (size_t)at,
                 "has no stamp at all (0x%016" PRIx64 ")", found->magic);
    else
        snprintf(s->complaint + at, sizeof(s->complaint) - (size_t)at,
                 "is that of %.*s, block %" PRIu32 " (serial %" PRIu64 "), %s of segment %" PRIu32,
                 STAMP_INSTANCE_MAX - 1, found->instance, found->block, found->serial,
                 found->place % 2 ? "end" : "start", found->place / 2);
    return STAMPS_E_WRONG;
}

static int check_block(struct stamps *s, uint32_t block)
{
    struct stamp wanted, found;
    int r;

    for (uint32_t place = 0; place < 2 * s->layout->segments; place++) {
        make_stamp(s, block, place, &wanted);
        r = gpu_read(s->gpu, &found, place_address(s, block, place), sizeof(found));
        if (r < 0)
            return r;
        if (memcmp(&wanted, &found, sizeof(found)) != 0)
            return complain(s, &wanted, &found);
        s->checked++;
    }
    return 0;
}

int stamps_check(struct stamps *s, const uint32_t *blocks, size_t n)
{
    int r = 0;

    for (size_t i = 0; i < n && r == 0; i++)
        r = check_block(s, blocks[i]);
    return r;
}

const char *stamps_complaint(const struct stamps *s)
{
    return s->complaint;
}

uint64_t stamps_checked(const struct stamps *s)
{
    return s->checked;
}
