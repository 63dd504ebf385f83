/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One socket, one queue, the only sendmsg() and the only recvmsg(). The socket may be one that blocks: only
 * who awaits notices.
 *
 * Sending: a message becomes a packet. One that the socket doesn't take, or that finds others waiting, waits
 * in the queue together with its descriptors. "Not now" is never an error. It has two kinds: a full socket,
 * which poll reports as writable later, and a user with too many descriptors in flight, which nothing reports
 * (link_is_throttled).
 *
 * Receiving distrusts the other end. Whatever arrives is judged only after every descriptor that came with it
 * is in a set that closes them. Control truncation has one meaning per kind of link:
 *   - no room was offered: the peer sent descriptors, which the kernel has dropped. A violation.
 *   - room for a full packet was offered: if fewer arrived than the header announces, the kernel stopped
 * because our table is full (LINK_E_NOFILE); if not, more were sent than any packet may carry. A violation.
 * A packet of zero bytes looks like end-of-file to recvmsg(). It is end-of-file if the other end has shut
 * down; otherwise it is a packet shorter than a header. A peer that sends an empty packet and closes at once
 * is taken for closed, which ends the connection as well.
 *
 * What a connection means, when it may speak and when it is dead is the owner's.
 */

#include "wire/link.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/list.h"

/* What needs no memory of its own to be sent; most messages do not. */
#define SMALL 256

/* In the queue. The bytes lie behind the descriptors. */
struct packet {
    struct list entry;
    size_t size;
    uint8_t *bytes;
    unsigned n_fds;
    int fds[];
};

/* What one recvmsg() brought. */
struct arrival {
    size_t size;
    int flags;
    bool has_sender;
    struct ucred sender;
    struct fdset fds;
};

struct link {
    int fd;
    bool receive_fds;
    bool throttled;
    unsigned n_queued, queue_max;
    struct list queue;
    char reason[128];

    /* Who awaits has these to itself. */
    bool is_ahead; /* link_await() has received something, or failed to */
    int ahead_r;   /* with this */
    struct arrival arrival;
    uint8_t buffer[FRAME_SIZE_MAX];
};

union rights_buffer {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(FRAME_FDS_MAX * sizeof(int))];
};

union credentials_buffer {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(struct ucred))];
};

static struct packet *packet_free(struct packet *packet)
{
    if (packet) {
        list_unlink(&packet->entry);
        fds_close(packet->fds, packet->n_fds);
        free(packet);
    }
    return NULL;
}

int link_new(int fd, bool receive_fds, unsigned queue_max, struct link **ret)
{
    struct link *link;
    int flags;

    flags = fcntl(fd, F_GETFD);
    if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0)
        return -errno;
    /* Not calloc(): pages of the buffer that nothing was received into cost nothing. */
    link = malloc(sizeof(*link));
    if (!link)
        return -ENOMEM;
    link->fd = fd;
    link->receive_fds = receive_fds;
    link->throttled = false;
    link->n_queued = 0;
    link->queue_max = queue_max;
    link->reason[0] = '\0';
    link->is_ahead = false;
    list_init(&link->queue);
    *ret = link;
    return 0;
}

static void drop_queue(struct link *link)
{
    while (!list_is_empty(&link->queue))
        packet_free(list_first(&link->queue, struct packet, entry));
    link->n_queued = 0;
}

struct link *link_free(struct link *link)
{
    if (!link)
        return NULL;
    drop_queue(link);
    if (link->is_ahead)
        fdset_deinit(&link->arrival.fds);
    close_fd(link->fd);
    free(link);
    return NULL;
}

struct link *link_forget(struct link *link)
{
    if (!link)
        return NULL;
    list_for_each_safe (it, &link->queue)
        free(container_of(it, struct packet, entry));
    free(link);
    return NULL;
}

int link_fd(const struct link *link)
{
    return link->fd;
}

static void attach(struct msghdr *msg, union rights_buffer *control, const int *fds, unsigned n)
{
    size_t size = n * sizeof(int);
    struct cmsghdr *cmsg;

    if (n == 0)
        return;
    memset(control, 0, CMSG_SPACE(size));
    msg->msg_control = control->bytes;
    msg->msg_controllen = CMSG_SPACE(size);
    cmsg = CMSG_FIRSTHDR(msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(cmsg), fds, size);
}

