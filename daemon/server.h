/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Server: the daemon's one loop, and what its modules share. Everything here belongs to the loop's thread.
 */

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "backing.h"
#include "broker.h"
#include "config.h"
#include "counters.h"
#include "device.h"
#include "events.h"
#include "flight.h"
#include "gates.h"
#include "history.h"
#include "limit_store.h"
#include "log.h"
#include "options.h"
#include "settings.h"
#include "since.h"
#include "slots.h"

#define SERVER_ERROR_MAX 512

struct http;

struct server {
    uv_loop_t loop;
    const struct options *options;
    struct config *config;
    struct device *device;
    struct settings settings;
    struct broker *broker;
    struct backing *backing;
    struct backing_job look;
    struct http *http; /* NULL: there is none */
    struct slots slots;
    unsigned n_slots;
    struct flight flight;
    struct limit_store *limits;
    struct lock *device_lock;
    gid_t admin_gid;

    struct events events;
    bool has_news; /* since the followers were told */
    struct server_counters counters;
    struct history history;
    struct since over_budget;
    uint64_t life; /* of this daemon: a number that no other one has */
    uint64_t started_ns;

    struct list listeners;
    struct list links;        /* symbolic links that name our sockets by UUID */
    struct list peers;        /* every peer that isn't freed */
    struct list handshakes;   /* those that have not said Hello, oldest first */
    struct list stalled;      /* those that wait for room in flight */
    struct list keep_waiting; /* those that keep descriptors waiting, the longest first */
    struct list throttled;    /* those whose packet the kernel refused with ETOOMANYREFS, or still holds */
    struct list doomed;       /* those that server_settle() disconnects */
    struct list followers;    /* those that wait for events */
    unsigned n_peers;

    uint64_t turn; /* of the loop */
    uint64_t sent_turn;
    int sent_fd; /* sent in that turn, and still to be closed; -1: there is none */

    uv_timer_t tick, handshake, throttle, chill, look_again, drain_by, watchdog;
    uv_prepare_t prepare;
    uv_signal_t signals[3];
    bool has_loop;
    bool settling;
    bool room_grew;            /* in flight, since the stalled were last looked at */
    unsigned failing;          /* kinds of driver calls, by bit, whose last failure was said */
    bool look_failed;          /* and it was said */
    bool draining;             /* a signal has ended it */
    bool drain_failed;         /* the driver still had work when the time was over */
    struct gates notes, lines; /* of what peers can cause at will */
    struct gate all_lines;     /* of all domains */
};

/* Opens sockets and state for a device that is open; takes over config and device, also on failure. 0, or
 * negative with one sentence in `error`. */
int server_new(const struct options *options, struct config *config, struct device *device,
               struct server **ret, char error[static SERVER_ERROR_MAX]);

/* Serves until a signal ends it. 0 or negative. */
int server_run(struct server *server);

/* False: the driver hangs in a call; the process must end without waiting for it. */
bool server_free(struct server *server);

/* Tells the service manager. */
void server_say_ready(const struct server *server);

uint64_t server_now(void); /* CLOCK_MONOTONIC, nanoseconds */

/* Carries out what the broker has decided and disconnects who has failed, until nothing is left. At the end
 * of every event. */
void server_settle(struct server *server);

/* Tells the broker what the configuration file says about an instance. */
void server_set_config_limit(struct server *server, const struct broker_instance *instance);
