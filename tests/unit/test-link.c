/* SPDX-License-Identifier: Apache-2.0 */
#include "linkends.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#define NOBODY 65534

static int send_take(struct link *link, uint32_t request)
{
    Kvcached__Take take = KVCACHED__TAKE__INIT;

    take.region = 7;
    take.pages = request;
    return link_send(link, MESSAGE_TAKE, request, &take.base, NULL);
}

static int send_grant(struct link *link, uint32_t request, struct fdset *fds)
{
    Kvcached__Grant grant = KVCACHED__GRANT__INIT;

    grant.remaining = request;
    return link_send(link, MESSAGE_GRANT, request, &grant.base, fds);
}

static void fill(struct fdset *fds, unsigned n)
{
    while (fds->n < n)
        check_eq(fdset_consume(fds, open_something()), 0);
}

TEST(message_arrives_whole)
{
    struct ends ends = make_ends();
    struct message message;

    check_eq(link_receive(ends.server, &message, NULL), LINK_E_EMPTY);
    check_eq(send_take(ends.client, 5), 0);
    check_eq(link_queued(ends.client), 0);
    check(!link_wants_write(ends.client));
    check_eq(link_receive(ends.server, &message, NULL), 0);
    check_eq(message.type, MESSAGE_TAKE);
    check_eq(message.request, 5);
    check_eq(((const Kvcached__Take *)message.body)->pages, 5);
    message_deinit(&message);
    check_eq(link_receive(ends.server, &message, NULL), LINK_E_EMPTY);
    free_ends(&ends);
}

TEST(descriptors_arrive_in_order_and_are_closed_on_exec)
{
    struct ends ends = make_ends();
    struct message message;
    struct fdset sent = {0}, received = {0};
    ino_t inodes[FRAME_FDS_MAX / 2];
    struct stat st;
    int pipes[2];

    for (unsigned i = 0; i < FRAME_FDS_MAX / 2; i++) {
        check_eq(pipe2(pipes, O_CLOEXEC), 0);
        check_eq(fstat(pipes[0], &st), 0);
        inodes[i] = st.st_ino;
        fdset_consume(&sent, pipes[0]);
        close(pipes[1]);
    }
    check_eq(send_grant(ends.server, 1, &sent), 0);
    check_eq(sent.n, FRAME_FDS_MAX / 2);
    fdset_deinit(&sent);
    check_eq(link_receive(ends.client, &message, &received), 0);
    message_deinit(&message);
    check_eq(received.n, FRAME_FDS_MAX / 2);
    for (unsigned i = 0; i < received.n; i++) {
        check_eq(fstat(fdset_borrow(&received, i), &st), 0);
        check_eq(st.st_ino, inodes[i]);
        check_eq(fcntl(fdset_borrow(&received, i), F_GETFD), FD_CLOEXEC);
    }
    fdset_deinit(&received);
    free_ends(&ends);
}

static bool is_readable(const struct link *link)
{
    return poll(&(struct pollfd){.fd = link_fd(link), .events = POLLIN}, 1, 0) == 1;
}

TEST(what_was_awaited_is_received_next)
{
    const struct timeval moment = {.tv_usec = 1000};
    struct ends ends = make_ends();
    struct fdset sent = {0}, received = {0};
    struct message message;

    check_eq(setsockopt(link_fd(ends.client), SOL_SOCKET, SO_RCVTIMEO, &moment, sizeof(moment)), 0);
    link_await(ends.client);
    check_eq(link_receive(ends.client, &message, &received), LINK_E_EMPTY);
    fill(&sent, 3);
    check_eq(send_grant(ends.server, 1, &sent), 0);
    fdset_deinit(&sent);
    check_eq(send_grant(ends.server, 2, NULL), 0);
    link_await(ends.client);
    link_await(ends.client);
    check_eq(link_receive(ends.client, &message, &received), 0);
    check_eq(message.request, 1);
    check_eq(received.n, 3);
    message_deinit(&message);
    fdset_deinit(&received);
    check_eq(link_receive(ends.client, &message, &received), 0);
    check_eq(message.request, 2);
    message_deinit(&message);
    check_eq(link_receive(ends.client, &message, &received), LINK_E_EMPTY);
    free_ends(&ends);
}

TEST(end_is_awaited_too)
{
    struct ends ends = make_ends();
    struct message message;

    ends.server = link_free(ends.server);
    link_await(ends.client);
    check_eq(link_receive(ends.client, &message, NULL), LINK_E_CLOSED);
    check_eq(link_receive(ends.client, &message, NULL), LINK_E_CLOSED);
    free_ends(&ends);
}

TEST(what_was_awaited_in_vain_is_closed)
{
    struct ends ends = make_ends();
    struct fdset sent = {0};

    fill(&sent, FRAME_FDS_MAX);
    check_eq(send_grant(ends.server, 1, &sent), 0);
    fdset_deinit(&sent);
    link_await(ends.client);
    check(!is_readable(ends.client));
    free_ends(&ends);
}

