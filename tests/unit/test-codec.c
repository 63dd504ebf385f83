/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Round trips of random messages of every type, built by walking the descriptors, so that a message added to
 * the schema is covered without a line here; and exact bytes for a few, so that the format cannot drift.
 */

#include "test.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "wire/codec.h"

#define REPEATED_MAX 5
#define TEXT_MAX 24

struct kind {
    uint16_t type;
    const char *name;
    const ProtobufCMessageDescriptor *descriptor;
};

static const struct kind kinds[] = {
#define X(number, upper, camel, lower) {number, #camel, &kvcached__##lower##__descriptor},
    MESSAGES(X)
#undef X
};

static uint8_t frame[FRAME_SIZE_MAX + 64];

static void *allocate(size_t size)
{
    void *p = calloc(1, size);

    check(p != NULL);
    return p;
}

static ProtobufCMessage *random_message(const ProtobufCMessageDescriptor *descriptor, uint64_t *random);

static char *random_text(uint64_t *random)
{
    size_t n = test_random(random) % TEXT_MAX;
    char *text = allocate(n + 1);

    for (size_t i = 0; i < n; i++)
        text[i] = (char)(1 + test_random(random) % 255);
    return text;
}

static size_t element_size(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return sizeof(uint64_t);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_ENUM:
        return sizeof(uint32_t);
    default:
        test_fail(__FILE__, __LINE__, "the schema uses type %d: teach it to this test", type);
    }
}

/* Numbers of all magnitudes. */
static uint64_t random_number(uint64_t *random)
{
    uint64_t bits = test_random(random);

    return bits >> test_random(random) % 64;
}

static void fill_element(void *at, const ProtobufCFieldDescriptor *field, uint64_t *random)
{
    ProtobufCBinaryData *binary = at;

    switch (field->type) {
    case PROTOBUF_C_TYPE_STRING:
        *(char **)at = random_text(random);
        break;
    case PROTOBUF_C_TYPE_MESSAGE:
        *(ProtobufCMessage **)at = random_message(field->descriptor, random);
        break;
    case PROTOBUF_C_TYPE_BYTES:
        binary->data = (uint8_t *)random_text(random);
        binary->len = strlen((char *)binary->data);
        break;
    case PROTOBUF_C_TYPE_BOOL:
        *(protobuf_c_boolean *)at = test_random(random) % 2;
        break;
    default:
        memcpy(at, &(uint64_t){random_number(random)}, element_size(field->type));
    }
}

static void fill_field(ProtobufCMessage *message, const ProtobufCFieldDescriptor *field, uint64_t *random)
{
    char *at = (char *)message + field->offset;
    uint32_t *quantifier = (uint32_t *)((char *)message + field->quantifier_offset);
    size_t size = element_size(field->type), n;

    if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        if (*quantifier != 0)
            return;
        *quantifier = field->id;
    }
    if (field->label != PROTOBUF_C_LABEL_REPEATED) {
        fill_element(at, field, random);
        return;
    }
    n = test_random(random) % REPEATED_MAX;
    *(size_t *)((char *)message + field->quantifier_offset) = n;
    if (n == 0)
        return;
    *(char **)at = allocate(n * size);
    for (size_t i = 0; i < n; i++)
        fill_element(*(char **)at + i * size, field, random);
}

/* Each field is present half of the time. */
static ProtobufCMessage *random_message(const ProtobufCMessageDescriptor *descriptor, uint64_t *random)
{
    ProtobufCMessage *message = allocate(descriptor->sizeof_message);

    protobuf_c_message_init(descriptor, message);
    for (unsigned i = 0; i < descriptor->n_fields; i++) {
        if (test_random(random) % 2 == 0)
            fill_field(message, &descriptor->fields[i], random);
    }
    return message;
}

static int decode(size_t size, struct message *ret)
{
    struct frame_header header;

    check_eq(frame_read_header(frame, size, &header), 0);
    return codec_decode(frame, &header, ret);
}

/* Makes a frame of a type around a body that is given byte by byte. */
static int decode_body(uint16_t type, const void *body, size_t size, struct message *ret)
{
    frame_write_header(frame, &(struct frame_header){.version = 1, .type = type, .length = (uint32_t)size});
    memcpy(frame + FRAME_HEADER_SIZE, body, size);
    return decode(FRAME_HEADER_SIZE + size, ret);
}

