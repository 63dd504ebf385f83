/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Identity: what the kernel says about the process at the other end of a connected socket, and the trust
 * domain that follows from it. Nothing that the process says about itself counts.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "broker.h"

#define IDENTITY_NONCE_SIZE 16

enum {
    _IDENTITY_E_SUCCESS,
    IDENTITY_E_REFUSED, /* not acceptable here; the reason says why */
    IDENTITY_E_GONE,    /* the process has ended */
};

struct identity {
    pid_t pid; /* 0: in a pid namespace that isn't below ours */
    uid_t uid;
    gid_t gid;
    int pidfd;         /* owned; -1 in an empty identity */
    bool proven;       /* false: the pidfd was opened by number and waits for the nonce to come back */
    bool is_placed;    /* whether /proc told where it runs; the next fields hold then */
    bool in_container; /* it has a pid namespace below ours */
    bool in_our_userns;
    char *cgroup; /* path; of several hierarchies those that differ, with commas; "/" for none */
};

/* Reads the identity of a fresh connection. `reason` (a static sentence) is set for IDENTITY_E_REFUSED. 0,
 * IDENTITY_E_*, or negative. */
int identity_read(int fd, struct identity *ret, const char **ret_reason);
void identity_deinit(struct identity *identity);

/* For an identity that isn't proven: the packet that answered the nonce came from this sender. 0 or
 * IDENTITY_E_REFUSED. */
int identity_prove(struct identity *identity, pid_t sender_pid, uid_t sender_uid);

bool identity_is_alive(const struct identity *identity);

/* The trust domain on the main socket: "uid:1000", in a container "uid:1000@CGROUP". 0 or IDENTITY_E_REFUSED.
 */
int identity_domain(const struct identity *identity, char ret[static BROKER_DOMAIN_MAX + 1],
                    const char **ret_reason);

/* Tells identities apart that share a domain: equal for equal uid and container, else different but for a
 * chance that nobody can steer. */
uint64_t identity_key(const struct identity *identity);

/* May it use the control socket at all: it runs in our pid and user namespaces. */
bool identity_is_local(const struct identity *identity);

/* May it change things: root, our own uid, or a member of the group ((gid_t)-1: there is none). `fd` is its
 * socket. */
bool identity_is_admin(const struct identity *identity, int fd, gid_t admin_gid);
