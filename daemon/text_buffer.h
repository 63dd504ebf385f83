/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Text that grows at its end. A failure is remembered, and what is added after it is dropped: so whoever
 * writes much asks once, at the end. Pure.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct text_buffer {
    char *data; /* NUL-terminated where it isn't NULL */
    size_t length, size;
    bool failed;
};

void text_buffer_deinit(struct text_buffer *buffer);

void text_buffer_add(struct text_buffer *buffer, const char *text);
void text_buffer_add_n(struct text_buffer *buffer, const char *text, size_t length);
void text_buffer_add_u64(struct text_buffer *buffer, uint64_t number);
void __attribute__((format(printf, 2, 3)))
text_buffer_printf(struct text_buffer *buffer, const char *format, ...);
