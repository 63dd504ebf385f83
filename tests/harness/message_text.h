/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Messages as words of text, both ways, for tests. A field is name=value, a list name=value,value; in text
 * %xx is the byte of that number; bytes are hexadecimal; the value of an enum has its name or its number.
 * Submessages are written, {field=value ... }, but not read.
 */

#include <stddef.h>
#include <stdio.h>

#include "wire/codec.h"

#define MESSAGE_TEXT_ERROR_MAX 160

/* Builds the message `name` ("Take") from a NULL-terminated list of fields, which is modified. 0, or -EINVAL
 * with a sentence in `error`. Aborts when out of memory. */
int message_text_parse(const char *name, char **fields, uint16_t *ret_type, ProtobufCMessage **ret,
                       char error[static MESSAGE_TEXT_ERROR_MAX]);
ProtobufCMessage *message_text_free(ProtobufCMessage *message);

/* Writes " name=value" for each field. */
void message_text_print(const ProtobufCMessage *message, FILE *out);

/* Replaces hexadecimal digits by the bytes that they mean; how many, or -EINVAL. */
ptrdiff_t message_text_unhex(char *text);
