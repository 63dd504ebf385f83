/* SPDX-License-Identifier: Apache-2.0 */
#include "linkends.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

void make_pair(int ret_fds[2])
{
    check_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret_fds), 0);
}

struct ends make_ends(void)
{
    struct ends ends;
    int fds[2];

    make_pair(fds);
    check_eq(link_new(fds[0], true, QUEUE_MAX, &ends.client), 0);
    check_eq(link_new(fds[1], false, QUEUE_MAX, &ends.server), 0);
    return ends;
}

void free_ends(struct ends *ends)
{
    link_free(ends->client);
    link_free(ends->server);
}

struct link *make_half(bool receive_fds, int *ret_raw)
{
    struct link *link;
    int fds[2];

    make_pair(fds);
    check_eq(link_new(fds[0], receive_fds, QUEUE_MAX, &link), 0);
    *ret_raw = fds[1];
    return link;
}

int open_something(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

    check(fd >= 0);
    return fd;
}

void send_raw(int raw, const void *bytes, size_t size, const int *fds, unsigned n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = size};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n_fds > 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        *CMSG_FIRSTHDR(&msg) = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n_fds * sizeof(int))};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, n_fds * sizeof(int));
    }
    check_eq(sendmsg(raw, &msg, MSG_NOSIGNAL), size);
}
