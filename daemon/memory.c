/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Jobs for the backing thread. Each extent has one at a time: where a cold grant still has one under way when
 * the broker wants the extent to go, the release waits for it.
 */

#include "memory.h"

#include <errno.h>

#include "chronicle.h"
#include "grant.h"

void memory_create(struct server *server, uint64_t extent, unsigned class_index)
{
    struct slot *slot;

    if (slots_add(&server->slots, extent, &slot) < 0) {
        broker_created(server->broker, extent, false, server_now());
        return;
    }
    server->n_slots++;
    slot->job.bytes = server->settings.broker.class_bytes[class_index];
    backing_submit(server->backing, &slot->job, BACKING_CREATE);
}

void memory_export(struct server *server, uint64_t extent)
{
    backing_submit(server->backing, &slots_find(&server->slots, extent)->job, BACKING_EXPORT);
}

void memory_export_granted(struct server *server, struct slot *slot)
{
    slot->granted_export = true;
    backing_submit(server->backing, &slot->job, BACKING_EXPORT);
}

void memory_release(struct server *server, uint64_t extent)
{
    struct slot *slot = slots_find(&server->slots, extent);

    if (slot->granted_export)
        slot->release_wanted = true;
    else
        backing_submit(server->backing, &slot->job, BACKING_RELEASE);
}

/* Said once, until a call of the kind succeeds again. A full device is no failure. */
static void note_outcome(struct server *server, const struct slot *slot, const char *what)
{
    unsigned bit = 1u << slot->job.type;
    bool failed = slot->job.r != 0 && slot->job.r != -ENOMEM;

    if (failed && !(server->failing & bit)) {
        log_warning("The driver did not %s memory: %s", what, slot->job.why);
        chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_DRIVER_FAILED, NULL, 0, 0,
                       "The driver did not %s memory: %s", what, slot->job.why);
    }
    if (!failed && server->failing & bit)
        chronicle_note(server, KVCACHED__EVENT_KIND__EVENT_DRIVER_RECOVERED, NULL, 0, 0,
                       "The driver can %s memory again", what);
    server->failing = failed ? server->failing | bit : server->failing & ~bit;
}

static void drop(struct server *server, struct slot *slot)
{
    slot_remove(slot);
    server->n_slots--;
}

static void created(struct server *server, struct slot *slot)
{
    bool ok = slot->job.r == 0;
    uint64_t id = slot->id;

    note_outcome(server, slot, "create");
    if (!ok)
        drop(server, slot);
    broker_created(server->broker, id, ok, server_now());
}

/* The grant that asked may be gone by now, and its extent about to go. */
static void exported(struct server *server, struct slot *slot)
{
    note_outcome(server, slot, "export");
    if (!slot->granted_export) {
        broker_exported(server->broker, slot->id, slot->job.r == 0, server_now());
        return;
    }
    slot->granted_export = false;
    if (slot->release_wanted)
        backing_submit(server->backing, &slot->job, BACKING_RELEASE);
    else if (slot->grant)
        grant_exported(slot);
    else
        slot->job.fd = close_fd(slot->job.fd);
}

static void released(struct server *server, struct slot *slot)
{
    uint64_t id = slot->id, freed_bytes = slot->job.bytes;

    note_outcome(server, slot, "release");
    drop(server, slot);
    broker_destroyed(server->broker, id, freed_bytes, server_now());
}

void memory_done(struct server *server, struct slot *slot)
{
    switch (slot->job.type) {
    case BACKING_CREATE:
        created(server, slot);
        break;
    case BACKING_EXPORT:
        exported(server, slot);
        break;
    default:
        released(server, slot);
        break;
    }
}
