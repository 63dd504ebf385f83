/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Walks protobuf-c's descriptors, so that it knows every message of the schema, the next one too. What it
 * builds lives in malloc()ed memory, laid out as protobuf-c's own unpacking would have made it.
 */

#include "message_text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/parse.h"

static const struct {
    uint16_t type;
    const char *name;
    const ProtobufCMessageDescriptor *descriptor;
} kinds[] = {
#define X(number, upper, camel, lower) {number, #camel, &kvcached__##lower##__descriptor},
    MESSAGES(X)
#undef X
};

static int __attribute__((format(printf, 2, 3))) fail(char *error, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, MESSAGE_TEXT_ERROR_MAX, format, args);
    va_end(args);
    return -EINVAL;
}

static void *allocate(size_t size)
{
    void *p = calloc(1, size + 1);

    if (!p)
        abort();
    return p;
}

/* 0 for a type that this file cannot read. */
static size_t element_size(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_STRING:
        return sizeof(char *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return sizeof(uint64_t);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_ENUM:
        return sizeof(uint32_t);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    default:
        return 0;
    }
}

/* ---- Reading ---- */

static int hex_digit(char c)
{
    const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c) : NULL;

    return at ? (int)(at - digits) : -1;
}

ptrdiff_t message_text_unhex(char *text)
{
    size_t n = strlen(text);

    if (n % 2 != 0)
        return -EINVAL;
    for (size_t i = 0; i < n / 2; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);

        if (high < 0 || low < 0)
            return -EINVAL;
        text[i] = (char)(high << 4 | low);
    }
    return (ptrdiff_t)(n / 2);
}

/* In place. */
static int decode_percent(char *text)
{
    char *to = text;

    for (; *text; text++, to++) {
        *to = *text;
        if (*text != '%')
            continue;
        if (hex_digit(text[1]) < 0 || hex_digit(text[2]) < 0)
            return -EINVAL;
        *to = (char)(hex_digit(text[1]) << 4 | hex_digit(text[2]));
        text += 2;
    }
    *to = '\0';
    return 0;
}

static int read_number(const ProtobufCFieldDescriptor *field, const char *text, uint64_t *ret)
{
    const ProtobufCEnumValue *named = NULL;

    if (field->type == PROTOBUF_C_TYPE_ENUM)
        named = protobuf_c_enum_descriptor_get_value_by_name(field->descriptor, text);
    if (named) {
        *ret = (uint64_t)named->value;
        return 0;
    }
    return parse_u64(text, ret);
}

static int read_bytes(char *text, ProtobufCBinaryData *to)
{
    char *copy = strdup(text);
    ptrdiff_t n = copy ? message_text_unhex(copy) : -ENOMEM;

    if (n < 0) {
        free(copy);
        return -EINVAL;
    }
    *to = (ProtobufCBinaryData){.len = (size_t)n, .data = (uint8_t *)copy};
    return 0;
}

static int read_value(const ProtobufCFieldDescriptor *field, char *text, void *to)
{
    uint64_t number;

    if (field->type == PROTOBUF_C_TYPE_BYTES)
        return read_bytes(text, to);
    if (field->type == PROTOBUF_C_TYPE_STRING) {
        if (decode_percent(text) < 0)
            return -EINVAL;
        *(char **)to = strdup(text);
        return 0;
    }
    if (read_number(field, text, &number) < 0)
        return -EINVAL;
    memcpy(to, &number, element_size(field->type));
    return 0;
}

static int read_list(const ProtobufCFieldDescriptor *field, char *text, ProtobufCMessage *message)
{
    size_t *n = (size_t *)((char *)message + field->quantifier_offset), size = element_size(field->type);
    char **array = (char **)((char *)message + field->offset), *item;
    size_t commas = 0;

    for (const char *p = text; *p; p++)
        commas += *p == ',';
    *array = allocate((commas + 1) * size);
    while ((item = strsep(&text, ","))) {
        if (read_value(field, item, *array + *n * size) < 0)
            return -EINVAL;
        ++*n;
    }
    return 0;
}

static int read_field(const ProtobufCFieldDescriptor *field, char *text, ProtobufCMessage *message)
{
    if (field->label == PROTOBUF_C_LABEL_REPEATED)
        return read_list(field, text, message);
    if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        *(uint32_t *)((char *)message + field->quantifier_offset) = field->id;
    return read_value(field, text, (char *)message + field->offset);
}