/* What is decoded is compared by encoding it again: our encoder is deterministic. */
static void check_round_trip(const struct kind *kind, uint64_t *random)
{
    static uint8_t first[FRAME_SIZE_MAX];
    ProtobufCMessage *original = random_message(kind->descriptor, random);
    uint32_t request = (uint32_t)test_random(random);
    unsigned n_fds = test_random(random) % (FRAME_FDS_MAX + 1);
    struct message message;
    size_t size, again;

    check_eq(codec_encode(kind->type, request, n_fds, original, frame, &size), 0);
    check_eq(size, codec_size(original));
    check_eq(size, FRAME_HEADER_SIZE + protobuf_c_message_get_packed_size(original));
    protobuf_c_message_pack(original, first);
    check(memcmp(first, frame + FRAME_HEADER_SIZE, size - FRAME_HEADER_SIZE) == 0);
    memcpy(first, frame, size);
    check_eq(decode(size, &message), 0);
    check_eq(message.version, FRAME_VERSION);
    check_eq(message.type, kind->type);
    check_eq(message.request, request);
    check_eq(message.n_fds, n_fds);
    check(message.body->descriptor == kind->descriptor);
    check_eq(codec_encode(kind->type, request, n_fds, message.body, frame, &again), 0);
    check_eq(again, size);
    check(memcmp(first, frame, size) == 0);
    message_deinit(&message);
    protobuf_c_message_free_unpacked(original, NULL);
}

TEST(every_type_makes_the_round_trip)
{
    uint64_t random = test_seed();

    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++) {
        for (unsigned n = 0; n < 300; n++)
            check_round_trip(&kinds[i], &random);
    }
}

TEST(types_have_names_and_others_are_refused)
{
    uint8_t body[8];
    struct message message;
    size_t size;
    Kvcached__GrantAck ack = KVCACHED__GRANT_ACK__INIT;

    for (unsigned i = 0; i < ARRAY_SIZE(kinds); i++)
        check_str(codec_type_name(kinds[i].type), kinds[i].name);
    for (unsigned type = 0; type <= UINT16_MAX; type++) {
        if (codec_type_name((uint16_t)type))
            continue;
        check_eq(codec_encode((uint16_t)type, 0, 0, &ack.base, frame, &size), CODEC_E_TYPE);
        check_eq(decode_body((uint16_t)type, body, 0, &message), CODEC_E_TYPE);
    }
}

static void check_bytes(uint16_t type, uint32_t request, unsigned n_fds, const ProtobufCMessage *body,
                        const char *expected, size_t expected_size)
{
    size_t size;

    check_eq(codec_encode(type, request, n_fds, body, frame, &size), 0);
    check_eq(size, expected_size);
    for (size_t i = 0; i < size; i++)
        check_eq(frame[i], (uint8_t)expected[i]);
}

#define CHECK_BYTES(type, request, n_fds, body, bytes)                                                       \
    check_bytes(type, request, n_fds, &(body)->base, bytes, sizeof(bytes) - 1)

TEST(hello_has_these_bytes)
{
    Kvcached__Hello hello = KVCACHED__HELLO__INIT;

    hello.min_version = 1;
    hello.max_version = 1;
    hello.role = KVCACHED__ROLE__ROLE_ENGINE;
    hello.instance = (char *)"llama";
    hello.limit_ppm = 500000;
    hello.program = (char *)"sh";
    CHECK_BYTES(MESSAGE_HELLO, 1, 0, &hello,
                "KVCD\x01\x00\x01\x00\x15\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"
                "\x08\x01\x10\x01\x20\x01\x2a\x05llama\x38\xa0\xc2\x1e\x42\x02sh");
}

TEST(take_has_these_bytes)
{
    Kvcached__Take take = KVCACHED__TAKE__INIT;

    take.region = 3;
    take.pages = 200;
    CHECK_BYTES(MESSAGE_TAKE, 0x01020304, 0, &take,
                "KVCD\x01\x00\x14\x00\x05\x00\x00\x00\x04\x03\x02\x01\x00\x00\x00\x00"
                "\x08\x03\x10\xc8\x01");
}

TEST(grant_has_these_bytes)
{
    Kvcached__Grant grant = KVCACHED__GRANT__INIT;
    uint64_t extents[] = {1, UINT64_C(0x8000000000000002)};

    grant.extents = extents;
    grant.n_extents = ARRAY_SIZE(extents);
    grant.remaining = 5;
    CHECK_BYTES(MESSAGE_GRANT, 9, 2, &grant,
                "KVCD\x01\x00\x15\x00\x14\x00\x00\x00\x09\x00\x00\x00\x02\x00\x00\x00"
                "\x0a\x10\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x80\x10\x05");
}