static int send_packet(int fd, const uint8_t *bytes, size_t size, const int *fds, unsigned n_fds)
{
    struct iovec iov = {.iov_base = (uint8_t *)bytes, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    union rights_buffer control;

    attach(&msg, &control, fds, n_fds);
    while (sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}

static bool means_later(int error)
{
    return error == -EAGAIN || error == -ENOBUFS || error == -ENOMEM || error == -ETOOMANYREFS;
}

static bool means_closed(int error)
{
    return error == -EPIPE || error == -ECONNRESET || error == -ENOTCONN;
}

/* 0, -EAGAIN if it has to wait, LINK_E_CLOSED, negative. */
static int transmit(struct link *link, const uint8_t *bytes, size_t size, const int *fds, unsigned n_fds)
{
    int r = send_packet(link->fd, bytes, size, fds, n_fds);

    link->throttled = r == -ETOOMANYREFS;
    if (means_later(r))
        return -EAGAIN;
    return means_closed(r) ? LINK_E_CLOSED : r;
}

int link_flush(struct link *link)
{
    struct packet *packet;
    int r;

    link->throttled = false;
    while ((packet = list_first(&link->queue, struct packet, entry))) {
        r = transmit(link, packet->bytes, packet->size, packet->fds, packet->n_fds);
        if (r != 0)
            return r == -EAGAIN ? 0 : r;
        packet_free(packet);
        link->n_queued--;
    }
    return 0;
}

static int enqueue(struct link *link, const uint8_t *bytes, size_t size, struct fdset *fds, unsigned n_fds)
{
    struct packet *packet = malloc(sizeof(*packet) + n_fds * sizeof(packet->fds[0]) + size);

    if (!packet)
        return -ENOMEM;
    packet->size = size;
    packet->bytes = memcpy(packet->fds + n_fds, bytes, size);
    packet->n_fds = n_fds;
    for (unsigned i = 0; i < n_fds; i++)
        packet->fds[i] = fdset_steal(fds, i);
    list_append(&link->queue, &packet->entry);
    link->n_queued++;
    if (fds)
        fds->n = 0;
    return 0;
}

int link_send(struct link *link, uint16_t type, uint32_t request, const ProtobufCMessage *body,
              struct fdset *fds)
{
    _cleanup_free_ uint8_t *large = NULL;
    uint8_t small[SMALL], *bytes = small;
    unsigned n_fds = fds ? fds->n : 0;
    size_t size = codec_size(body);
    int r;

    if (link->n_queued >= link->queue_max)
        return LINK_E_FULL;
    if (size > FRAME_SIZE_MAX)
        return -EMSGSIZE;
    if (size > sizeof(small))
        bytes = large = malloc(size);
    if (!bytes)
        return -ENOMEM;
    if (codec_write(type, request, n_fds, body, size, bytes) != 0)
        return -EINVAL;
    r = link->n_queued == 0 ? transmit(link, bytes, size, fds ? fds->fds : NULL, n_fds) : -EAGAIN;
    return r == -EAGAIN ? enqueue(link, bytes, size, fds, n_fds) : r;
}

bool link_wants_write(const struct link *link)
{
    return link->n_queued > 0 && !link->throttled;
}

bool link_is_throttled(const struct link *link)
{
    return link->throttled;
}

unsigned link_queued(const struct link *link)
{
    return link->n_queued;
}

static int __attribute__((cold, format(printf, 2, 3))) violation(struct link *link, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(link->reason, sizeof(link->reason), format, args);
    va_end(args);
    return LINK_E_VIOLATION;
}

static void take_rights(const struct cmsghdr *cmsg, struct fdset *fds)
{
    size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);

    for (size_t i = 0; i < n; i++) {
        int fd;

        memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(fd));
        if (fdset_consume(fds, fd) < 0)
            close_fd(fd);
    }
}

static void read_control(struct msghdr *msg, struct arrival *arrival)
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET)
            continue;
        if (cmsg->cmsg_type == SCM_RIGHTS)
            take_rights(cmsg, &arrival->fds);
        if (cmsg->cmsg_type == SCM_CREDENTIALS && cmsg->cmsg_len == CMSG_LEN(sizeof(struct ucred))) {
            memcpy(&arrival->sender, CMSG_DATA(cmsg), sizeof(struct ucred));
            arrival->has_sender = true;
        }
    }
}

/* Into the buffer, and the arrival. The connection's pending error comes before packets that wait; reading it
 * clears it, so what the other end said before it went can be read next. */
static int receive_packet(struct link *link, void *control, size_t control_size, int flags)
{
    struct arrival *arrival = &link->arrival;
    struct iovec iov = {.iov_base = link->buffer, .iov_len = sizeof(link->buffer)};
    struct msghdr msg;
    ssize_t n;

    arrival->fds.n = 0;
    arrival->has_sender = false;
    do {
        msg = (struct msghdr){
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = control_size};
        n = recvmsg(link->fd, &msg, MSG_CMSG_CLOEXEC | flags);
    } while (n < 0 && ((errno == EINTR && (flags & MSG_DONTWAIT)) || errno == ECONNRESET));
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return LINK_E_EMPTY;
    if (n < 0)
        return means_closed(-errno) ? LINK_E_CLOSED : -errno;

    arrival->size = (size_t)n;
    arrival->flags = msg.msg_flags;
    read_control(&msg, arrival);
    return 0;
}

