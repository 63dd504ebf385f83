/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Codec: messages of kvcached.proto to and from frames. Pure.
 *
 * Decoding a hostile packet costs a bounded amount of memory: everything that a message needs comes out of
 * one arena of at most CODEC_ARENA_MAX bytes, which message_deinit() frees.
 */

#include <stddef.h>
#include <stdint.h>

#include "kvcached.pb-c.h"
#include "wire/frame.h"

/* Enough for whatever fits a frame and is packed as protobuf packs it. */
#define CODEC_ARENA_MAX (1024 * 1024)

/* number, NAME, protobuf type, lower-case name */
/* clang-format off */
#define MESSAGES(X)                                                                                          \
    X(1, HELLO, Hello, hello)                                                                                \
    X(2, CHALLENGE, Challenge, challenge)                                                                    \
    X(3, CHALLENGE_REPLY, ChallengeReply, challenge_reply)                                                   \
    X(4, WELCOME, Welcome, welcome)                                                                          \
    X(5, REFUSED, Refused, refused)                                                                          \
    X(16, REGION_OPEN, RegionOpen, region_open)                                                              \
    X(17, REGION_OPENED, RegionOpened, region_opened)                                                        \
    X(18, REGION_CLOSE, RegionClose, region_close)                                                           \
    X(19, REGION_CLOSED, RegionClosed, region_closed)                                                        \
    X(20, TAKE, Take, take)                                                                                  \
    X(21, GRANT, Grant, grant)                                                                               \
    X(22, GRANT_ACK, GrantAck, grant_ack)                                                                    \
    X(23, RETURN, Return, return)                                                                            \
    X(24, RETURNED, Returned, returned)                                                                      \
    X(25, LEASE, Lease, lease)                                                                               \
    X(26, LEASED, Leased, leased)                                                                            \
    X(27, NOTICE, Notice, notice)                                                                            \
    X(28, NOTICE_ACK, NoticeAck, notice_ack)                                                                 \
    X(32, REGION_ATTACH, RegionAttach, region_attach)                                                        \
    X(33, REGION_ATTACHED, RegionAttached, region_attached)                                                  \
    X(34, MAP, Map, map)                                                                                     \
    X(35, MAPPED, Mapped, mapped)                                                                            \
    X(36, UNMAP, Unmap, unmap)                                                                               \
    X(37, UNMAPPED, Unmapped, unmapped)                                                                      \
    X(38, MAP_ORDER, MapOrder, map_order)                                                                    \
    X(39, UNMAP_ORDER, UnmapOrder, unmap_order)                                                              \
    X(40, ORDER_DONE, OrderDone, order_done)                                                                 \
    X(41, RESERVE, Reserve, reserve)                                                                         \
    X(42, RESERVED, Reserved, reserved)                                                                      \
    X(43, RELEASE, Release, release)                                                                         \
    X(44, RELEASED, Released, released)                                                                      \
    X(64, LIST, List, list)                                                                                  \
    X(65, LIST_REPLY, ListReply, list_reply)                                                                 \
    X(66, SET_LIMIT, SetLimit, set_limit)                                                                    \
    X(67, LIMIT_REPLY, LimitReply, limit_reply)                                                              \
    X(68, DELETE, Delete, delete)                                                                            \
    X(69, DELETE_REPLY, DeleteReply, delete_reply)                                                           \
    X(70, INFO, Info, info)                                                                                  \
    X(71, INFO_REPLY, InfoReply, info_reply)                                                                 \
    X(72, EVENTS, Events, events)                                                                            \
    X(73, EVENTS_REPLY, EventsReply, events_reply)                                                           \
    X(74, WHY, Why, why)                                                                                     \
    X(75, WHY_REPLY, WhyReply, why_reply)                                                                    \
    X(76, RELOAD, Reload, reload)                                                                            \
    X(77, RELOADED, Reloaded, reloaded)
/* clang-format on */

enum message_type {
#define X(number, upper, camel, lower) MESSAGE_##upper = number,
    MESSAGES(X)
#undef X
};

enum {
    _CODEC_E_SUCCESS,
    CODEC_E_TYPE,  /* unknown message type */
    CODEC_E_BODY,  /* not a valid body of its type, or larger than the arena */
    CODEC_E_SPACE, /* the encoded message doesn't fit a frame */
};

struct message {
    uint16_t version;
    uint16_t type;
    uint32_t request;
    uint16_t n_fds;               /* announced in the header */
    const ProtobufCMessage *body; /* cast by type: (const Kvcached__Take *)m.body; lives in the arena */
    void *arena;
};

/* "Take", or NULL for an unknown type. */
const char *codec_type_name(uint16_t type);

/* Bytes of the frame that would carry this body; may exceed FRAME_SIZE_MAX. */
size_t codec_size(const ProtobufCMessage *body);

/* Writes a whole frame to `buf`, which has room for codec_size() bytes (FRAME_SIZE_MAX always do). 0,
 * CODEC_E_TYPE or CODEC_E_SPACE. The body must be of the type's protobuf type (asserted). */
int codec_encode(uint16_t type, uint32_t request, unsigned n_fds, const ProtobufCMessage *body, uint8_t *buf,
                 size_t *ret_size);

/* The same, for who has asked for codec_size() before. */
int codec_write(uint16_t type, uint32_t request, unsigned n_fds, const ProtobufCMessage *body, size_t size,
                uint8_t *buf);

/* Parses a packet whose header frame_read_header() has accepted. 0, CODEC_E_TYPE, CODEC_E_BODY, -ENOMEM.
 * Strings in the result contain no NUL byte. */
int codec_decode(const uint8_t *packet, const struct frame_header *header, struct message *ret);

void message_deinit(struct message *message);
