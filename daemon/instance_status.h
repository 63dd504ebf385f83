/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Instance status: what the server keeps beside each instance of the broker (its `owner`): the status page,
 * since when it is in which state, whether a refusal has been told, and where its schedulers find its
 * workers.
 */

#include <stdbool.h>

#include "base/list.h"
#include "broker.h"
#include "explain.h"
#include "wire/fdset.h"
#include "wire/status.h"

struct server;

struct instance_status {
    struct status_page *page;
    int page_fd;
    bool refused; /* since the last grant, and it was told */
    struct explain_times times;
    struct list orders;    /* of regions that workers have opened for schedulers: see orders.h */
    struct list attaching; /* schedulers that wait for one */
};

/* Makes the record when there is none yet. 0 or negative. */
int instance_status_of(struct server *server, struct broker_instance *broker_instance,
                       struct instance_status **ret);
struct instance_status *instance_status_free(struct instance_status *instance);

/* Adds a descriptor of the status page. */
int instance_status_share(const struct instance_status *instance, struct fdset *fds);

/* Something about it has changed: writes the status page, if anybody has it, and notes what began or ended.
 */
void instance_status_write(struct server *server, const struct broker_instance *broker_instance);

/* Once between two grants, and not too often: a client can have both in turn. */
void instance_status_note_refusal(struct server *server, const struct broker_instance *broker_instance,
                                  const char *reason);
void instance_status_note_grant(const struct broker_instance *broker_instance);
