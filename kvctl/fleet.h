/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Fleet: the daemons that a command is about: the one that the options name, or with --all each that
 * listens in the usual folders, by the numbers of their GPUs.
 */

#include "command.h"
#include "json.h"

struct fleet_member {
    uint32_t gpu; /* as its daemon says; before it has, as its socket is called */
    char *socket;
    struct control *control;
    int r; /* 0: connected; CONTROL_E_PENDING: not yet; else control_reason() says why not */
};

struct fleet {
    size_t n;
    struct fleet_member *members;
};

/*
 * Exit status; where there is not one to talk to, that was complained of. Those that could not be reached
 * are members as well. `timeout_ms`: for each answer; 0: as long as other commands wait. With fleet_begin()
 * those that --all finds are still to be waited for: fleet_member_end().
 */
int fleet_connect(const struct invocation *invocation, int timeout_ms, struct fleet *ret);
int fleet_begin(const struct invocation *invocation, int timeout_ms, struct fleet *ret);
void fleet_deinit(struct fleet *fleet);

/* For one of them, in two halves, as of control.h. What becomes of it is in member->r. */
void fleet_member_begin(struct fleet_member *member, int timeout_ms);
void fleet_member_end(struct fleet_member *member);

struct json_origin fleet_origin(const struct control *control);

/* Calls `run` for each, with a heading line where there may be several and `headings`; complains of
 * those that could not be reached. The worst status. */
int fleet_each(const struct invocation *invocation, bool headings,
               int (*run)(const struct invocation *invocation, struct control *control, void *userdata),
               void *userdata);

/* The same where --json makes an array of what `run` appends to it: printed whole, if all went well.
 * `array` is NULL without --json. */
int fleet_report(const struct invocation *invocation, bool headings,
                 int (*run)(const struct invocation *invocation, struct control *control, void *array));
