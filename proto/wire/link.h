/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Link: one connected SOCK_SEQPACKET socket. The only place that calls sendmsg() and recvmsg(). Never blocks,
 * but in link_await(); the owner waits for readiness with poll(), libuv or what it likes. What cannot leave
 * at once waits in a queue. Not thread-safe.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "wire/codec.h"
#include "wire/fdset.h"

enum {
    _LINK_E_SUCCESS,
    LINK_E_EMPTY,     /* nothing to receive now */
    LINK_E_CLOSED,    /* the other end is gone */
    LINK_E_FULL,      /* queue bound reached: the message was not queued */
    LINK_E_VIOLATION, /* the other end broke the framing; link_reason() says how */
    LINK_E_NOFILE,    /* our descriptor table is full: the message arrived, its descriptors are closed */
};

struct link;

/* Takes over a connected socket (made close-on-exec). `receive_fds`: whether descriptors may be received
 * (clients); otherwise the kernel drops them and that is a violation. `queue_max`: packets. */
int link_new(int fd, bool receive_fds, unsigned queue_max, struct link **ret);
struct link *link_free(struct link *link);
DEFINE_CLEANUP(struct link *, link_free);

/* Frees memory only, in a forked child: the descriptors stay as they are, since by now the numbers may be
 * somebody else's. */
struct link *link_forget(struct link *link);

int link_fd(const struct link *link); /* borrowed */

/* Sends one message, or queues it. `fds` (may be NULL) is emptied into the queue, and untouched otherwise:
 * what has been sent is the caller's to close. 0, LINK_E_CLOSED, LINK_E_FULL, -EMSGSIZE when it doesn't fit a
 * frame, -ENOMEM... */
int link_send(struct link *link, uint16_t type, uint32_t request, const ProtobufCMessage *body,
              struct fdset *fds);

/* Sends what is queued as far as the socket takes it. 0 (also when something is left), LINK_E_CLOSED,
 * negative. */
int link_flush(struct link *link);

/* Whether to wait for POLLOUT. */
bool link_wants_write(const struct link *link);

/* Whether the head of the queue was refused with ETOOMANYREFS: too many descriptors of this user are in
 * flight. No poll event announces the end of that; flush again when any peer has acknowledged, or after a
 * while. */
bool link_is_throttled(const struct link *link);

unsigned link_queued(const struct link *link);

/* Whether the other end has received, or will never receive, all that has left the queue, by the kernel's
 * word. */
bool link_is_read(const struct link *link);

/* Receives one message, also after link_send() or link_flush() has said LINK_E_CLOSED: what the other end
 * sent before it closed (why, perhaps) can still be read. 0, LINK_E_EMPTY, LINK_E_CLOSED, LINK_E_VIOLATION,
 * LINK_E_NOFILE (the message is valid, the set empty), or negative. On 0 and LINK_E_NOFILE the caller owns
 * *ret_message (message_deinit) and *ret_fds (fdset_deinit; may be NULL for links that receive none). */
int link_receive(struct link *link, struct message *ret_message, struct fdset *ret_fds);

/* Receives for the next link_receive(), which then needs no call of its own; waits for it if the socket
 * blocks, as long as its SO_RCVTIMEO says, or until a signal. Other threads may meanwhile do all but receive,
 * and must see to it that what has come is asked for: poll() does not know of it any more. */
void link_await(struct link *link);

/* As link_receive(), without room for descriptors, and also tells who sent the packet. For sockets with
 * SO_PASSCRED, where link_receive() has no room for what the kernel attaches and takes every packet for a
 * violation. Set SO_PASSCRED before asking for the packet: one that was sent earlier counts as sent without
 * credentials, which is a violation too. */
int link_receive_credentials(struct link *link, struct message *ret_message, pid_t *ret_pid, uid_t *ret_uid);

/* One sentence about the last violation. */
const char *link_reason(const struct link *link);

/* Ends both directions, so that the peer sees end-of-file even while others hold the descriptor. What is
 * queued is dropped. */
void link_shutdown(struct link *link);
