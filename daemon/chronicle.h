/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Chronicle: what has happened in this daemon's life, told to those who ask for it or wait for it, and what
 * its memory was used for.
 */

#include <stdbool.h>
#include <stdint.h>

#include "broker.h"
#include "wire/codec.h"

struct peer;
struct server;

/* About the daemon, or an instance (NULL: about none), and a process of it (0: none). Told to everybody who
 * waits when the event that led to it has been settled. Of what peers can cause at will so much is noted of
 * each domain in a while, and that there is more. */
void chronicle_note(struct server *server, Kvcached__EventKind kind, const struct broker_instance *instance,
                    int32_t pid, uint64_t bytes, const char *format, ...)
    __attribute__((cold, format(printf, 6, 7)));

/* The same about a process that has no instance. */
void chronicle_note_stranger(struct server *server, Kvcached__EventKind kind, const char *domain, int32_t pid,
                             const char *format, ...) __attribute__((cold, format(printf, 5, 6)));

/* May another line about what a domain's peers have caused go into the log? That there is more is logged. */
bool chronicle_may_log(struct server *server, const char *domain);

void chronicle_start(struct server *server);

/* Others may have taken the GPU's memory, or the budget may have been lowered. Whether something was noted.
 */
bool chronicle_budget(struct server *server);

/* What memory is used for now, for the history. */
void chronicle_sample(struct server *server);

/* A request for events. 0 or negative. */
int chronicle_asked(struct peer *peer, struct message *message);

/* Answers those who have waited for what has been noted since. */
void chronicle_tell(struct server *server);
