/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Connection: one socket to the daemon, shared by all threads of the process, and the requests that wait for
 * an answer on it. Its lock is the client's lock: everything that belongs to a client is touched with it
 * held.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/list.h"
#include "error.h"
#include "interrupt.h"
#include "wire/link.h"

enum {
    _REQUEST_SUCCESS,
    REQUEST_MORE, /* packets of the answer are still to come */
};

struct conn;

/* A question to the daemon. Whoever embeds it, as the first member of something from malloc(), begins it with
 * request_init() and leaves the rest alone. */
struct request {
    /* Takes one packet of the answer. 0: the answer is complete; REQUEST_MORE; request_violated(): it makes
     * no sense, and the connection ends. `truncated`: the packet's descriptors did not fit the process'
     * descriptor table. */
    int (*receive)(struct request *request, const struct message *message, struct fdset *fds, bool truncated);

    /* The answer is complete, or there will be none, and no thread waits for it: frees the request. */
    void (*finish)(struct request *request);

    struct list link; /* of the connection's requests, until done */
    struct conn *conn;
    uint32_t id;
    uint64_t deadline_ns; /* UINT64_MAX: none */
    bool waited;          /* a thread takes it over when it is done: no finish() */
    bool expired;
    bool done;
    bool over;  /* refused: and so will be all that is asked of the same attachment */
    int result; /* once done: 0 or KVC_E_* */
    char reason[ERROR_SENTENCE_MAX];
};

/* For conn_ask(). Clears no more than the first byte of `reason`, which is larger than all the rest. */
void request_init(struct request *request,
                  int (*receive)(struct request *request, const struct message *message, struct fdset *fds,
                                 bool truncated),
                  void (*finish)(struct request *request));

/* For receive(): says what is wrong with the packet. Returns KVC_E_PROTOCOL. */
int request_violated(struct request *request, const char *format, ...)
    __attribute__((cold, format(printf, 2, 3)));

struct conn {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a request is done or has expired, the leader resigned, or has looked */
    struct link *link;
    struct list requests;
    uint64_t timeout_ns;
    uint32_t last_id;
    uint32_t owed_ack; /* for this request; 0: none */
    bool has_leader;
    bool receiving;
    bool watched; /* somebody waits until the leader has looked */
    atomic_bool alive;
    struct interrupt interrupt; /* the host's */

    /* Takes what the daemon says without having been asked (moves it away). Negative: the connection ends.
     * NULL: nothing may come. May acknowledge descriptors, but neither ask nor wait. */
    int (*on_news)(void *data, struct message *message, struct fdset *fds, bool truncated);
    void *news_data;
    char reason[ERROR_SENTENCE_MAX]; /* why it is not */
};

/* Takes the socket over, on success and on failure. */
int conn_new(int fd, uint64_t timeout_ns, struct conn **ret);
struct conn *conn_free(struct conn *conn);
DEFINE_CLEANUP(struct conn *, conn_free);

/* Frees host memory only, in a forked child: the descriptor stays open. What the requests have beside
 * themselves is their owners' to free before. */
struct conn *conn_forget(struct conn *conn);

/* All below: with the lock held. */

/* Sends the question; from then on the request is the connection's. On failure (KVC_E_DISCONNECTED,
 * KVC_E_TIMEOUT, KVC_E_NOMEM) it stays the caller's. */
int conn_ask(struct conn *conn, struct request *request, uint16_t type, const ProtobufCMessage *body);

/* Waits until the request is done: then it is the caller's again, and the result is returned (the sentence is
 * set). Or KVC_E_TIMEOUT, KVC_E_INTERRUPTED: the request stays the connection's, which will finish() it.
 * Releases the lock while it waits. */
int conn_wait(struct conn *conn, struct request *request);

/* The same, with a deadline of the caller's own: for who has several questions out at once. */
int conn_wait_until(struct conn *conn, struct request *request, uint64_t deadline_ns);

/* So long from now. UINT64_MAX: never. */
uint64_t conn_deadline(uint64_t timeout_ns);

/* The two ends of such a wait, for who has more to do meanwhile: in between, until the request is done or
 * expired, conn_wait_while_until(), whose result is `r`. */
void conn_wait_begin(struct request *request, uint64_t deadline_ns);
int conn_wait_end(struct request *request, int r);

/* Waits as long as pending(data) is true, receiving for everybody; for things that change when some request
 * is done, expires, or the connection ends. 0 or KVC_E_INTERRUPTED. */
int conn_wait_while(struct conn *conn, bool (*pending)(const void *data), const void *data);

/* The same; from `until_ns` on pending() is asked again at once. It must be false then. */
int conn_wait_while_until(struct conn *conn, bool (*pending)(const void *data), const void *data,
                          uint64_t until_ns);

/* Starts the time for a request's answer anew; `expired` becomes true when it is over. */
void conn_start_time(struct conn *conn, struct request *request);

/* Sends a message that is part of an exchange already going on, or (request 0) one that is not answered. A
 * failure ends the connection. */
void conn_tell(struct conn *conn, uint16_t type, uint32_t request, const ProtobufCMessage *body);

/* Says that a packet of descriptors has come: at once, or, `lazily`, with what is said next. A lazy one must
 * be the last that the daemon has to send, for it sends no other descriptors before. */
void conn_acknowledge(struct conn *conn, uint32_t request, bool lazily);

/* Says it now, if there is one to say. */
void conn_acknowledge_owed(struct conn *conn);

/* Sends and receives what it can without waiting; a waiting thread receives alone. */
void conn_dispatch(struct conn *conn);

/* Ends the connection, for good, with a KVC_E_* and a sentence for who is waiting. */
void conn_die(struct conn *conn, int error, const char *format, ...)
    __attribute__((cold, format(printf, 3, 4)));

/* 0, or KVC_E_DISCONNECTED with the reason. */
int conn_check(struct conn *conn);

/* What poll() should wait for on the socket when nobody waits for an answer. */
short conn_events(const struct conn *conn);

/* Whether there are requests that no thread takes over. */
bool conn_has_background(const struct conn *conn);

/* Whether this is the only one. */
bool conn_asks_only(const struct conn *conn, const struct request *request);

/* CLOCK_MONOTONIC. */
uint64_t conn_now_ns(void);

/* A condition whose waits end by that clock. */
void conn_init_condition(pthread_cond_t *condition);

/* ---- For conn_wait.c ---- */

/* How long a leader waits in recvmsg(). */
#define CONN_MOMENT_NS (10 * NSEC_PER_MSEC)

/* Receives one packet and hands it on. False when there is nothing more. */
bool conn_receive_one(struct conn *conn);

void conn_flush(struct conn *conn);
