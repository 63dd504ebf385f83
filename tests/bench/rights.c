/* SPDX-License-Identifier: Apache-2.0 */

#include "rights.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "bench.h"

union rights {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(RIGHTS_MAX * sizeof(int))];
};

void send_fds(int socket, const int *fds, uint32_t n)
{
    union rights rights;
    struct iovec iov = {.iov_base = &n, .iov_len = sizeof(n)};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    struct cmsghdr *header;

    if (n > 0) {
        message.msg_control = rights.bytes;
        message.msg_controllen = CMSG_SPACE(n * sizeof(int));
        header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(n * sizeof(int));
        memcpy(CMSG_DATA(header), fds, n * sizeof(int));
    }
    if (sendmsg(socket, &message, MSG_NOSIGNAL) != sizeof(n))
        die("sendmsg: %s", strerror(errno));
}

void receive_fds(int socket, int *fds, uint32_t n)
{
    union rights rights;
    uint32_t answered;
    struct iovec iov = {.iov_base = &answered, .iov_len = sizeof(answered)};
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = rights.bytes,
        .msg_controllen = sizeof(rights.bytes),
    };
    struct cmsghdr *header;

    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != sizeof(answered) || answered != n)
        die("the process at the other end has ended");
    header = CMSG_FIRSTHDR(&message);
    if ((header ? header->cmsg_len : 0) != (n ? CMSG_LEN(n * sizeof(int)) : 0))
        die("descriptors were lost: is the descriptor table full?");
    if (header)
        memcpy(fds, CMSG_DATA(header), n * sizeof(int));
}
