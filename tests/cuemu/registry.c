/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The mutex, and what becomes of the dead.
 *
 * Each member has a slot: a table of its references, and a file that it keeps locked. The lock tells whether
 * it lives; a forked child holds the same open file description, so it keeps the slot alive as it would keep
 * a real driver's memory. There is no difference between leaving and being killed, but that who leaves cleans
 * up after itself at once.
 *
 * Who takes the mutex after somebody died inside computes everything derived anew (registry_rebuild); the
 * mutex is marked consistent only after that, so dying inside the rebuild is dying inside the mutex.
 *
 * A sweep looks for the dead first without the mutex, since nearly always there are none, and then looks
 * again inside. It is asked for before out of memory is reported and when somebody asks how much is free, not
 * on the way of ordinary calls.
 */

#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"

bool slot_is_dead(struct registry *registry, unsigned slot)
{
    char name[FOLDER_NAME_MAX];

    return !folder_is_locked(registry->dir, slot_file_name(name, slot));
}

/* Calls visit() with every reference in a slot's table, read as a file so that its holes stay holes. */
static void slot_for_each_ref(struct registry *registry, unsigned slot,
                              void (*visit)(struct registry *, unsigned device, uint32_t id, uint32_t refs))
{
    const struct shared *shared = registry->shared;
    uint32_t chunk[1024];

    for (unsigned device = 0; device < shared->n_devices; device++) {
        const struct device_shared *d = &shared->devices[device];
        uint64_t table = shared->refs_at + slot * shared->refs_stride + d->refs_at;

        for (uint32_t first = 0; first < d->high; first += ARRAY_SIZE(chunk)) {
            uint32_t n = (uint32_t)u64_min(ARRAY_SIZE(chunk), d->high - first);

            if (pread(registry->fd, chunk, n * sizeof(uint32_t), (off_t)(table + first * sizeof(uint32_t))) !=
                (ssize_t)(n * sizeof(uint32_t)))
                abort();
            for (uint32_t i = 0; i < n; i++)
                if (chunk[i])
                    visit(registry, device, first + i, chunk[i]);
        }
    }
}

static void drop_refs(struct registry *registry, unsigned device, uint32_t id, uint32_t refs)
{
    struct extent *extent = &registry->extents[device][id];

    if (extent->state != EXTENT_LIVE || extent->refs < refs)
        return;
    extent->refs -= refs;
    if (extent->refs == 0)
        extent_settle(registry, device, id);
}

/* What a dead reaper had not finished becomes ours. */
static void adopt_dying_of(struct registry *registry, unsigned slot)
{
    for (unsigned device = 0; device < registry->shared->n_devices; device++) {
        const struct device_shared *d = &registry->shared->devices[device];

        for (uint32_t id = 0; d->n_dying > 0 && id < d->high; id++)
            if (registry->extents[device][id].state == EXTENT_DYING &&
                registry->extents[device][id].reaper == slot)
                extent_adopt(registry, device, id);
    }
}

void slot_bury(struct registry *registry, unsigned slot)
{
    char name[FOLDER_NAME_MAX];

    unlinkat(registry->dir, slot_file_name(name, slot), 0);
    __atomic_store_n(&registry->shared->slots[slot].taken, 0, __ATOMIC_RELEASE);
}

void slot_sweep(struct registry *registry, unsigned slot)
{
    slot_for_each_ref(registry, slot, drop_refs);
    if (slot != registry->slot)
        adopt_dying_of(registry, slot);
}

static void count_refs(struct registry *registry, unsigned device, uint32_t id, uint32_t refs)
{
    registry->extents[device][id].refs += refs;
}

static void rebuild_extent(struct registry *registry, unsigned device, uint32_t id)
{
    struct device_shared *d = &registry->shared->devices[device];
    struct extent *extent = &registry->extents[device][id];

    switch (extent->state) {
    case EXTENT_LIVE:
        d->used += extent->size;
        if (extent->refs == 0)
            extent_settle(registry, device, id);
        break;
    case EXTENT_DYING:
        d->used += extent->size;
        d->n_dying++;
        if (!registry->shared->slots[extent->reaper].taken)
            extent_adopt(registry, device, id);
        break;
    default:
        extent->next = d->free_head;
        d->free_head = id;
    }
}

