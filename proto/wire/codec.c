/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Messages to bytes and back: the table of types, the checks that protobuf leaves out, and the memory that
 * decoding may take.
 *
 * An arena grows in steps up to CODEC_ARENA_MAX, because 64 KiB of hostile fields unfold into megabytes of
 * bookkeeping; most messages fit its first part, which makes decoding one allocation. What protobuf-c
 * frees on its way stays in the arena until message_deinit().
 *
 * protobuf-c hands strings over without their length, so an embedded NUL would quietly cut a name short; the
 * body is walked before it is parsed, and refused if it contains one, or a field number that cannot be. (What
 * a shortcut reads needs no walk: it has no strings, and knows each key.) Fields that we don't know are
 * accepted: they are how the protocol grows. Values that are merely out of range are the handlers' to judge.
 */

#include "wire/codec.h"

#include <assert.h>
#include <errno.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "wire/shortcut.h"

/* With the arena itself no more than malloc() keeps at hand for the thread. */
#define ARENA_FIRST 960
#define ARENA_CHUNK 8192
#define ALIGNMENT alignof(max_align_t)

struct chunk {
    alignas(max_align_t) struct chunk *next;
};

struct arena {
    size_t held; /* malloc()ed for this arena, itself included */
    bool out_of_memory;
    struct chunk *chunks;
    uint8_t *free;
    size_t n_free;
    alignas(max_align_t) uint8_t first[ARENA_FIRST];
};

struct message_kind {
    const char *name;
    const ProtobufCMessageDescriptor *descriptor;
};

static const struct message_kind kinds[] = {
#define X(number, upper, camel, lower) [number] = {#camel, &kvcached__##lower##__descriptor},
    MESSAGES(X)
#undef X
};

static const struct shortcut *find_shortcut(const ProtobufCMessageDescriptor *descriptor)
{
    if (descriptor == &kvcached__take__descriptor)
        return &shortcut_take;
    return descriptor == &kvcached__grant__descriptor ? &shortcut_grant : NULL;
}

/* Fields that we don't know are written again as they came. */
static const struct shortcut *find_shortcut_for(const ProtobufCMessage *body)
{
    return body->n_unknown_fields ? NULL : find_shortcut(body->descriptor);
}

static const struct message_kind *find_kind(uint16_t type)
{
    return type < ARRAY_SIZE(kinds) && kinds[type].name ? &kinds[type] : NULL;
}

static struct arena *arena_new(void)
{
    struct arena *arena = malloc(sizeof(*arena));

    if (!arena)
        return NULL;
    arena->held = sizeof(*arena);
    arena->out_of_memory = false;
    arena->chunks = NULL;
    arena->free = arena->first;
    arena->n_free = sizeof(arena->first);
    return arena;
}

static struct arena *arena_free(struct arena *arena)
{
    struct chunk *chunk;

    if (!arena)
        return NULL;
    while ((chunk = arena->chunks)) {
        arena->chunks = chunk->next;
        free(chunk);
    }
    free(arena);
    return NULL;
}

static bool arena_grow(struct arena *arena, size_t size)
{
    size_t wanted = sizeof(struct chunk) + (size > ARENA_CHUNK ? size : ARENA_CHUNK);
    struct chunk *chunk;

    if (wanted > CODEC_ARENA_MAX - arena->held)
        return false;
    chunk = malloc(wanted);
    if (!chunk) {
        arena->out_of_memory = true;
        return false;
    }
    arena->held += wanted;
    chunk->next = arena->chunks;
    arena->chunks = chunk;
    arena->free = (uint8_t *)(chunk + 1);
    arena->n_free = wanted - sizeof(*chunk);
    return true;
}

static void *arena_take(void *data, size_t size)
{
    struct arena *arena = data;
    void *p;

    if (size > CODEC_ARENA_MAX)
        return NULL;
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (size > arena->n_free && !arena_grow(arena, size))
        return NULL;
    p = arena->free;
    arena->free += size;
    arena->n_free -= size;
    return p;
}

static void arena_keep(void *data, void *pointer) {}

/* What is left of a body. */
struct cursor {
    const uint8_t *p;
    size_t n;
};

static bool skip(struct cursor *c, uint64_t size)
{
    if (size > c->n)
        return false;
    c->p += size;
    c->n -= size;
    return true;
}

static bool read_varint(struct cursor *c, uint64_t *ret)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 70 && c->n > 0; shift += 7) {
        uint8_t byte = *c->p;

        skip(c, 1);
        if (shift < 64)
            value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *ret = value;
            return true;
        }
    }
    return false;
}

static bool body_is_clean(const ProtobufCMessageDescriptor *descriptor, struct cursor body);

