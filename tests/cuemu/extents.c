/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Extents and their references: creating, sharing by descriptor, and dying.
 *
 * An extent lives while a slot refers to it or while a descriptor that was exported from it exists anywhere.
 * The end of a descriptor is no event, so an extent whose last reference goes while descriptors may exist
 * becomes an orphan, which the next sweep looks at.
 *
 * Dying takes two steps, because giving megabytes back to the kernel is slow and must not happen inside the
 * mutex: the record becomes DYING, with us as its reaper; the bytes are punched out of the device's file; the
 * record becomes FREE and only now stops counting. If we are killed between, whoever sweeps our slot reaps in
 * our place; punching twice does no harm while the record is not free.
 *
 * There is no allocator of offsets: an extent's place in the sparse file follows from its number and its
 * size.
 */

#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"

/* A number has 18 bits and a size at most 39, so both fit below the class. */
uint64_t registry_offset(uint32_t id, uint64_t size)
{
    unsigned order = 64 - (unsigned)__builtin_clzll(size - 1);

    return (uint64_t)(order - 21) << 57 | (uint64_t)id << order;
}

static uint32_t take_record(struct registry *registry, unsigned device)
{
    struct device_shared *d = &registry->shared->devices[device];
    uint32_t id = d->free_head;

    if (id != NO_EXTENT)
        d->free_head = registry->extents[device][id].next;
    else if (d->high < d->capacity)
        id = d->high++;
    return id;
}

static bool try_create(struct registry *registry, unsigned device, uint64_t size,
                       const struct extent_props *props, uint32_t *ret_id)
{
    struct device_shared *d = &registry->shared->devices[device];
    struct extent *extent;
    uint32_t id;

    if (size > d->total - d->used)
        return false;
    id = take_record(registry, device);
    if (id == NO_EXTENT)
        return false;
    extent = &registry->extents[device][id];
    extent->size = size;
    extent->export_ino = 0;
    extent->creator = registry->shared->slots[registry->slot].serial;
    extent->props = *props;
    extent->refs = 1;
    registry->refs[device][id] = 1;
    __atomic_store_n(&extent->state, EXTENT_LIVE, __ATOMIC_RELEASE);
    d->used += size;
    *ret_id = id;
    return true;
}

/* A reaper that takes longer than this is stopped, not slow. */
#define REAPER_MOMENTS 100

/* Sleeps until some reaper has finished, or a moment later, in case that it was killed. */
static void wait_for_reaper(struct registry *registry, uint32_t reaped)
{
    struct timespec moment = {.tv_nsec = (long)(10 * NSEC_PER_MSEC)};

    syscall(SYS_futex, &registry->shared->reaped, FUTEX_WAIT, reaped, &moment, NULL, 0);
}

int registry_create(struct registry *registry, unsigned device, uint64_t size,
                    const struct extent_props *props, uint32_t *ret_id)
{
    struct device_shared *d = &registry->shared->devices[device];

    if (size > d->total)
        return REGISTRY_E_FULL;
    for (unsigned tries = 0;; tries++) {
        uint32_t reaped = __atomic_load_n(&registry->shared->reaped, __ATOMIC_ACQUIRE);
        bool created, dying;

        shared_lock(registry);
        created = try_create(registry, device, size, props, ret_id);
        dying = d->n_dying > 0;
        shared_unlock(registry);
        if (created)
            return 0;
        if (tries > 0 && (!dying || tries > REAPER_MOMENTS))
            return REGISTRY_E_FULL;
        if (tries > 0)
            wait_for_reaper(registry, reaped);
        registry_sweep(registry);
    }
}

static bool is_exported(struct registry *registry, unsigned device, uint32_t id)
{
    char name[FOLDER_NAME_MAX];

    return registry->extents[device][id].export_ino &&
           folder_is_locked(registry->dir, extent_file_name(name, device, id));
}

void extent_adopt(struct registry *registry, unsigned device, uint32_t id)
{
    struct extent *extent = &registry->extents[device][id];

    extent->reaper = registry->slot;
    extent->next = registry->dying[device];
    registry->dying[device] = id;
}

