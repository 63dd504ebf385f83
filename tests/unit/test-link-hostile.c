/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the other end may do to a link: break the framing, send descriptors that it must not, let others speak
 * for it.
 */

#include "linkends.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t encode_grant(uint8_t *buf, unsigned announced)
{
    Kvcached__Grant grant = KVCACHED__GRANT__INIT;
    size_t size;

    check_eq(codec_encode(MESSAGE_GRANT, 1, announced, &grant.base, buf, &size), 0);
    return size;
}

/* Sends one packet to a fresh link and says what it makes of it; descriptors are counted by the runner. */
static int verdict(bool receive_fds, const void *bytes, size_t size, unsigned n_fds, const char *reason)
{
    struct message message;
    struct fdset received = {0};
    int raw, something = open_something(), copies[253];
    struct link *link = make_half(receive_fds, &raw);
    int r;

    for (unsigned i = 0; i < n_fds; i++)
        copies[i] = something;
    send_raw(raw, bytes, size, copies, n_fds);
    r = link_receive(link, &message, &received);
    check_eq(received.n, r == 0 ? n_fds : 0);
    if (r == 0)
        message_deinit(&message);
    if (r == LINK_E_VIOLATION)
        check_str(link_reason(link), reason);
    else
        check(reason == NULL);
    fdset_deinit(&received);
    link_free(link);
    close(raw);
    close(something);
    return r;
}

TEST(empty_packet_is_not_end_of_file)
{
    int something = open_something();
    struct message message;
    struct link *link;
    int raw;

    check_eq(verdict(false, "", 0, 0, "an empty packet was sent"), LINK_E_VIOLATION);
    check_eq(verdict(true, "", 0, 3, "an empty packet was sent"), LINK_E_VIOLATION);
    link = make_half(true, &raw);
    send_raw(raw, "", 0, &something, 1);
    close(raw);
    check_eq(link_receive(link, &message, NULL), LINK_E_CLOSED);
    link_free(link);
    close(something);
}

TEST(framing_violations_are_named)
{
    static uint8_t packet[FRAME_SIZE_MAX + 1];
    struct frame_header header = {.version = 1, .type = 9999};
    size_t size = encode_grant(packet, 0);

    check_eq(verdict(false, packet, size - 1, 0, "the packet is shorter than a header"), LINK_E_VIOLATION);
    check_eq(verdict(false, packet, size + 1, 0, "the packet's size and its header disagree"),
             LINK_E_VIOLATION);
    check_eq(verdict(false, "this is not our protocol", 24, 0, "the packet is not of this protocol"),
             LINK_E_VIOLATION);
    frame_write_header(packet, &header);
    check_eq(verdict(false, packet, FRAME_HEADER_SIZE, 0, "unknown message type 9999"), LINK_E_VIOLATION);
    header = (struct frame_header){.version = 1, .type = MESSAGE_TAKE, .length = 1};
    frame_write_header(packet, &header);
    check_eq(verdict(false, packet, FRAME_HEADER_SIZE + 1, 0, "the body is not a valid Take"),
             LINK_E_VIOLATION);
    check_eq(verdict(false, packet, sizeof(packet), 0, "the packet is larger than 65536 bytes"),
             LINK_E_VIOLATION);
}

TEST(wrong_descriptor_counts_are_violations)
{
    static const char *uninvited = "descriptors were sent that may not be";
    uint8_t packet[FRAME_SIZE_MAX];
    size_t size = encode_grant(packet, 2);

    check_eq(verdict(true, packet, size, 2, NULL), 0);
    check_eq(verdict(true, packet, size, 0, "the header announces 2 descriptors, 0 came"), LINK_E_VIOLATION);
    check_eq(verdict(true, packet, size, 1, "the header announces 2 descriptors, 1 came"), LINK_E_VIOLATION);
    check_eq(verdict(true, packet, size, 64, "the header announces 2 descriptors, 64 came"),
             LINK_E_VIOLATION);
    check_eq(verdict(true, packet, size, 65, uninvited), LINK_E_VIOLATION);
    check_eq(verdict(true, packet, size, 253, uninvited), LINK_E_VIOLATION);
    check_eq(verdict(false, packet, size, 2, uninvited), LINK_E_VIOLATION);
    check_eq(verdict(false, packet, size, 0, "the header announces 2 descriptors, 0 came"), LINK_E_VIOLATION);
    size = encode_grant(packet, 0);
    check_eq(verdict(false, packet, size, 1, uninvited), LINK_E_VIOLATION);
    check_eq(verdict(false, packet, size, 253, uninvited), LINK_E_VIOLATION);
    check_eq(verdict(true, packet, size, 1, "the header announces 0 descriptors, 1 came"), LINK_E_VIOLATION);
}

static struct link *make_challenger(int *ret_raw)
{
    struct link *link = make_half(false, ret_raw);

    check_eq(setsockopt(link_fd(link), SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)), 0);
    return link;
}

static void send_reply(int raw, unsigned n_fds)
{
    Kvcached__ChallengeReply reply = KVCACHED__CHALLENGE_REPLY__INIT;
    uint8_t packet[FRAME_SIZE_MAX];
    int something = open_something();
    size_t size;

    check_eq(codec_encode(MESSAGE_CHALLENGE_REPLY, 0, 0, &reply.base, packet, &size), 0);
    send_raw(raw, packet, size, &something, n_fds);
    close(something);
}

/* The socket's pair was made by this process, so only the kernel can know about the child. */
TEST(credentials_are_those_of_the_sending_process)
{
    struct message message;
    int raw, status;
    struct link *link = make_challenger(&raw);
    pid_t child, pid = 0;
    uid_t uid = 12345;

    check_eq(link_receive_credentials(link, &message, &pid, &uid), LINK_E_EMPTY);
    child = fork();
    check(child >= 0);
    if (child == 0) {
        send_reply(raw, 0);
        _exit(0);
    }
    check_eq(waitpid(child, &status, 0), child);
    check_eq(status, 0);
    check_eq(link_receive_credentials(link, &message, &pid, &uid), 0);
    check_eq(pid, child);
    check_eq(uid, getuid());
    check_eq(message.type, MESSAGE_CHALLENGE_REPLY);
    message_deinit(&message);
    close(raw);
    check_eq(link_receive_credentials(link, &message, &pid, &uid), LINK_E_CLOSED);
    link_free(link);
}

TEST(credentials_leave_no_room_for_descriptors)
{
    struct message message;
    int raw;
    struct link *link = make_challenger(&raw);
    pid_t pid;
    uid_t uid;

    send_reply(raw, 1);
    check_eq(link_receive_credentials(link, &message, &pid, &uid), LINK_E_VIOLATION);
    check_str(link_reason(link), "descriptors were sent that may not be");
    link_free(link);
    close(raw);
}

TEST(packet_without_credentials_is_a_violation)
{
    struct message message;
    int raw;
    struct link *link = make_half(false, &raw);
    pid_t pid;
    uid_t uid;

    send_reply(raw, 0);
    check_eq(link_receive_credentials(link, &message, &pid, &uid), LINK_E_VIOLATION);
    send_reply(raw, 0);
    check_eq(setsockopt(link_fd(link), SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)), 0);
    check_eq(link_receive_credentials(link, &message, &pid, &uid), LINK_E_VIOLATION);
    check_str(link_reason(link), "the packet came without its sender's credentials");
    link_free(link);
    close(raw);
}
