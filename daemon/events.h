/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Events: what has happened that is worth a line, the newest EVENTS_MAX of it, shared fairly by the trust
 * domains: whoever has most loses its oldest. Pure.
 */

#include <stdint.h>

#include "gates.h"

#define EVENTS_MAX 1024

struct event {
    uint64_t number;      /* from 1, in order */
    uint64_t realtime_ms; /* since 1970, as the clock said then */
    int kind;             /* Kvcached__EventKind */
    int32_t pid;          /* 0: about no process */
    uint64_t bytes;
    const char *domain, *instance; /* "": about none */
    const char *text;              /* one sentence, printable */
    uint16_t group;                /* of its domain; events_add() fills it in */
};

struct events {
    uint64_t secret;                /* groups domains, as gates do */
    struct event *kept[EVENTS_MAX]; /* by number */
    uint16_t n_of[GATES_N];         /* by group */
    unsigned n;
    uint64_t last; /* number of the newest; 0: there is none */
};

void events_deinit(struct events *events);

/* Copies it, gives it its number, and cleans its text of what is not printable. 0, or -ENOMEM: its number is
 * used up, and it is missing. */
int events_add(struct events *events, const struct event *event);

/* The oldest that is kept with a number above `after`; NULL: there is none. It lives until the next is added.
 */
const struct event *events_next(const struct events *events, uint64_t after);

/* The newest, at most `max` of them, into `ret`, by number; shared by the domains in the same way. Returns
 * how many. */
unsigned events_recent(const struct events *events, unsigned max, const struct event **ret);
