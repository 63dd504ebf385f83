/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sends by hand rather than through the link, which refuses to lie. Blocks while the client doesn't read.
 */

#include "fakewire.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "test.h"

static void send_packet(int fd, const void *bytes, size_t size, const int *fds, unsigned n_fds)
{
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(128 * sizeof(int))];
    } control = {0};
    struct cmsghdr *cmsg;

    if (n_fds) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
    }
    sendmsg(fd, &msg, MSG_NOSIGNAL);
}

/* Which descriptors really go with a packet that announces `n`. */
static unsigned bend_fds(enum fake_lie lie, int *fds, unsigned n)
{
    if (lie == FAKE_EXTRA_FD)
        fds[n++] = STDERR_FILENO;
    if (lie == FAKE_MISSING_FD && n > 0)
        n--;
    if (lie == FAKE_NOT_MEMORY)
        for (unsigned i = 0; i < n; i++)
            fds[i] = STDERR_FILENO;
    return n;
}

/* Seeded by the test's seed, and different every time. */
static void add_noise(uint8_t *packet, size_t size)
{
    static uint64_t random;

    random = random ? random : test_seed();
    for (uint64_t n = 1 + test_random(&random) % 4; n > 0; n--)
        packet[test_random(&random) % size] = (uint8_t)test_random(&random);
}

static void bend_header(enum fake_lie lie, uint8_t *packet, size_t *size)
{
    struct frame_header header;

    frame_read_header(packet, *size, &header);
    if (lie == FAKE_BAD_VERSION)
        header.version = 77;
    if (lie == FAKE_UNKNOWN_TYPE)
        header.type = 999;
    if (lie == FAKE_WRONG_ID)
        header.request += 1000;
    if (lie == FAKE_UNASKED)
        header.request = 0;
    if (lie == FAKE_BAD_LENGTH)
        header.length++;
    frame_write_header(packet, &header);
    if (lie == FAKE_GARBAGE)
        memset(packet, 0xa5, *size);
    if (lie == FAKE_BAD_BODY) {
        header.length = 3;
        frame_write_header(packet, &header);
        memset(packet + FRAME_HEADER_SIZE, 0xff, 3);
        *size = FRAME_HEADER_SIZE + 3;
    }
}

void fake_answer(int fd, enum fake_lie lie, uint16_t type, uint32_t request, const ProtobufCMessage *body,
                 const int *with, unsigned n_fds)
{
    uint8_t packet[FRAME_SIZE_MAX];
    int fds[FRAME_FDS_MAX + 1];
    size_t size;

    if (n_fds)
        memcpy(fds, with, n_fds * sizeof(*fds));
    if (lie == FAKE_NO_FDS)
        n_fds = 0;
    check_eq(codec_encode(type, request, n_fds, body, packet, &size), 0);
    bend_header(lie, packet, &size);
    if (lie == FAKE_NOISE)
        add_noise(packet, size);
    n_fds = bend_fds(lie, fds, n_fds);
    send_packet(fd, packet, size, fds, n_fds);
}

void fake_refuse(int fd, uint32_t request, Kvcached__Error error, const char *reason)
{
    Kvcached__Refused body = KVCACHED__REFUSED__INIT;

    body.error = error;
    body.reason = (char *)reason;
    fake_answer(fd, FAKE_HONEST, MESSAGE_REFUSED, request, &body.base, NULL, 0);
}