static bool other_end_is_shut(const struct link *link)
{
    struct pollfd pollfd = {.fd = link->fd, .events = POLLRDHUP};

    return poll(&pollfd, 1, 0) > 0 && (pollfd.revents & (POLLRDHUP | POLLHUP));
}

static int judge_packet(struct link *link, const struct arrival *arrival, struct frame_header *ret_header)
{
    int r;

    if (arrival->size == 0)
        return other_end_is_shut(link) ? LINK_E_CLOSED : violation(link, "an empty packet was sent");
    if (arrival->flags & MSG_TRUNC)
        return violation(link, "the packet is larger than %d bytes", FRAME_SIZE_MAX);
    r = frame_read_header(link->buffer, arrival->size, ret_header);
    if (r != 0)
        return violation(link, "%s", frame_strerror(r));
    return 0;
}

static int judge_descriptors(struct link *link, const struct arrival *arrival, unsigned announced)
{
    bool truncated = arrival->flags & MSG_CTRUNC;

    if (truncated && link->receive_fds && arrival->fds.n < announced)
        return LINK_E_NOFILE;
    if (truncated)
        return violation(link, "descriptors were sent that may not be");
    if (arrival->fds.n != announced)
        return violation(link, "the header announces %u descriptors, %u came", announced, arrival->fds.n);
    return 0;
}

static int decode_packet(struct link *link, const struct frame_header *header, struct message *ret)
{
    int r = codec_decode(link->buffer, header, ret);

    if (r == CODEC_E_TYPE)
        return violation(link, "unknown message type %u", header->type);
    if (r == CODEC_E_BODY)
        return violation(link, "the body is not a valid %s", codec_type_name(header->type));
    return r;
}

/* The arrival's descriptors are the caller's to close, whatever comes out. */
static int open_packet(struct link *link, struct message *ret)
{
    const struct arrival *arrival = &link->arrival;
    struct frame_header header;
    int judgement, r;

    r = judge_packet(link, arrival, &header);
    if (r != 0)
        return r;
    judgement = judge_descriptors(link, arrival, header.n_fds);
    if (judgement != 0 && judgement != LINK_E_NOFILE)
        return judgement;
    r = decode_packet(link, &header, ret);
    return r != 0 ? r : judgement;
}

static int receive_any(struct link *link, int flags)
{
    union rights_buffer control;
    bool room = link->receive_fds;

    return receive_packet(link, room ? control.bytes : NULL, room ? sizeof(control.bytes) : 0, flags);
}

void link_await(struct link *link)
{
    if (link->is_ahead)
        return;
    link->ahead_r = receive_any(link, 0);
    link->is_ahead = link->ahead_r != LINK_E_EMPTY;
}

static int next_arrival(struct link *link)
{
    if (!link->is_ahead)
        return receive_any(link, MSG_DONTWAIT);
    link->is_ahead = false;
    return link->ahead_r;
}

int link_receive(struct link *link, struct message *ret_message, struct fdset *ret_fds)
{
    struct fdset *arrived = &link->arrival.fds;
    int r;

    r = next_arrival(link);
    if (r != 0)
        return r;
    r = open_packet(link, ret_message);
    if (r == LINK_E_NOFILE)
        fdset_deinit(arrived);
    if (ret_fds && (r == 0 || r == LINK_E_NOFILE)) {
        ret_fds->n = 0;
        fdset_move(ret_fds, arrived);
    }
    fdset_deinit(arrived);
    return r;
}

int link_receive_credentials(struct link *link, struct message *ret_message, pid_t *ret_pid, uid_t *ret_uid)
{
    struct arrival *arrival = &link->arrival;
    union credentials_buffer control;
    struct message message;
    int r;

    r = receive_packet(link, control.bytes, sizeof(control.bytes), MSG_DONTWAIT);
    if (r != 0)
        return r;
    r = open_packet(link, &message);
    fdset_deinit(&arrival->fds);
    if (r != 0)
        return r;
    if (!arrival->has_sender || arrival->sender.pid == 0) {
        message_deinit(&message);
        return violation(link, "the packet came without its sender's credentials");
    }
    *ret_message = message;
    *ret_pid = arrival->sender.pid;
    *ret_uid = arrival->sender.uid;
    return 0;
}

bool link_is_read(const struct link *link)
{
    int unread;

    return ioctl(link->fd, SIOCOUTQ, &unread) == 0 && unread == 0;
}

const char *link_reason(const struct link *link)
{
    return link->reason;
}

void link_shutdown(struct link *link)
{
    drop_queue(link);
    shutdown(link->fd, SHUT_RDWR);
}
