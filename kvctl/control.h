/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Control: one conversation with a daemon over its control socket. Each call sends a request and waits for
 * the answer; for who must not wait, some come in two halves. Not thread-safe.
 *
 * Calls return 0, one of CONTROL_E_*, or a negative errno; after anything but 0, control_reason() is a
 * sentence that says what was the matter.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "wire/codec.h"

enum {
    _CONTROL_E_SUCCESS,
    CONTROL_E_NO_DAEMON, /* nobody to talk to, or nobody who may be trusted */
    CONTROL_E_REFUSED,   /* the daemon said no: control_refusal() */
    CONTROL_E_FAILED,    /* not allowed to connect, the connection broke, nonsense came */
    CONTROL_E_SILENT,    /* no answer in time */
    CONTROL_E_PENDING,   /* of *_end() only: no answer yet; there is no reason then */
};

#define CONTROL_TIMEOUT_MS 10000

/* Zero-initialised: the daemon that the environment names, or the one of GPU 0. */
struct control_options {
    const char *socket; /* the daemon's own; its control socket is called the same with ".ctl" appended */
    const char *gpu;    /* number in PCI bus order, or UUID: control_names_gpu() */
    int timeout_ms;     /* for each answer; 0: CONTROL_TIMEOUT_MS */
};

struct control;

/* Whether the text has the form of a GPU's number or UUID. */
bool control_names_gpu(const char *gpu);

/* 0 or -ENOMEM. */
int control_new(struct control **ret);
struct control *control_free(struct control *control);
DEFINE_CLEANUP(struct control *, control_free);

/*
 * Finds the daemon, connects, checks that it runs as root, as this user or as the user kvcached, and greets
 * it. Its socket is `socket`; else, unless `gpu` is given, $KVCACHED_SOCKET; else gpu<N>.sock (or
 * <UUID>.sock) in the first of $RUNTIME_DIRECTORY, /run/kvcached and $XDG_RUNTIME_DIR/kvcached where somebody
 * listens.
 */
int control_connect(struct control *control, const struct control_options *options);

/* For each answer from now on; 0: CONTROL_TIMEOUT_MS. */
void control_set_timeout(struct control *control, int timeout_ms);

const char *control_reason(const struct control *control);
Kvcached__Error control_refusal(const struct control *control);

/* Once connected: the path of the control socket, and what the daemon said of itself. */
const char *control_path(const struct control *control);
const Kvcached__Welcome *control_welcome(const struct control *control);

/* What the daemon listed. The instances live until control_listing_deinit(). */
struct control_listing {
    size_t n;
    Kvcached__InstanceInfo **instances;
    size_t n_pages;
    struct message *pages;
};

/* All instances, or those called so ("name" or "domain/name"). */
int control_list(struct control *control, char *const *names, size_t n_names, struct control_listing *ret);
void control_listing_deinit(struct control_listing *listing);

/* Replies are the caller's: message_deinit(). The body has the type that the name says. */
int control_set_limit_bytes(struct control *control, const char *instance, uint64_t bytes,
                            struct message *ret_limit_reply);
int control_set_limit_ppm(struct control *control, const char *instance, uint32_t ppm,
                          struct message *ret_limit_reply);
int control_delete(struct control *control, const char *instance, bool force,
                   struct message *ret_delete_reply);

/* Whether the daemon knows the next three, and fills in what lists have had since. Asked of one that
 * doesn't, they are CONTROL_E_FAILED. */
bool control_knows_operations(const struct control *control);

/* With `wait`, where nothing newer than `after` has happened, until something does, however long it takes. */
int control_events(struct control *control, uint64_t after, bool wait, struct message *ret_events_reply);
int control_why(struct control *control, const char *instance, struct message *ret_why_reply);
int control_reload(struct control *control, struct message *ret_reloaded);

/* `instance` NULL: about the daemon. */
int control_info(struct control *control, const char *instance, struct message *ret_info_reply);

/*
 * Without waiting: after *_begin(), *_end() is called until it says something else than CONTROL_E_PENDING;
 * again whenever poll() finds these events at this descriptor, and when the patience is over (-1: never). The
 * descriptor is borrowed, and there is none before control_connect_begin() has returned 0. One request at a
 * time. control_list_end() adds to the listing, which is to be empty at first; whatever becomes of it, it is
 * the caller's to deinitialise.
 */
int control_fd(const struct control *control);
short control_poll_events(const struct control *control);
int control_patience_ms(const struct control *control);

int control_connect_begin(struct control *control, const struct control_options *options);
int control_connect_end(struct control *control);
int control_connect_await(struct control *control); /* the same, and waits after all */
int control_info_begin(struct control *control, const char *instance);
int control_info_end(struct control *control, struct message *ret_info_reply);
int control_list_begin(struct control *control, char *const *names, size_t n_names);
/* With the same names. */
int control_list_end(struct control *control, char *const *names, size_t n_names,
                     struct control_listing *listing);