static int read_assignment(char *text, ProtobufCMessage *message, char *error)
{
    const ProtobufCFieldDescriptor *field;
    char *value = strchr(text, '=');

    if (!value)
        return fail(error, "%.40s is no name=value", text);
    *value++ = '\0';
    field = protobuf_c_message_descriptor_get_field_by_name(message->descriptor, text);
    if (!field || element_size(field->type) == 0)
        return fail(error, "%.40s has no field %.40s that can be set", message->descriptor->short_name, text);
    if (read_field(field, value, message) < 0)
        return fail(error, "%.40s has a value that it cannot have", text);
    return 0;
}

int message_text_parse(const char *name, char **fields, uint16_t *ret_type, ProtobufCMessage **ret,
                       char error[static MESSAGE_TEXT_ERROR_MAX])
{
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        ProtobufCMessage *message;

        if (strcmp(kinds[i].name, name) != 0)
            continue;
        message = allocate(kinds[i].descriptor->sizeof_message);
        protobuf_c_message_init(kinds[i].descriptor, message);
        for (; *fields; fields++) {
            if (read_assignment(*fields, message, error) < 0) {
                message_text_free(message);
                return -EINVAL;
            }
        }
        *ret_type = kinds[i].type;
        *ret = message;
        return 0;
    }
    return fail(error, "there is no message %.40s", name);
}

ProtobufCMessage *message_text_free(ProtobufCMessage *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
    return NULL;
}

/* ---- Writing ---- */

static void print_text(const char *text, FILE *out)
{
    for (; *text; text++) {
        if ((unsigned char)*text <= ' ' || (unsigned char)*text > '~' || strchr("%,{}", *text))
            fprintf(out, "%%%02x", (unsigned char)*text);
        else
            fputc(*text, out);
    }
}

static void print_enum(const ProtobufCFieldDescriptor *field, int value, FILE *out)
{
    const ProtobufCEnumValue *named = protobuf_c_enum_descriptor_get_value(field->descriptor, value);

    if (named)
        fputs(named->name, out);
    else
        fprintf(out, "%d", value);
}

static void print_value(const ProtobufCFieldDescriptor *field, const void *at, FILE *out)
{
    const ProtobufCBinaryData *bytes = at;

    switch (field->type) {
    case PROTOBUF_C_TYPE_STRING:
        print_text(*(char *const *)at, out);
        break;
    case PROTOBUF_C_TYPE_BYTES:
        for (size_t i = 0; i < bytes->len; i++)
            fprintf(out, "%02x", bytes->data[i]);
        break;
    case PROTOBUF_C_TYPE_MESSAGE:
        fputc('{', out);
        message_text_print(*(ProtobufCMessage *const *)at, out);
        fputs(" }", out);
        break;
    case PROTOBUF_C_TYPE_ENUM:
        print_enum(field, *(const int *)at, out);
        break;
    case PROTOBUF_C_TYPE_INT32:
        fprintf(out, "%" PRId32, *(const int32_t *)at);
        break;
    case PROTOBUF_C_TYPE_UINT32:
        fprintf(out, "%" PRIu32, *(const uint32_t *)at);
        break;
    case PROTOBUF_C_TYPE_BOOL:
        fprintf(out, "%d", *(const protobuf_c_boolean *)at);
        break;
    default:
        fprintf(out, "%" PRIu64, *(const uint64_t *)at);
    }
}

static size_t stride_of(const ProtobufCFieldDescriptor *field)
{
    return field->type == PROTOBUF_C_TYPE_MESSAGE ? sizeof(void *) : element_size(field->type);
}

static void print_field(const ProtobufCFieldDescriptor *field, const ProtobufCMessage *message, FILE *out)
{
    const char *at = (const char *)message + field->offset;
    size_t n;

    fprintf(out, " %s=", field->name);
    if (field->label != PROTOBUF_C_LABEL_REPEATED) {
        print_value(field, at, out);
        return;
    }
    n = *(const size_t *)((const char *)message + field->quantifier_offset);
    for (size_t i = 0; i < n; i++) {
        if (i > 0)
            fputc(',', out);
        print_value(field, *(const char *const *)at + i * stride_of(field), out);
    }
}

static bool is_there(const ProtobufCFieldDescriptor *field, const ProtobufCMessage *message)
{
    const void *quantifier = (const char *)message + field->quantifier_offset;

    if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        return *(const uint32_t *)quantifier == field->id;
    if (field->type == PROTOBUF_C_TYPE_MESSAGE && field->label != PROTOBUF_C_LABEL_REPEATED)
        return *(void *const *)((const char *)message + field->offset) != NULL;
    return true;
}

void message_text_print(const ProtobufCMessage *message, FILE *out)
{
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];

        if (is_there(field, message))
            print_field(field, message, out);
    }
}