TEST(caller_may_decline_descriptors)
{
    struct ends ends = make_ends();
    struct message message;
    struct fdset sent = {0};

    fill(&sent, FRAME_FDS_MAX);
    check_eq(send_grant(ends.server, 1, &sent), 0);
    fdset_deinit(&sent);
    check_eq(link_receive(ends.client, &message, NULL), 0);
    message_deinit(&message);
    free_ends(&ends);
}

/* Fills the socket, then the queue; with descriptors, which must not leak when they are never read. */
TEST(full_socket_queues_and_full_queue_refuses)
{
    struct ends ends = make_ends();
    struct message message;
    struct fdset sent = {0}, received = {0};
    uint32_t n_sent = 0, n_received = 0;
    int r;

    do {
        fill(&sent, 2);
        r = send_grant(ends.server, n_sent, &sent);
        n_sent += r == 0;
        if (link_queued(ends.server) == 0)
            fdset_deinit(&sent);
        else if (r == 0)
            check_eq(sent.n, 0);
    } while (r == 0);
    check_eq(r, LINK_E_FULL);
    check_eq(sent.n, 2);
    fdset_deinit(&sent);
    check_eq(link_queued(ends.server), QUEUE_MAX);
    check(link_wants_write(ends.server));
    check(!link_is_throttled(ends.server));

    while (link_receive(ends.client, &message, &received) == 0) {
        check_eq(message.request, n_received++);
        check_eq(received.n, 2);
        message_deinit(&message);
        fdset_deinit(&received);
        check_eq(link_flush(ends.server), 0);
    }
    check_eq(n_received, n_sent);
    check_eq(link_queued(ends.server), 0);
    check(!link_wants_write(ends.server));
    free_ends(&ends);
}

/* Looking at a packet, or shutting the connection down, is not receiving it; closing it ends it as well. */
TEST(what_was_read_is_known)
{
    char bytes[64];
    int raw;
    struct link *link = make_half(false, &raw);

    check(link_is_read(link));
    check_eq(send_take(link, 1), 0);
    check_eq(send_take(link, 2), 0);
    check(!link_is_read(link));
    check(recv(raw, bytes, sizeof(bytes), 0) > 0);
    check(recv(raw, bytes, sizeof(bytes), MSG_PEEK) > 0);
    check(!link_is_read(link));
    check(recv(raw, bytes, sizeof(bytes), 0) > 0);
    check(link_is_read(link));
    check_eq(send_take(link, 3), 0);
    check_eq(shutdown(raw, SHUT_RDWR), 0);
    link_shutdown(link);
    check(!link_is_read(link));
    close(raw);
    check(link_is_read(link));
    link_free(link);
}

TEST(queued_descriptors_die_with_the_link)
{
    struct ends ends = make_ends();
    struct fdset sent = {0};

    do {
        fdset_deinit(&sent);
        fill(&sent, 1);
    } while (send_grant(ends.server, 1, &sent) == 0);
    fdset_deinit(&sent);
    free_ends(&ends);
}

TEST(message_that_fits_no_frame_is_refused)
{
    static uint64_t extents[FRAME_SIZE_MAX / 8];
    struct ends ends = make_ends();
    Kvcached__Grant grant = KVCACHED__GRANT__INIT;
    struct fdset sent = {0};

    fill(&sent, 1);
    grant.extents = extents;
    grant.n_extents = FRAME_SIZE_MAX / 8;
    check_eq(link_send(ends.server, MESSAGE_GRANT, 1, &grant.base, &sent), -EMSGSIZE);
    check_eq(sent.n, 1);
    check_eq(link_queued(ends.server), 0);
    fdset_deinit(&sent);
    free_ends(&ends);
}

TEST(largest_frame_passes)
{
    static uint64_t extents[8189];
    struct ends ends = make_ends();
    Kvcached__Return return_ = KVCACHED__RETURN__INIT;
    struct message message;

    return_.extents = extents;
    return_.n_extents = 8189;
    check_eq(link_send(ends.client, MESSAGE_RETURN, 1, &return_.base, NULL), 0);
    check_eq(link_receive(ends.server, &message, NULL), 0);
    check_eq(((const Kvcached__Return *)message.body)->n_extents, 8189);
    message_deinit(&message);
    free_ends(&ends);
}

TEST(closed_other_end_is_told_and_descriptors_stay)
{
    struct ends ends = make_ends();
    struct message message;
    struct fdset sent = {0};

    ends.client = link_free(ends.client);
    fill(&sent, 3);
    check_eq(send_grant(ends.server, 1, &sent), LINK_E_CLOSED);
    check_eq(sent.n, 3);
    check_eq(link_queued(ends.server), 0);
    check_eq(link_receive(ends.server, &message, NULL), LINK_E_CLOSED);
    check_eq(link_receive(ends.server, &message, NULL), LINK_E_CLOSED);
    fdset_deinit(&sent);
    free_ends(&ends);
}

TEST(flush_tells_of_a_closed_end)
{
    struct ends ends = make_ends();

    while (send_take(ends.client, 1) == 0)
        ;
    ends.server = link_free(ends.server);
    check_eq(link_flush(ends.client), LINK_E_CLOSED);
    free_ends(&ends);
}

