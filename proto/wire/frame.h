/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Frames: one packet of the SOCK_SEQPACKET socket is one frame, a fixed header and a protobuf body. Pure.
 *
 * Header, little-endian, FRAME_HEADER_SIZE bytes:
 *     0  u32  magic     FRAME_MAGIC
 *     4  u16  version   of the protocol that the sender speaks on this connection
 *     6  u16  type      MESSAGE_* of wire/codec.h
 *     8  u32  length    of the body in bytes; header + length is the packet's size, exactly
 *    12  u32  request   chosen by the asker, repeated in every packet of the answer; 0: not an answer
 *    16  u16  n_fds     descriptors that travel with this packet
 *    18  u16  reserved  0
 */

#include <stddef.h>
#include <stdint.h>

#define FRAME_MAGIC UINT32_C(0x4443564b) /* "KVCD" */
#define FRAME_VERSION 1
#define FRAME_HEADER_SIZE 20
#define FRAME_SIZE_MAX 65536 /* header included; a default socket buffer takes three of them */
#define FRAME_FDS_MAX 64

enum {
    _FRAME_E_SUCCESS,
    FRAME_E_SHORT,    /* shorter than a header */
    FRAME_E_MAGIC,    /* not our protocol */
    FRAME_E_LENGTH,   /* header and packet disagree, or larger than FRAME_SIZE_MAX */
    FRAME_E_FDS,      /* more descriptors announced than FRAME_FDS_MAX */
    FRAME_E_RESERVED, /* reserved bits are set */
};

struct frame_header {
    uint16_t version;
    uint16_t type;
    uint32_t length;
    uint32_t request;
    uint16_t n_fds;
};

/* Writes FRAME_HEADER_SIZE bytes. */
void frame_write_header(uint8_t *buf, const struct frame_header *header);

/* Checks a whole packet's header. 0 or FRAME_E_*. The version is not judged here. */
int frame_read_header(const uint8_t *packet, size_t size, struct frame_header *ret);

/* One sentence for a FRAME_E_* value. */
const char *frame_strerror(int error);
