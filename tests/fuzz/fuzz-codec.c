/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The input is a message type and a body. What is accepted can be encoded, unless unpacked lists make the
 * canonical form larger than a frame, and then means the same: its second encoding equals the first. It is
 * what protobuf-c takes it for.
 */

#include <stdlib.h>
#include <string.h>

#include "wire/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int decode(const uint8_t *packet, size_t size, struct message *ret)
{
    struct frame_header header;

    if (frame_read_header(packet, size, &header) != 0)
        abort();
    return codec_decode(packet, &header, ret);
}

/* The size of the frame, 0 when it fits none. */
static size_t encode(const struct message *message, uint8_t *frame)
{
    size_t size;

    switch (codec_encode(message->type, message->request, 0, message->body, frame, &size)) {
    case 0:
        return size;
    case CODEC_E_SPACE:
        return 0;
    }
    abort();
}

static void compare(const uint8_t *bytes, size_t size, const struct message *message, const uint8_t *frame,
                    size_t frame_size)
{
    static uint8_t packed[FRAME_SIZE_MAX];
    ProtobufCMessage *body = protobuf_c_message_unpack(message->body->descriptor, NULL, size, bytes);
    size_t n = frame_size - FRAME_HEADER_SIZE;

    if (!body || protobuf_c_message_get_packed_size(body) != n)
        abort();
    protobuf_c_message_pack(body, packed);
    if (memcmp(packed, frame + FRAME_HEADER_SIZE, n) != 0)
        abort();
    protobuf_c_message_free_unpacked(body, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t packet[FRAME_SIZE_MAX], first[FRAME_SIZE_MAX], second[FRAME_SIZE_MAX];
    struct frame_header header = {.version = FRAME_VERSION, .request = 1};
    struct message message;
    size_t n;

    if (size < 1 || size - 1 > sizeof(packet) - FRAME_HEADER_SIZE)
        return 0;
    header.type = data[0];
    header.length = (uint32_t)(size - 1);
    frame_write_header(packet, &header);
    memcpy(packet + FRAME_HEADER_SIZE, data + 1, size - 1);
    if (decode(packet, FRAME_HEADER_SIZE + size - 1, &message) != 0)
        return 0;
    n = encode(&message, first);
    if (n != 0)
        compare(data + 1, size - 1, &message, first, n);
    message_deinit(&message);
    if (n == 0)
        return 0;

    if (decode(first, n, &message) != 0)
        abort();
    if (encode(&message, second) != n || memcmp(first, second, n) != 0)
        abort();
    message_deinit(&message);
    return 0;
}
