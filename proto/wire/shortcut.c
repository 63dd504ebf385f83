/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A field that has its default value is not there; the others come in the order of their numbers, and numbers
 * in their shortest form. Reading takes nothing else: what is read is written as the same bytes again.
 */

#include "wire/shortcut.h"

#include <stdbool.h>

#define KEY(number, wire_type) ((number) << 3 | PROTOBUF_C_WIRE_TYPE_##wire_type)

enum {
    TAKE_REGION = KEY(1, VARINT),
    TAKE_PAGES = KEY(2, VARINT),
    TAKE_LEASED = KEY(3, VARINT),
    GRANT_EXTENTS = KEY(1, LENGTH_PREFIXED),
    GRANT_REMAINING = KEY(2, VARINT),
};

/* ---- Varints ---- */

/* What is left of a body. */
struct cursor {
    const uint8_t *p, *end;
};

static size_t varint_size(uint64_t value)
{
    size_t n = 1;

    while (value >>= 7)
        n++;
    return n;
}

static uint8_t *put_varint(uint8_t *p, uint64_t value)
{
    for (; value >= 0x80; value >>= 7)
        *p++ = (uint8_t)(value | 0x80);
    *p++ = (uint8_t)value;
    return p;
}

/* Not 0, and in its shortest form. */
static bool get_varint(struct cursor *c, uint64_t *ret)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64 && c->p < c->end; shift += 7) {
        uint8_t byte = *c->p++;

        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte >= 0x80)
            continue;
        if (byte == 0 || value >> shift != byte)
            return false;
        *ret = value;
        return true;
    }
    return false;
}

/* ---- Fixed numbers ---- */

static uint8_t *put_fixed(uint8_t *p, uint64_t value)
{
    for (unsigned shift = 0; shift < 64; shift += 8)
        *p++ = (uint8_t)(value >> shift);
    return p;
}

static uint64_t get_fixed(const uint8_t *p)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64; shift += 8)
        value |= (uint64_t)*p++ << shift;
    return value;
}

/* ---- Fields ---- */

static size_t field_size(uint64_t value)
{
    return value ? 1 + varint_size(value) : 0;
}

static uint8_t *put_field(uint8_t *p, uint8_t key, uint64_t value)
{
    if (value == 0)
        return p;
    *p++ = key;
    return put_varint(p, value);
}

/* Where another field stands, the value is 0. */
static bool get_field(struct cursor *c, uint8_t key, uint64_t max, uint64_t *ret)
{
    uint64_t value = 0;

    if (c->p < c->end && *c->p == key) {
        c->p++;
        if (!get_varint(c, &value) || value > max)
            return false;
    }
    *ret = value;
    return true;
}

/* ---- Take ---- */

static size_t take_size(const ProtobufCMessage *body)
{
    const Kvcached__Take *take = (const Kvcached__Take *)body;

    return field_size(take->region) + field_size(take->pages) + field_size(take->leased != 0);
}

static void take_write(const ProtobufCMessage *body, uint8_t *bytes)
{
    const Kvcached__Take *take = (const Kvcached__Take *)body;

    bytes = put_field(bytes, TAKE_REGION, take->region);
    bytes = put_field(bytes, TAKE_PAGES, take->pages);
    put_field(bytes, TAKE_LEASED, take->leased != 0);
}

static ProtobufCMessage *take_read(const uint8_t *bytes, size_t size, void *(*alloc)(void *data, size_t size),
                                   void *data)
{
    struct cursor c = {bytes, bytes + size};
    uint64_t region, pages, leased;
    Kvcached__Take *take;

    if (!get_field(&c, TAKE_REGION, UINT32_MAX, &region) || !get_field(&c, TAKE_PAGES, UINT32_MAX, &pages) ||
        !get_field(&c, TAKE_LEASED, true, &leased) || c.p != c.end)
        return NULL;
    take = alloc(data, sizeof(*take));
    if (!take)
        return NULL;
    *take = (Kvcached__Take)KVCACHED__TAKE__INIT;
    take->region = (uint32_t)region;
    take->pages = (uint32_t)pages;
    take->leased = leased;
    return &take->base;
}

const struct shortcut shortcut_take = {take_size, take_write, take_read};

/* ---- Grant ---- */

static size_t extents_bytes(const Kvcached__Grant *grant)
{
    return grant->n_extents * sizeof(grant->extents[0]);
}

static size_t grant_size(const ProtobufCMessage *body)
{
    const Kvcached__Grant *grant = (const Kvcached__Grant *)body;

    return field_size(extents_bytes(grant)) + extents_bytes(grant) + field_size(grant->remaining);
}

static void grant_write(const ProtobufCMessage *body, uint8_t *bytes)
{
    const Kvcached__Grant *grant = (const Kvcached__Grant *)body;

    bytes = put_field(bytes, GRANT_EXTENTS, extents_bytes(grant));
    for (size_t i = 0; i < grant->n_extents; i++)
        bytes = put_fixed(bytes, grant->extents[i]);
    put_field(bytes, GRANT_REMAINING, grant->remaining);
}

static ProtobufCMessage *grant_read(const uint8_t *bytes, size_t size,
                                    void *(*alloc)(void *data, size_t size), void *data)
{
    struct cursor c = {bytes, bytes + size};
    uint64_t n_bytes, remaining;
    const uint8_t *extents;
    Kvcached__Grant *grant;

    if (!get_field(&c, GRANT_EXTENTS, size, &n_bytes) || n_bytes > (size_t)(c.end - c.p) ||
        n_bytes % sizeof(grant->extents[0]))
        return NULL;
    extents = c.p;
    c.p += n_bytes;
    if (!get_field(&c, GRANT_REMAINING, UINT64_MAX, &remaining) || c.p != c.end)
        return NULL;
    grant = alloc(data, sizeof(*grant) + n_bytes);
    if (!grant)
        return NULL;
    *grant = (Kvcached__Grant)KVCACHED__GRANT__INIT;
    grant->remaining = remaining;
    grant->n_extents = n_bytes / sizeof(grant->extents[0]);
    grant->extents = (uint64_t *)(grant + 1);
    for (size_t i = 0; i < grant->n_extents; i++)
        grant->extents[i] = get_fixed(extents + i * sizeof(grant->extents[0]));
    return &grant->base;
}

const struct shortcut shortcut_grant = {grant_size, grant_write, grant_read};