static bool value_is_clean(const ProtobufCFieldDescriptor *field, struct cursor value)
{
    if (!field)
        return true;
    if (field->type == PROTOBUF_C_TYPE_STRING)
        return !memchr(value.p, '\0', value.n);
    if (field->type == PROTOBUF_C_TYPE_MESSAGE)
        return body_is_clean(field->descriptor, value);
    return true;
}

/* Recursion ends with the schema's nesting: a field below the deepest message is unknown, and skipped. */
static bool body_is_clean(const ProtobufCMessageDescriptor *descriptor, struct cursor body)
{
    uint64_t key, value;

    while (body.n > 0) {
        bool ok = read_varint(&body, &key);

        if (!ok || key < 8 || key > UINT32_MAX)
            return false;
        switch (key % 8) {
        case PROTOBUF_C_WIRE_TYPE_VARINT:
            ok = read_varint(&body, &value);
            break;
        case PROTOBUF_C_WIRE_TYPE_64BIT:
            ok = skip(&body, 8);
            break;
        case PROTOBUF_C_WIRE_TYPE_32BIT:
            ok = skip(&body, 4);
            break;
        case PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED:
            ok = read_varint(&body, &value) && value <= body.n &&
                 value_is_clean(protobuf_c_message_descriptor_get_field(descriptor, (unsigned)(key / 8)),
                                (struct cursor){body.p, value}) &&
                 skip(&body, value);
            break;
        default:
            ok = false;
        }
        if (!ok)
            return false;
    }
    return true;
}

const char *codec_type_name(uint16_t type)
{
    const struct message_kind *kind = find_kind(type);

    return kind ? kind->name : NULL;
}

size_t codec_size(const ProtobufCMessage *body)
{
    const struct shortcut *shortcut = find_shortcut_for(body);

    return FRAME_HEADER_SIZE + (shortcut ? shortcut->size(body) : protobuf_c_message_get_packed_size(body));
}

int codec_write(uint16_t type, uint32_t request, unsigned n_fds, const ProtobufCMessage *body, size_t size,
                uint8_t *buf)
{
    const struct message_kind *kind = find_kind(type);
    const struct shortcut *shortcut = find_shortcut_for(body);

    if (!kind)
        return CODEC_E_TYPE;
    assert(body->descriptor == kind->descriptor);
    assert(n_fds <= FRAME_FDS_MAX);
    if (size > FRAME_SIZE_MAX)
        return CODEC_E_SPACE;

    frame_write_header(buf, &(struct frame_header){
                                .version = FRAME_VERSION,
                                .type = type,
                                .length = (uint32_t)(size - FRAME_HEADER_SIZE),
                                .request = request,
                                .n_fds = (uint16_t)n_fds,
                            });
    if (shortcut)
        shortcut->write(body, buf + FRAME_HEADER_SIZE);
    else
        protobuf_c_message_pack(body, buf + FRAME_HEADER_SIZE);
    return 0;
}

int codec_encode(uint16_t type, uint32_t request, unsigned n_fds, const ProtobufCMessage *body, uint8_t *buf,
                 size_t *ret_size)
{
    size_t size = codec_size(body);
    int r;

    r = codec_write(type, request, n_fds, body, size, buf);
    if (r == 0)
        *ret_size = size;
    return r;
}

static int unpack(const struct message_kind *kind, const uint8_t *bytes, size_t size, struct arena *arena,
                  const ProtobufCMessage **ret)
{
    ProtobufCAllocator allocator = {.alloc = arena_take, .free = arena_keep, .allocator_data = arena};

    if (!body_is_clean(kind->descriptor, (struct cursor){bytes, size}))
        return CODEC_E_BODY;
    *ret = protobuf_c_message_unpack(kind->descriptor, &allocator, size, bytes);
    if (*ret)
        return 0;
    return arena->out_of_memory ? -ENOMEM : CODEC_E_BODY;
}

int codec_decode(const uint8_t *packet, const struct frame_header *header, struct message *ret)
{
    const struct message_kind *kind = find_kind(header->type);
    const uint8_t *bytes = packet + FRAME_HEADER_SIZE;
    const ProtobufCMessage *body = NULL;
    const struct shortcut *shortcut;
    struct arena *arena;
    int r = 0;

    if (!kind)
        return CODEC_E_TYPE;
    shortcut = find_shortcut(kind->descriptor);
    arena = arena_new();
    if (!arena)
        return -ENOMEM;
    if (shortcut)
        body = shortcut->read(bytes, header->length, arena_take, arena);
    if (!body)
        r = unpack(kind, bytes, header->length, arena, &body);
    if (r != 0) {
        arena_free(arena);
        return r;
    }
    *ret = (struct message){
        .version = header->version,
        .type = header->type,
        .request = header->request,
        .n_fds = header->n_fds,
        .body = body,
        .arena = arena,
    };
    return 0;
}

void message_deinit(struct message *message)
{
    message->arena = arena_free(message->arena);
    message->body = NULL;
}