TEST(limit_of_zero_differs_from_no_limit)
{
    Kvcached__SetLimit set_limit = KVCACHED__SET_LIMIT__INIT;

    set_limit.instance = (char *)"a";
    CHECK_BYTES(MESSAGE_SET_LIMIT, 0, 0, &set_limit,
                "KVCD\x01\x00\x42\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0a\x01"
                "a");
    set_limit.limit_case = KVCACHED__SET_LIMIT__LIMIT_BYTES;
    CHECK_BYTES(MESSAGE_SET_LIMIT, 0, 0, &set_limit,
                "KVCD\x01\x00\x42\x00\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0a\x01"
                "a\x10\x00");
}

TEST(message_larger_than_a_frame_is_refused)
{
    static uint64_t extents[FRAME_SIZE_MAX / 8];
    Kvcached__Return return_ = KVCACHED__RETURN__INIT;
    size_t size = 7;

    return_.extents = extents;
    return_.n_extents = 8189; /* with header, key and length a full frame */
    check_eq(codec_encode(MESSAGE_RETURN, 1, 0, &return_.base, frame, &size), 0);
    check_eq(size, FRAME_SIZE_MAX);
    return_.n_extents++;
    check_eq(codec_encode(MESSAGE_RETURN, 1, 0, &return_.base, frame, &size), CODEC_E_SPACE);
    check_eq(size, FRAME_SIZE_MAX);
}

#define DECODE(type, bytes, message) decode_body(type, bytes, sizeof(bytes) - 1, message)

TEST(embedded_nul_is_refused_wherever_it_stands)
{
    struct message message;

    check_eq(DECODE(MESSAGE_DELETE,
                    "\x0a\x03"
                    "a\0b",
                    &message),
             CODEC_E_BODY);
    check_eq(DECODE(MESSAGE_DELETE, "\x0a\x01\0", &message), CODEC_E_BODY);
    /* The second of two, and in an instance of a list's peers. */
    check_eq(DECODE(MESSAGE_LIST, "\x0a\x01z\x0a\x02\0z", &message), CODEC_E_BODY);
    check_eq(DECODE(MESSAGE_LIST_REPLY, "\x0a\x05\x5a\x03\x1a\x01\0", &message), CODEC_E_BODY);
    check_eq(DECODE(MESSAGE_LIST_REPLY, "\x0a\x05\x5a\x03\x1a\x01z", &message), 0);
    message_deinit(&message);
    /* Bytes may contain what they like. */
    check_eq(DECODE(MESSAGE_CHALLENGE, "\x0a\x02\0\0", &message), 0);
    check_eq(((const Kvcached__Challenge *)message.body)->nonce.len, 2);
    message_deinit(&message);
}

TEST(unknown_fields_are_ignored)
{
    struct message message;
    const Kvcached__Take *take;

    /* A varint, a 64-bit, a 32-bit and a length-prefixed field (with a NUL) of numbers that Take lacks. */
    check_eq(DECODE(MESSAGE_TAKE,
                    "\x08\x03\x78\x01\x79"
                    "12345678\x7d"
                    "1234\x7a\x01\0\x10\x04",
                    &message),
             0);
    take = (const Kvcached__Take *)message.body;
    check_eq(take->region, 3);
    check_eq(take->pages, 4);
    message_deinit(&message);
}

/* In each way of writing: Take has a shortcut, Lease has none. */
TEST(unknown_fields_are_written_again)
{
    static const uint8_t body[] = {0x08, 0x03, 0x40, 0x26};
    const uint16_t types[] = {MESSAGE_TAKE, MESSAGE_LEASE};

    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        struct message message;
        size_t size;

        check_eq(decode_body(types[i], body, sizeof(body), &message), 0);
        check_eq(codec_encode(types[i], 1, 0, message.body, frame, &size), 0);
        check_eq(size, FRAME_HEADER_SIZE + sizeof(body));
        check(memcmp(frame + FRAME_HEADER_SIZE, body, sizeof(body)) == 0);
        message_deinit(&message);
    }
}

TEST(enums_out_of_range_are_for_the_handler)
{
    struct message message;

    check_eq(DECODE(MESSAGE_HELLO, "\x20\x63", &message), 0);
    check_eq(((const Kvcached__Hello *)message.body)->role, 99);
    message_deinit(&message);
}

