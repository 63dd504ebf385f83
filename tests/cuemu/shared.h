/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The registry's layout in shared memory and its inner functions; for registry.c and extents.c alone.
 *
 * Authoritative are: each extent's record, each slot's table of references (which only its owner writes), and
 * the locks. Everything marked "derived" is a cache of those and is computed anew when somebody dies inside
 * the mutex, so no order of stores has to be crash-safe beyond: a record is complete before its state says
 * LIVE.
 */

#include <pthread.h>
#include <stdio.h>
#include <sys/types.h>

#include "folder.h"

#define SHARED_MAGIC UINT64_C(0x75656d646568636b)
#define SHARED_FORMAT 1
#define NO_EXTENT UINT32_MAX

enum extent_state {
    EXTENT_FREE = 0,
    EXTENT_LIVE,
    EXTENT_DYING, /* without references; `reaper` is giving its bytes back and will make it free */
};

struct extent {
    uint32_t state;
    uint32_t refs; /* derived: over all slots */
    uint64_t size;
    uint64_t export_ino; /* inode of its lock file, 0 while there is none */
    uint64_t creator;    /* serial of a slot's use */
    uint32_t reaper;     /* slot */
    uint32_t next;       /* derived: in the free list or the reaper's list */
    struct extent_props props;
};

struct device_shared {
    uint64_t total;
    uint64_t extents_at; /* offset of the records in the registry file */
    uint64_t refs_at;    /* offset within a slot's table of references */
    uint64_t used;       /* derived */
    uint32_t capacity;   /* records */
    uint32_t high;       /* records ever used: [0, high) */
    uint32_t free_head;  /* derived */
    uint32_t n_orphans;  /* derived: LIVE, exported, without references */
    uint32_t n_dying;    /* derived */
};

struct slot {
    uint64_t serial; /* of this use of the slot */
    uint32_t taken;
    pid_t pid;
};

struct shared {
    uint64_t magic;
    uint32_t format;
    uint32_t layout;      /* size of this struct */
    uint64_t serial;      /* last given to a slot */
    uint64_t size;        /* of the registry file */
    uint64_t refs_at;     /* offset of the slots' tables of references */
    uint64_t refs_stride; /* bytes of one */
    uint32_t n_devices;
    uint32_t n_slots; /* slots ever used: [0, n_slots) */
    uint32_t reaped;  /* futex: grows when dying extents have become free */
    uint32_t looked;  /* the slot that a joiner looked at last */
    pthread_mutex_t mutex;
    struct device_shared devices[EMU_MAX_DEVICES];
    struct slot slots[EMU_MAX_SLOTS];
};

struct registry {
    int dir;
    dev_t file_system; /* of the folder */
    char *path;
    int fd; /* of the registry file */
    struct shared *shared;
    struct extent *extents[EMU_MAX_DEVICES];
    int memory[EMU_MAX_DEVICES];
    unsigned slot;
    int slot_fd;
    uint32_t *refs[EMU_MAX_DEVICES]; /* this process's references, by extent: its slot's table */
    uint32_t dying[EMU_MAX_DEVICES]; /* extents of which we are the reaper */
};

/* The mutex. Unlocking also reaps what the caller has left dying. */
void shared_lock(struct registry *registry);
void shared_unlock(struct registry *registry);

bool slot_is_dead(struct registry *registry, unsigned slot);

/* Under the mutex: what a slot refers to loses its references. */
void slot_sweep(struct registry *registry, unsigned slot);

/* Under the mutex: the slot can be taken again. */
void slot_bury(struct registry *registry, unsigned slot);

/* Under the mutex: an extent has lost its last reference. It dies, unless an exported descriptor lives. */
void extent_settle(struct registry *registry, unsigned device, uint32_t id);

/* Under the mutex: we become the reaper of a dying extent. */
void extent_adopt(struct registry *registry, unsigned device, uint32_t id);

/* Gives back the bytes of all extents that we reap, and makes them free. Takes the mutex. */
void extents_reap(struct registry *registry);

/* Is there an orphan whose last descriptor is gone? Without the mutex, so a hint. */
bool extents_have_dead_orphan(struct registry *registry);

/* Under the mutex: such orphans die. */
void extents_sweep_orphans(struct registry *registry);

static inline const char *extent_file_name(char buf[static FOLDER_NAME_MAX], unsigned device, uint32_t id)
{
    snprintf(buf, FOLDER_NAME_MAX, FOLDER_EXTENT, device, id);
    return buf;
}

static inline const char *slot_file_name(char buf[static FOLDER_NAME_MAX], unsigned slot)
{
    snprintf(buf, FOLDER_NAME_MAX, FOLDER_SLOT, slot);
    return buf;
}
