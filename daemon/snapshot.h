/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Snapshot: the broker's state as messages for kvctl, and how kvctl's names are resolved. Pure.
 *
 * A name is "instance" or "domain/instance"; instances have no slash in their names, domains may.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "broker.h"
#include "wire/codec.h"

#define SNAPSHOT_PROGRAM_MAX 64
#define SNAPSHOT_PEERS_MAX 256 /* of one instance that are listed */
#define SNAPSHOT_REASON_MAX 512

enum {
    _SNAPSHOT_E_SUCCESS,
    SNAPSHOT_E_NOT_FOUND,
    SNAPSHOT_E_AMBIGUOUS,
};

/* What the server knows of a peer; broker_peer.owner points to it. */
struct snapshot_peer {
    int32_t pid;
    Kvcached__Role role;
    bool connected;
    char program[SNAPSHOT_PROGRAM_MAX + 1];
};

/* One instance. 0 or -ENOMEM. */
int snapshot_instance(struct broker *broker, const struct broker_instance *instance,
                      Kvcached__InstanceInfo **ret);
Kvcached__InstanceInfo *snapshot_instance_free(Kvcached__InstanceInfo *info);
DEFINE_CLEANUP(Kvcached__InstanceInfo *, snapshot_instance_free);

/* A page of the list from `cursor` on, of all instances or of those with the given names. 0, or
 * SNAPSHOT_E_NOT_FOUND with the name that nobody has in *ret_missing, or -ENOMEM. */
int snapshot_list(struct broker *broker, char *const *names, size_t n_names, uint64_t cursor,
                  Kvcached__ListReply **ret, const char **ret_missing);
Kvcached__ListReply *snapshot_list_free(Kvcached__ListReply *reply);
DEFINE_CLEANUP(Kvcached__ListReply *, snapshot_list_free);

/* The one instance of this name. 0, or SNAPSHOT_E_* with a sentence in `reason`. */
int snapshot_find(struct broker *broker, const char *name, struct broker_instance **ret,
                  char reason[static SNAPSHOT_REASON_MAX]);

/* Splits "domain/instance" at the last slash; without one, the domain is empty and *ret_instance is the name.
 * False when a part is too long or empty. */
bool snapshot_split(const char *name, char ret_domain[static BROKER_DOMAIN_MAX + 1],
                    const char **ret_instance);

/* Whether it is worth a line. */
bool snapshot_lists(const struct broker_instance *instance);

/* The broker's sums. */
void snapshot_totals(struct broker *broker, Kvcached__InfoReply *reply);
