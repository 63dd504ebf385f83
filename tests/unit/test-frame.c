/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include <string.h>

#include "wire/frame.h"

static const struct frame_header example = {
    .version = 0x0102, .type = 0x0304, .length = 2, .request = 0x05060708, .n_fds = 64};
static const uint8_t example_bytes[FRAME_HEADER_SIZE + 2] = {
    'K', 'V', 'C', 'D', 0x02, 0x01, 0x04, 0x03, 2, 0, 0, 0, 0x08, 0x07, 0x06, 0x05, 64, 0, 0, 0, 0xaa, 0xbb};

/* A copy of the example with one byte changed. */
static int read_changed(size_t index, uint8_t value)
{
    uint8_t bytes[sizeof(example_bytes)];
    struct frame_header header;

    memcpy(bytes, example_bytes, sizeof(bytes));
    bytes[index] = value;
    return frame_read_header(bytes, sizeof(bytes), &header);
}

TEST(header_has_the_documented_bytes)
{
    uint8_t bytes[FRAME_HEADER_SIZE];

    memset(bytes, 0xff, sizeof(bytes));
    frame_write_header(bytes, &example);
    check(memcmp(bytes, example_bytes, sizeof(bytes)) == 0);
}

TEST(header_is_read_back)
{
    struct frame_header header = {0};

    check_eq(frame_read_header(example_bytes, sizeof(example_bytes), &header), 0);
    check_eq(header.version, example.version);
    check_eq(header.type, example.type);
    check_eq(header.length, example.length);
    check_eq(header.request, example.request);
    check_eq(header.n_fds, example.n_fds);
}

TEST(each_defect_has_its_error)
{
    struct frame_header header = {.type = 7};

    for (size_t size = 0; size < FRAME_HEADER_SIZE; size++)
        check_eq(frame_read_header(example_bytes, size, &header), FRAME_E_SHORT);
    check_eq(frame_read_header(example_bytes, FRAME_HEADER_SIZE, &header), FRAME_E_LENGTH);
    check_eq(frame_read_header(example_bytes, FRAME_HEADER_SIZE + 1, &header), FRAME_E_LENGTH);
    check_eq(header.type, 7);
    for (size_t i = 0; i < 4; i++)
        check_eq(read_changed(i, 0), FRAME_E_MAGIC);
    for (size_t i = 8; i < 12; i++)
        check_eq(read_changed(i, 0xff), FRAME_E_LENGTH);
    check_eq(read_changed(16, 65), FRAME_E_FDS);
    check_eq(read_changed(17, 1), FRAME_E_FDS);
    check_eq(read_changed(18, 1), FRAME_E_RESERVED);
    check_eq(read_changed(19, 0x80), FRAME_E_RESERVED);
}

TEST(largest_frame_is_the_limit)
{
    static uint8_t bytes[FRAME_SIZE_MAX + 1];
    struct frame_header header = {.length = FRAME_SIZE_MAX - FRAME_HEADER_SIZE};

    frame_write_header(bytes, &header);
    check_eq(frame_read_header(bytes, FRAME_SIZE_MAX, &header), 0);
    header.length++;
    frame_write_header(bytes, &header);
    check_eq(frame_read_header(bytes, FRAME_SIZE_MAX + 1, &header), FRAME_E_LENGTH);
}

TEST(length_cannot_wrap)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct frame_header header = {.length = UINT32_MAX - FRAME_HEADER_SIZE + 1};

    frame_write_header(bytes, &header);
    check_eq(frame_read_header(bytes, sizeof(bytes), &header), FRAME_E_LENGTH);
}

TEST(every_error_has_its_sentence)
{
    for (int a = 0; a <= FRAME_E_RESERVED + 1; a++) {
        check(strlen(frame_strerror(a)) > 0);
        for (int b = 0; b < a; b++)
            check(strcmp(frame_strerror(a), frame_strerror(b)) != 0);
    }
}