/* The other end leaves our packet unread and says why before it closes: the pending error must not hide that.
 */
TEST(last_words_are_heard)
{
    struct ends ends = make_ends();
    Kvcached__Refused refused = KVCACHED__REFUSED__INIT;
    struct message message;

    check_eq(send_take(ends.client, 1), 0);
    refused.reason = (char *)"because";
    check_eq(link_send(ends.server, MESSAGE_REFUSED, 0, &refused.base, NULL), 0);
    ends.server = link_free(ends.server);
    check_eq(link_receive(ends.client, &message, NULL), 0);
    check_str(((const Kvcached__Refused *)message.body)->reason, "because");
    message_deinit(&message);
    check_eq(link_receive(ends.client, &message, NULL), LINK_E_CLOSED);
    free_ends(&ends);
}

TEST(last_words_are_heard_after_a_failed_send)
{
    struct ends ends = make_ends();
    Kvcached__Refused refused = KVCACHED__REFUSED__INIT;
    struct message message;

    check_eq(send_take(ends.client, 1), 0);
    check_eq(link_send(ends.server, MESSAGE_REFUSED, 0, &refused.base, NULL), 0);
    ends.server = link_free(ends.server);
    check_eq(send_take(ends.client, 2), LINK_E_CLOSED);
    check_eq(link_receive(ends.client, &message, NULL), 0);
    message_deinit(&message);
    free_ends(&ends);
}

TEST(shutdown_reaches_the_other_end_despite_copies)
{
    struct ends ends = make_ends();
    struct message message;
    int copy = fcntl(link_fd(ends.server), F_DUPFD_CLOEXEC, 0);

    check(copy >= 0);
    check_eq(send_take(ends.server, 1), 0);
    link_shutdown(ends.server);
    check_eq(link_receive(ends.client, &message, NULL), 0);
    message_deinit(&message);
    check_eq(link_receive(ends.client, &message, NULL), LINK_E_CLOSED);
    close(copy);
    free_ends(&ends);
}

TEST(socket_is_made_fit_for_use)
{
    struct link *link;
    int fds[2];

    check_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    check_eq(link_new(fds[0], true, QUEUE_MAX, &link), 0);
    check_eq(link_fd(link), fds[0]);
    check(fcntl(fds[0], F_GETFD) & FD_CLOEXEC);
    link_free(link);
    close(fds[1]);
    check_eq(link_new(fds[1], true, QUEUE_MAX, &link), -EBADF);
    check(!link_free(NULL));
}

/* A table with room for `room` more. */
static void shrink_table(unsigned room)
{
    int next = open_something();
    struct rlimit limit = {.rlim_cur = (rlim_t)next + room, .rlim_max = (rlim_t)next + room};

    close(next);
    check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

TEST(full_table_costs_the_descriptors_not_the_connection)
{
    for (unsigned room = 0; room < 3; room++) {
        struct ends ends = make_ends();
        struct message message;
        struct fdset sent = {0}, received = {0};
        struct rlimit limit, before;

        fill(&sent, 3);
        check_eq(send_grant(ends.server, 42, &sent), 0);
        fdset_deinit(&sent);
        check_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
        limit = before;
        limit.rlim_cur = (rlim_t)open_something() + room;
        close((int)(limit.rlim_cur - room));
        check_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
        check_eq(link_receive(ends.client, &message, &received), LINK_E_NOFILE);
        check_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
        check_eq(message.request, 42);
        check_eq(received.n, 0);
        message_deinit(&message);
        fill(&sent, 3);
        check_eq(send_grant(ends.server, 43, &sent), 0);
        fdset_deinit(&sent);
        check_eq(link_receive(ends.client, &message, &received), 0);
        check_eq(received.n, 3);
        message_deinit(&message);
        fdset_deinit(&received);
        free_ends(&ends);
    }
}

/* Root is exempt from the kernel's limit on descriptors in flight, so this runs as somebody else. */
TEST(too_many_descriptors_in_flight_throttle)
{
    struct ends ends = make_ends();
    struct message message;
    struct fdset sent = {0}, received = {0};
    unsigned n_sent = 0, n_received = 0;

    if (geteuid() == 0)
        check_eq(setresuid(NOBODY, NOBODY, NOBODY), 0);
    for (; !link_is_throttled(ends.server) && n_sent < QUEUE_MAX; n_sent++) {
        fill(&sent, 8);
        if (n_sent == 0)
            shrink_table(8);
        check_eq(send_grant(ends.server, n_sent, &sent), 0);
        fdset_deinit(&sent);
    }
    check(link_is_throttled(ends.server));
    check_eq(link_queued(ends.server), 1);
    check(!link_wants_write(ends.server));
    check_eq(link_flush(ends.server), 0);
    check(link_is_throttled(ends.server));

    while (link_receive(ends.client, &message, &received) == 0) {
        check_eq(message.request, n_received++);
        check_eq(received.n, 8);
        message_deinit(&message);
        fdset_deinit(&received);
        check_eq(link_flush(ends.server), 0);
        check(!link_is_throttled(ends.server));
    }
    check_eq(n_received, n_sent);
    free_ends(&ends);
}
