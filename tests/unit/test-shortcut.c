/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "wire/shortcut.h"

#define BODY_MAX 512
#define EXTENTS_MAX 40

static void *take_memory(void *data, size_t size)
{
    return malloc(size);
}

static void *no_memory(void *data, size_t size)
{
    return NULL;
}

/* As many bits as chance will have it, so that all lengths occur. */
static uint64_t random_number(uint64_t *random)
{
    uint64_t value = (uint64_t)test_random(random) << 32 | test_random(random);

    return test_random(random) % 4 == 0 ? 0 : value >> test_random(random) % 64;
}

/* What protobuf-c and the shortcut write is the same, and is read as what was written. */
static void check_same(const struct shortcut *shortcut, const ProtobufCMessage *body)
{
    uint8_t expected[BODY_MAX], bytes[BODY_MAX];
    size_t size = protobuf_c_message_get_packed_size(body);
    ProtobufCMessage *copy;

    check_eq(shortcut->size(body), size);
    protobuf_c_message_pack(body, expected);
    shortcut->write(body, bytes);
    check(memcmp(bytes, expected, size) == 0);

    copy = shortcut->read(bytes, size, take_memory, NULL);
    check(copy != NULL);
    check_eq(protobuf_c_message_get_packed_size(copy), size);
    protobuf_c_message_pack(copy, bytes);
    check(memcmp(bytes, expected, size) == 0);
    free(copy);
    check(shortcut->read(expected, size, no_memory, NULL) == NULL);
}

static void check_take(uint32_t region, uint32_t pages, bool leased)
{
    Kvcached__Take take = KVCACHED__TAKE__INIT;

    take.region = region;
    take.pages = pages;
    take.leased = leased;
    check_same(&shortcut_take, &take.base);
}

static void check_grant(uint64_t *extents, size_t n, uint64_t remaining)
{
    Kvcached__Grant grant = KVCACHED__GRANT__INIT;

    grant.extents = extents;
    grant.n_extents = n;
    grant.remaining = remaining;
    check_same(&shortcut_grant, &grant.base);
}

/* A field that is added to one of them has to be added to its shortcut. */
TEST(all_fields_are_known)
{
    check_eq(kvcached__take__descriptor.n_fields, 3);
    check_eq(kvcached__grant__descriptor.n_fields, 2);
}

TEST(edges_of_numbers)
{
    const uint64_t edges[] = {0,
                              1,
                              0x7f,
                              0x80,
                              0x3fff,
                              0x4000,
                              UINT32_MAX,
                              (uint64_t)UINT32_MAX + 1,
                              UINT64_MAX >> 1,
                              (UINT64_MAX >> 1) + 1,
                              UINT64_MAX};
    uint64_t extent = UINT64_MAX;

    for (size_t i = 0; i < ARRAY_SIZE(edges); i++) {
        check_take((uint32_t)edges[i], 1, false);
        check_take(1, (uint32_t)edges[i], true);
        check_grant(NULL, 0, edges[i]);
        check_grant(&extent, 1, edges[i]);
    }
}

TEST(random_bodies)
{
    uint64_t random = test_seed(), extents[EXTENTS_MAX];

    for (unsigned round = 0; round < 20000; round++) {
        check_take((uint32_t)random_number(&random), (uint32_t)random_number(&random),
                   test_random(&random) % 2);
        for (unsigned i = 0; i < EXTENTS_MAX; i++)
            extents[i] = random_number(&random);
        check_grant(extents, test_random(&random) % EXTENTS_MAX, random_number(&random));
    }
}

/* Of what may be valid or not: the shortcut reads it just as protobuf-c does, and writes the same bytes
 * again, or leaves it alone. */