TEST(broken_bodies_are_refused)
{
    struct message message;

    check_eq(DECODE(MESSAGE_TAKE, "\x08", &message), CODEC_E_BODY);         /* no value */
    check_eq(DECODE(MESSAGE_TAKE, "\x80\x80", &message), CODEC_E_BODY);     /* half a key */
    check_eq(DECODE(MESSAGE_TAKE, "\x0a\x01\x01", &message), CODEC_E_BODY); /* the wrong wire type */
    check_eq(DECODE(MESSAGE_TAKE, "\x0b\x0c", &message), CODEC_E_BODY);     /* a group */
    check_eq(DECODE(MESSAGE_TAKE, "\x00\x01", &message), CODEC_E_BODY);     /* field number 0 */
    check_eq(DECODE(MESSAGE_TAKE, "\x80\x00\x01", &message), CODEC_E_BODY); /* the same, the long way */
    check_eq(DECODE(MESSAGE_TAKE, "\x80\x80\x80\x80\x10\x01", &message), CODEC_E_BODY); /* ... 2^29 */
    check_eq(DECODE(MESSAGE_DELETE, "\x0a\x02z", &message), CODEC_E_BODY); /* text beyond the end */
    check_eq(DECODE(MESSAGE_RETURN,
                    "\x0a\x07"
                    "1234567",
                    &message),
             CODEC_E_BODY); /* 7/8 of an id */
    check_eq(DECODE(MESSAGE_DELETE, "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01z", &message), CODEC_E_BODY);
}

/* Returns the body's size. */
static size_t repeat(uint8_t *body, const char *unit, size_t unit_size)
{
    size_t n = 0;

    for (; n + unit_size <= FRAME_SIZE_MAX - FRAME_HEADER_SIZE; n += unit_size)
        memcpy(body + n, unit, unit_size);
    return n;
}

TEST(a_frame_that_unfolds_without_end_is_refused)
{
    static uint8_t body[FRAME_SIZE_MAX];
    struct message message;

    check_eq(decode_body(MESSAGE_LIST_REPLY, body, repeat(body, "\x0a\x00", 2), &message), CODEC_E_BODY);
    check_eq(decode_body(MESSAGE_LIST, body, repeat(body, "\x0a\x00", 2), &message), CODEC_E_BODY);
    check_eq(decode_body(MESSAGE_TAKE, body, repeat(body, "\x7a\x00", 2), &message), CODEC_E_BODY);
}

/* The largest honest answers must fit the arena: here a page full of peers, as short as they come. */
TEST(a_full_page_of_peers_is_accepted)
{
    static const char peer[] = "\x5a\x0d\x08\x80\x01\x10\x01\x1a\x04vllm\x20\x01";
    static uint8_t body[FRAME_SIZE_MAX], peers[FRAME_SIZE_MAX - 64];
    struct message message;
    size_t n = 0;

    for (; n + sizeof(peer) - 1 <= sizeof(peers); n += sizeof(peer) - 1)
        memcpy(peers + n, peer, sizeof(peer) - 1);
    body[0] = 0x0a;
    body[1] = (uint8_t)(0x80 | (n & 0x7f));
    body[2] = (uint8_t)(0x80 | (n >> 7 & 0x7f));
    body[3] = (uint8_t)(n >> 14);
    memcpy(body + 4, peers, n);
    check_eq(decode_body(MESSAGE_LIST_REPLY, body, n + 4, &message), 0);
    check_eq(((const Kvcached__ListReply *)message.body)->instances[0]->n_peers, n / (sizeof(peer) - 1));
    message_deinit(&message);
}

/* Honest frames with a few bytes changed, cut or added: any answer will do that sanitizers agree with. */
TEST(damaged_frames_do_no_damage)
{
    uint64_t random = test_seed();
    struct message message;
    size_t size;

    for (unsigned i = 0; i < 20000; i++) {
        const struct kind *kind = &kinds[test_random(&random) % ARRAY_SIZE(kinds)];
        ProtobufCMessage *original = random_message(kind->descriptor, &random);
        struct frame_header header = {.type = kind->type};
        uint8_t *exact;
        int r;

        check_eq(codec_encode(kind->type, 1, 0, original, frame, &size), 0);
        protobuf_c_message_free_unpacked(original, NULL);
        for (uint64_t n = test_random(&random) % 4; n > 0 && size > FRAME_HEADER_SIZE; n--)
            frame[FRAME_HEADER_SIZE + test_random(&random) % (size - FRAME_HEADER_SIZE)] =
                (uint8_t)test_random(&random);
        size -= test_random(&random) % 3;
        size = size < FRAME_HEADER_SIZE ? FRAME_HEADER_SIZE : size;
        header.length = (uint32_t)(size - FRAME_HEADER_SIZE);
        exact = allocate(size);
        memcpy(exact, frame, size);
        r = codec_decode(exact, &header, &message);
        check(r == 0 || r == CODEC_E_BODY);
        if (r == 0)
            message_deinit(&message);
        free(exact);
    }
}
