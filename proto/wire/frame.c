/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Frame headers, byte by byte. This file owns the layout that frame.h describes and refuses whatever differs
 * from it; it never looks into a body, and leaves types, versions and descriptors to its callers.
 */

#include "wire/frame.h"

#include <stdbool.h>

static void put_u16(uint8_t *p, uint16_t value)
{
    p[0] = (uint8_t)value;
    p[1] = (uint8_t)(value >> 8);
}

static void put_u32(uint8_t *p, uint32_t value)
{
    put_u16(p, (uint16_t)value);
    put_u16(p + 2, (uint16_t)(value >> 16));
}

static uint16_t get_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get_u32(const uint8_t *p)
{
    return get_u16(p) | (uint32_t)get_u16(p + 2) << 16;
}

void frame_write_header(uint8_t *buf, const struct frame_header *header)
{
    put_u32(buf, FRAME_MAGIC);
    put_u16(buf + 4, header->version);
    put_u16(buf + 6, header->type);
    put_u32(buf + 8, header->length);
    put_u32(buf + 12, header->request);
    put_u16(buf + 16, header->n_fds);
    put_u16(buf + 18, 0);
}

static bool length_is_right(size_t size, uint32_t length)
{
    return size <= FRAME_SIZE_MAX && length == size - FRAME_HEADER_SIZE;
}

int frame_read_header(const uint8_t *packet, size_t size, struct frame_header *ret)
{
    if (size < FRAME_HEADER_SIZE)
        return FRAME_E_SHORT;
    if (get_u32(packet) != FRAME_MAGIC)
        return FRAME_E_MAGIC;
    if (!length_is_right(size, get_u32(packet + 8)))
        return FRAME_E_LENGTH;
    if (get_u16(packet + 16) > FRAME_FDS_MAX)
        return FRAME_E_FDS;
    if (get_u16(packet + 18) != 0)
        return FRAME_E_RESERVED;

    *ret = (struct frame_header){
        .version = get_u16(packet + 4),
        .type = get_u16(packet + 6),
        .length = get_u32(packet + 8),
        .request = get_u32(packet + 12),
        .n_fds = get_u16(packet + 16),
    };
    return 0;
}

const char *frame_strerror(int error)
{
    switch (error) {
    case _FRAME_E_SUCCESS:
        return "the header is valid";
    case FRAME_E_SHORT:
        return "the packet is shorter than a header";
    case FRAME_E_MAGIC:
        return "the packet is not of this protocol";
    case FRAME_E_LENGTH:
        return "the packet's size and its header disagree";
    case FRAME_E_FDS:
        return "the header announces more descriptors than a packet may carry";
    case FRAME_E_RESERVED:
        return "the header has reserved bits set";
    }
    return "unknown framing error";
}