static void extent_die(struct registry *registry, unsigned device, uint32_t id)
{
    struct extent *extent = &registry->extents[device][id];
    char name[FOLDER_NAME_MAX];

    if (extent->export_ino)
        unlinkat(registry->dir, extent_file_name(name, device, id), 0);
    extent_adopt(registry, device, id);
    registry->shared->devices[device].n_dying++;
    __atomic_store_n(&extent->state, EXTENT_DYING, __ATOMIC_RELEASE);
}

void extent_settle(struct registry *registry, unsigned device, uint32_t id)
{
    if (is_exported(registry, device, id))
        registry->shared->devices[device].n_orphans++;
    else
        extent_die(registry, device, id);
}

void registry_unref(struct registry *registry, unsigned device, uint32_t id)
{
    shared_lock(registry);
    registry->refs[device][id]--;
    if (--registry->extents[device][id].refs == 0)
        extent_settle(registry, device, id);
    shared_unlock(registry);
}

/* The size of the file says which extent it is of: looking at it is one system call, reading another. */
static off_t export_size(unsigned device, uint32_t id)
{
    return (off_t)(((uint64_t)device << 32 | id) + 1);
}

/*
 * The first export of an extent makes its lock file. The record says that there may be one before there is,
 * so that it goes with the extent whenever we are killed.
 */
static int make_lock_file(struct registry *registry, unsigned device, uint32_t id)
{
    struct extent *extent = &registry->extents[device][id];
    _cleanup_close_ int fd = -1;
    char name[FOLDER_NAME_MAX];
    struct stat st;
    int r;

    extent->export_ino = UINT64_MAX;
    r = folder_open_file(registry->dir, extent_file_name(name, device, id), O_RDWR | O_CREAT | O_TRUNC, &fd);
    if (r == 0 && (ftruncate(fd, export_size(device, id)) < 0 || fstat(fd, &st) < 0))
        r = -EIO;
    extent->export_ino = r == 0 ? st.st_ino : 0;
    return r;
}

int registry_export(struct registry *registry, unsigned device, uint32_t id, int *ret_fd)
{
    _cleanup_close_ int fd = -1;
    char name[FOLDER_NAME_MAX];
    int r = 0;

    shared_lock(registry);
    if (!registry->extents[device][id].export_ino)
        r = make_lock_file(registry, device, id);
    if (r == 0)
        r = folder_open_file(registry->dir, extent_file_name(name, device, id), O_RDONLY, &fd);
    if (r == 0)
        r = folder_lock_shared(fd);
    shared_unlock(registry);
    if (r == 0)
        *ret_fd = steal_fd(&fd);
    return r;
}

/*
 * The extent whose lock file it is, or NULL. An inode number belongs to one file for as long as anybody has
 * it open, so it tells an old descriptor from a new one. Under the mutex.
 */
static struct extent *extent_of_file(struct registry *registry, const struct stat *st,
                                     struct extent_ref *ret_ref)
{
    uint64_t number = (uint64_t)st->st_size - 1;
    uint64_t device = number >> 32;
    uint32_t id = (uint32_t)number;
    struct extent *extent;

    if (device >= registry->shared->n_devices || id >= registry->shared->devices[device].high)
        return NULL;
    extent = &registry->extents[device][id];
    if (extent->state != EXTENT_LIVE || extent->export_ino != st->st_ino)
        return NULL;
    *ret_ref = (struct extent_ref){(unsigned)device, id, extent->size, extent->props};
    return extent;
}

int registry_import(struct registry *registry, int fd, struct extent_ref *ret_ref)
{
    struct extent *extent;
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || st.st_dev != registry->file_system)
        return REGISTRY_E_FOREIGN;
    shared_lock(registry);
    extent = extent_of_file(registry, &st, ret_ref);
    if (extent) {
        registry->refs[ret_ref->device][ret_ref->id]++;
        if (extent->refs++ == 0)
            registry->shared->devices[ret_ref->device].n_orphans--;
    }
    shared_unlock(registry);
    return extent ? 0 : REGISTRY_E_FOREIGN;
}