static void registry_rebuild(struct registry *registry)
{
    struct shared *shared = registry->shared;

    for (unsigned device = 0; device < shared->n_devices; device++)
        for (uint32_t id = 0; id < shared->devices[device].high; id++)
            registry->extents[device][id].refs = 0;
    for (unsigned slot = 0; slot < shared->n_slots; slot++) {
        if (!shared->slots[slot].taken)
            continue;
        if (slot_is_dead(registry, slot))
            slot_bury(registry, slot);
        else
            slot_for_each_ref(registry, slot, count_refs);
    }
    for (unsigned device = 0; device < shared->n_devices; device++) {
        struct device_shared *d = &shared->devices[device];

        d->used = 0;
        d->n_orphans = d->n_dying = 0;
        d->free_head = NO_EXTENT;
        for (uint32_t id = d->high; id-- > 0;)
            rebuild_extent(registry, device, id);
    }
}

void shared_lock(struct registry *registry)
{
    pthread_mutex_t *mutex = &registry->shared->mutex;

    if (pthread_mutex_lock(mutex) == EOWNERDEAD) {
        registry_rebuild(registry);
        pthread_mutex_consistent(mutex);
    }
}

void shared_unlock(struct registry *registry)
{
    pthread_mutex_unlock(&registry->shared->mutex);
    extents_reap(registry);
}

static bool have_dead_slot(struct registry *registry)
{
    unsigned n = __atomic_load_n(&registry->shared->n_slots, __ATOMIC_ACQUIRE);

    for (unsigned slot = 0; slot < n; slot++)
        if (__atomic_load_n(&registry->shared->slots[slot].taken, __ATOMIC_ACQUIRE) &&
            slot_is_dead(registry, slot))
            return true;
    return false;
}

void registry_sweep(struct registry *registry)
{
    struct shared *shared = registry->shared;

    if (!have_dead_slot(registry) && !extents_have_dead_orphan(registry))
        return;
    shared_lock(registry);
    for (unsigned slot = 0; slot < shared->n_slots; slot++)
        if (shared->slots[slot].taken && slot_is_dead(registry, slot)) {
            slot_sweep(registry, slot);
            slot_bury(registry, slot);
        }
    extents_sweep_orphans(registry);
    shared_unlock(registry);
}

unsigned registry_n_devices(const struct registry *registry)
{
    return registry->shared->n_devices;
}

uint64_t registry_total(const struct registry *registry, unsigned device)
{
    return registry->shared->devices[device].total;
}

const char *registry_path(const struct registry *registry)
{
    return registry->path;
}

uint64_t registry_used(const struct registry *registry, unsigned device)
{
    return __atomic_load_n(&registry->shared->devices[device].used, __ATOMIC_ACQUIRE);
}

static uint64_t created_bytes(const struct registry *registry, unsigned device, uint64_t creator)
{
    uint64_t bytes = 0;

    for (uint32_t id = 0; id < registry->shared->devices[device].high; id++) {
        const struct extent *extent = &registry->extents[device][id];

        if (extent->state != EXTENT_FREE && extent->creator == creator)
            bytes += extent->size;
    }
    return bytes;
}

unsigned registry_processes(struct registry *registry, unsigned device, struct registry_process *processes,
                            unsigned max)
{
    const struct shared *shared = registry->shared;
    unsigned n = 0;

    shared_lock(registry);
    for (unsigned slot = 0; slot < shared->n_slots; slot++) {
        uint64_t bytes =
            shared->slots[slot].taken ? created_bytes(registry, device, shared->slots[slot].serial) : 0;

        if (bytes == 0)
            continue;
        if (n < max)
            processes[n] = (struct registry_process){shared->slots[slot].pid, bytes};
        n++;
    }
    shared_unlock(registry);
    return n;
}

int registry_memory(struct registry *registry, unsigned device, int *ret_fd)
{
    char name[FOLDER_NAME_MAX];
    int r = 0;

    if (registry->memory[device] < 0) {
        snprintf(name, sizeof(name), FOLDER_MEMORY, device);
        r = folder_open_file(registry->dir, name, O_RDWR, &registry->memory[device]);
    }
    if (r == 0)
        *ret_fd = registry->memory[device];
    return r;
}
