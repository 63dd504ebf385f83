/* SPDX-License-Identifier: Apache-2.0 */
#include "text_buffer.h"

#include <stdio.h>
#include <string.h>

#include "test.h"

/* By every function, in six characters each time. */
TEST(grows)
{
    enum { N = 20000 };
    struct text_buffer buffer = {0};
    char number[16];

    for (unsigned i = 100000; i < 100000 + N; i++) {
        snprintf(number, sizeof(number), "%u", i);
        if (i % 3 == 0)
            text_buffer_printf(&buffer, "%u", i);
        else if (i % 3 == 1)
            text_buffer_add(&buffer, number);
        else
            text_buffer_add_u64(&buffer, i);
    }
    check(!buffer.failed);
    check_eq(buffer.length, 6 * N);
    check_eq(strlen(buffer.data), buffer.length);
    for (unsigned i = 0; i < N; i++) {
        snprintf(number, sizeof(number), "%u", 100000 + i);
        check(memcmp(buffer.data + (size_t)6 * i, number, 6) == 0);
    }
    text_buffer_deinit(&buffer);
    check(buffer.data == NULL);
}

TEST(numbers)
{
    struct text_buffer buffer = {0};

    text_buffer_add_u64(&buffer, 0);
    text_buffer_add(&buffer, " ");
    text_buffer_add_u64(&buffer, UINT64_MAX);
    text_buffer_add(&buffer, "");
    check_str(buffer.data, "0 18446744073709551615");
    text_buffer_deinit(&buffer);
}

TEST(more_than_double)
{
    static char much[100000];
    struct text_buffer buffer = {0};

    memset(much, 'x', sizeof(much) - 1);
    text_buffer_add(&buffer, "a");
    text_buffer_add(&buffer, much);
    text_buffer_printf(&buffer, "%s", much);
    check_eq(buffer.length, 1 + 2 * (sizeof(much) - 1));
    check_eq(strlen(buffer.data), buffer.length);
    text_buffer_deinit(&buffer);
}
