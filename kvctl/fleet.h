/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Fleet: the daemons that a command is about: the one that the options name, or with --all each that
 * listens in the usual folders, by the numbers of their GPUs.
 */

#include "command.h"
#include "json.h"

struct fleet {
    size_t n;
    struct control **controls; /* connected */
    int status;                /* of those that could not be reached: they were complained of */
};

/* Exit status; only with none at all anything but STATUS_DONE. */
int fleet_connect(const struct invocation *invocation, struct fleet *ret);
void fleet_deinit(struct fleet *fleet);

struct json_origin fleet_origin(const struct control *control);

/* Calls `run` for each, with a heading line where there may be several and `headings`. The worst status. */
int fleet_each(const struct invocation *invocation, bool headings,
               int (*run)(const struct invocation *invocation, struct control *control, void *userdata),
               void *userdata);
