/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Shortcuts: Take and Grant to bytes and back without protobuf-c, whose way through descriptors costs either
 * end of a page's round trip more than all else that it does with the message. The bytes are the same ones.
 * What a shortcut doesn't read (fields out of order, named twice, unknown or too large for their type) may
 * be valid all the same: protobuf-c decides. Pure.
 */

#include <stddef.h>
#include <stdint.h>

#include "kvcached.pb-c.h"

struct shortcut {
    /* Bytes of that body. */
    size_t (*size)(const ProtobufCMessage *body);

    /* Writes them. */
    void (*write)(const ProtobufCMessage *body, uint8_t *bytes);

    /* The body that these bytes are, in memory that `alloc` gives; NULL if that fails, or if they are not as
     * write() writes them. */
    ProtobufCMessage *(*read)(const uint8_t *bytes, size_t size, void *(*alloc)(void *data, size_t size),
                              void *data);
};

extern const struct shortcut shortcut_take, shortcut_grant;