static bool check_guesses_nothing(const struct shortcut *shortcut,
                                  const ProtobufCMessageDescriptor *descriptor, const uint8_t *bytes,
                                  size_t size)
{
    uint8_t *exact = malloc(size ? size : 1), again[BODY_MAX];
    ProtobufCMessage *body, *expected;

    check(exact != NULL);
    memcpy(exact, bytes, size); /* in memory that ends where the body ends, for those who watch over that */
    body = shortcut->read(exact, size, take_memory, NULL);
    free(exact);
    if (!body)
        return false;
    expected = protobuf_c_message_unpack(descriptor, NULL, size, bytes);
    check(expected != NULL);
    check_eq(protobuf_c_message_get_packed_size(expected), size);
    protobuf_c_message_pack(expected, again);
    check(memcmp(again, bytes, size) == 0);
    check_eq(shortcut->size(body), size);
    shortcut->write(body, again);
    check(memcmp(again, bytes, size) == 0);
    protobuf_c_message_free_unpacked(expected, NULL);
    free(body);
    return true;
}

static size_t damage(uint8_t *bytes, size_t size, uint64_t *random)
{
    switch (test_random(random) % 4) {
    case 0:
        return size ? test_random(random) % size : 0;
    case 1:
        bytes[size] = (uint8_t)test_random(random);
        return size + 1;
    default:
        if (size)
            bytes[test_random(random) % size] = (uint8_t)test_random(random);
        return size;
    }
}

TEST(damaged_bodies)
{
    Kvcached__Take take = KVCACHED__TAKE__INIT;
    Kvcached__Grant grant = KVCACHED__GRANT__INIT;
    uint64_t random = test_seed(), extents[EXTENTS_MAX] = {};
    unsigned n_read = 0, n_left = 0;
    uint8_t bytes[BODY_MAX];

    grant.extents = extents;
    for (unsigned round = 0; round < 100000; round++) {
        bool is_take = test_random(&random) % 2;
        const struct shortcut *shortcut = is_take ? &shortcut_take : &shortcut_grant;
        const ProtobufCMessage *body = is_take ? &take.base : &grant.base;
        size_t size;

        take.region = (uint32_t)random_number(&random);
        take.pages = (uint32_t)random_number(&random);
        take.leased = test_random(&random) % 2;
        grant.n_extents = test_random(&random) % 4;
        grant.remaining = random_number(&random);
        shortcut->write(body, bytes);
        size = damage(bytes, shortcut->size(body), &random);
        if (check_guesses_nothing(shortcut, body->descriptor, bytes, size))
            n_read++;
        else
            n_left++;
    }
    check(n_read > 1000 && n_left > 1000);
}

static void check_left_alone(const struct shortcut *shortcut, const char *bytes, size_t size)
{
    check(shortcut->read((const uint8_t *)bytes, size, take_memory, NULL) == NULL);
}

#define CHECK_LEFT_ALONE(shortcut, bytes) check_left_alone(shortcut, bytes, sizeof(bytes) - 1)

TEST(other_forms_are_left_to_protobuf)
{
    CHECK_LEFT_ALONE(&shortcut_take, "\x10\x01\x08\x01");                          /* out of order */
    CHECK_LEFT_ALONE(&shortcut_take, "\x08\x01\x08\x02");                          /* twice */
    CHECK_LEFT_ALONE(&shortcut_take, "\x08\x01\x20\x01");                          /* an unknown field */
    CHECK_LEFT_ALONE(&shortcut_take, "\x08\x00");                                  /* a default value */
    CHECK_LEFT_ALONE(&shortcut_take, "\x08\x81\x00");                              /* longer than needed */
    CHECK_LEFT_ALONE(&shortcut_take, "\x08\x80\x80\x80\x80\x10");                  /* 2^32 */
    CHECK_LEFT_ALONE(&shortcut_take, "\x18\x02");                                  /* a bool of 2 */
    CHECK_LEFT_ALONE(&shortcut_take, "\x08");                                      /* cut off */
    CHECK_LEFT_ALONE(&shortcut_grant, "\x0a\x00");                                 /* none */
    CHECK_LEFT_ALONE(&shortcut_grant, "\x0a\x04\x01\x02\x03\x04");                 /* half an extent */
    CHECK_LEFT_ALONE(&shortcut_grant, "\x0a\x10\x01\x02\x03\x04\x05\x06\x07\x08"); /* one of two */
    CHECK_LEFT_ALONE(&shortcut_grant, "\x09\x01\x02\x03\x04\x05\x06\x07\x08");     /* unpacked */
    CHECK_LEFT_ALONE(&shortcut_grant, "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"); /* 65 bits */
}
