/* SPDX-License-Identifier: Apache-2.0 */

/* One allocation that doubles. */

#include "text_buffer.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_SIZE 4096

void text_buffer_deinit(struct text_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct text_buffer){0};
}

/* Room for so many more bytes and a NUL. */
static bool reserve(struct text_buffer *buffer, size_t n)
{
    size_t size = buffer->size ?: FIRST_SIZE;
    char *data;

    if (buffer->failed)
        return false;
    while (size - buffer->length <= n)
        size *= 2;
    if (size == buffer->size)
        return true;
    data = realloc(buffer->data, size);
    if (!data) {
        buffer->failed = true;
        return false;
    }
    buffer->data = data;
    buffer->size = size;
    return true;
}

void text_buffer_add_n(struct text_buffer *buffer, const char *text, size_t length)
{
    if (!reserve(buffer, length))
        return;
    memcpy(buffer->data + buffer->length, text, length);
    buffer->length += length;
    buffer->data[buffer->length] = '\0';
}

void text_buffer_add(struct text_buffer *buffer, const char *text)
{
    text_buffer_add_n(buffer, text, strlen(text));
}

void text_buffer_add_u64(struct text_buffer *buffer, uint64_t number)
{
    char digits[20], *end = digits + sizeof(digits), *first = end;

    do
        *--first = (char)('0' + number % 10);
    while (number /= 10);
    text_buffer_add_n(buffer, first, (size_t)(end - first));
}

void text_buffer_printf(struct text_buffer *buffer, const char *format, ...)
{
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0 || !reserve(buffer, (size_t)n)) {
        buffer->failed = true;
        return;
    }
    va_start(args, format);
    vsnprintf(buffer->data + buffer->length, (size_t)n + 1, format, args);
    va_end(args);
    buffer->length += (size_t)n;
}