/* Calls visit() for each orphan until it returns true; true then. */
static bool any_orphan(struct registry *registry,
                       bool (*visit)(struct registry *, unsigned device, uint32_t id))
{
    for (unsigned device = 0; device < registry->shared->n_devices; device++) {
        const struct device_shared *d = &registry->shared->devices[device];

        if (__atomic_load_n(&d->n_orphans, __ATOMIC_RELAXED) == 0)
            continue;
        for (uint32_t id = 0; id < d->high; id++) {
            const struct extent *extent = &registry->extents[device][id];

            if (__atomic_load_n(&extent->state, __ATOMIC_ACQUIRE) == EXTENT_LIVE &&
                __atomic_load_n(&extent->refs, __ATOMIC_RELAXED) == 0 && visit(registry, device, id))
                return true;
        }
    }
    return false;
}

static bool orphan_is_dead(struct registry *registry, unsigned device, uint32_t id)
{
    return !is_exported(registry, device, id);
}

static bool orphan_dies_if_dead(struct registry *registry, unsigned device, uint32_t id)
{
    if (!is_exported(registry, device, id)) {
        registry->shared->devices[device].n_orphans--;
        extent_die(registry, device, id);
    }
    return false;
}

bool extents_have_dead_orphan(struct registry *registry)
{
    return any_orphan(registry, orphan_is_dead);
}

void extents_sweep_orphans(struct registry *registry)
{
    any_orphan(registry, orphan_dies_if_dead);
}

uint64_t registry_count_exported(struct registry *registry)
{
    uint64_t n = 0;

    shared_lock(registry);
    for (unsigned device = 0; device < registry->shared->n_devices; device++)
        for (uint32_t id = 0; id < registry->shared->devices[device].high; id++)
            n += registry->extents[device][id].state == EXTENT_LIVE && is_exported(registry, device, id);
    shared_unlock(registry);
    return n;
}

static void punch(struct registry *registry, unsigned device, uint32_t id)
{
    uint64_t size = registry->extents[device][id].size;
    int fd;

    if (registry_memory(registry, device, &fd) == 0)
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)registry_offset(id, size),
                  (off_t)size);
}

static void make_free(struct registry *registry, unsigned device, uint32_t id)
{
    struct device_shared *d = &registry->shared->devices[device];
    struct extent *extent = &registry->extents[device][id];

    d->used -= extent->size;
    d->n_dying--;
    extent->next = d->free_head;
    d->free_head = id;
    __atomic_store_n(&extent->state, EXTENT_FREE, __ATOMIC_RELEASE);
}

static void reap_device(struct registry *registry, unsigned device)
{
    const struct extent *extents = registry->extents[device];
    uint32_t last = registry->dying[device];
    int fd;

    /* With no descriptor left for the file it has to wait: what is free must read as zero. */
    if (registry_memory(registry, device, &fd) < 0)
        return;
    for (uint32_t id = last; id != NO_EXTENT; id = extents[id].next)
        punch(registry, device, id);

    shared_lock(registry);
    /* Taking the mutex may have put more in front of what has been punched. */
    while (registry->dying[device] != last) {
        uint32_t id = registry->dying[device];

        punch(registry, device, id);
        registry->dying[device] = extents[id].next;
        make_free(registry, device, id);
    }
    while (registry->dying[device] != NO_EXTENT) {
        uint32_t id = registry->dying[device];

        registry->dying[device] = extents[id].next;
        make_free(registry, device, id);
    }
    registry->shared->reaped++;
    pthread_mutex_unlock(&registry->shared->mutex);
    syscall(SYS_futex, &registry->shared->reaped, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void extents_reap(struct registry *registry)
{
    for (unsigned device = 0; device < registry->shared->n_devices; device++)
        if (registry->dying[device] != NO_EXTENT)
            reap_device(registry, device);
}
