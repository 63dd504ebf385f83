/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Making, joining and leaving a registry. All of it happens inside the folder's gate.
 *
 * Who finds a folder in which nothing lives starts afresh: that is how what SIGKILLed processes have left
 * goes away, whatever its format and devices. A folder in use must have the devices that are wanted. The
 * names of the lock files are the same in all formats, so that life can be told before the format is.
 */

#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

/* One file offset space for all extents of a device; see registry_offset(). */
#define MEMORY_FILE_BYTES ((off_t)(INT64_MAX & ~(int64_t)(EMU_GRANULE - 1)))

__attribute__((format(printf, 4, 5))) static int fail(char *error, int r, const char *path,
                                                      const char *format, ...)
{
    char what[EMU_ERROR_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    snprintf(error, EMU_ERROR_MAX, "Emulated devices in %.100s: %.120s", path, what);
    return r;
}

static uint64_t page_round(uint64_t bytes)
{
    return (bytes + 4095) / 4096 * 4096;
}

static void lay_out(struct shared *shared, const uint64_t *totals, unsigned n_totals)
{
    uint64_t at = page_round(sizeof(*shared));

    shared->magic = SHARED_MAGIC;
    shared->format = SHARED_FORMAT;
    shared->layout = sizeof(*shared);
    shared->n_devices = n_totals;
    for (unsigned i = 0; i < n_totals; i++) {
        struct device_shared *d = &shared->devices[i];

        d->total = totals[i];
        d->capacity = (uint32_t)(totals[i] / EMU_GRANULE);
        d->free_head = NO_EXTENT;
        d->extents_at = at;
        d->refs_at = shared->refs_stride;
        at += page_round(d->capacity * sizeof(struct extent));
        shared->refs_stride += page_round(d->capacity * sizeof(uint32_t));
    }
    shared->refs_at = at;
    shared->size = at + shared->refs_stride * EMU_MAX_SLOTS;
}

static int init_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attr;
    int r;

    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    r = pthread_mutex_init(mutex, &attr);
    pthread_mutexattr_destroy(&attr);
    return -r;
}

static int make_memory_file(int dir, unsigned device)
{
    _cleanup_close_ int fd = -1;
    char name[FOLDER_NAME_MAX];
    int r;

    snprintf(name, sizeof(name), FOLDER_MEMORY, device);
    r = folder_open_file(dir, name, O_RDWR | O_CREAT | O_TRUNC, &fd);
    if (r < 0)
        return r;
    return ftruncate(fd, MEMORY_FILE_BYTES) < 0 ? -errno : 0;
}

static int make_registry(int dir, const uint64_t *totals, unsigned n_totals)
{
    _cleanup_free_ struct shared *draft = calloc(1, sizeof(*draft));
    _cleanup_close_ int fd = -1;
    struct shared *shared;
    int r;

    if (!draft)
        return -ENOMEM;
    folder_wipe(dir);
    for (unsigned i = 0; i < n_totals; i++) {
        r = make_memory_file(dir, i);
        if (r < 0)
            return r;
    }
    r = folder_open_file(dir, FOLDER_REGISTRY, O_RDWR | O_CREAT | O_TRUNC, &fd);
    if (r < 0)
        return r;
    lay_out(draft, totals, n_totals);
    if (ftruncate(fd, (off_t)draft->size) < 0)
        return -errno;
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        return -errno;
    *shared = *draft;
    r = init_mutex(&shared->mutex);
    munmap(shared, sizeof(*shared));
    return r;
}

static int read_header(int dir, struct shared *header)
{
    _cleanup_close_ int fd = -1;
    int r;

    r = folder_open_file(dir, FOLDER_REGISTRY, O_RDONLY, &fd);
    if (r < 0)
        return r;
    return pread(fd, header, sizeof(*header), 0) < (ssize_t)offsetof(struct shared, serial) ? -EIO : 0;
}

static bool same_devices(const struct shared *header, const uint64_t *totals, unsigned n_totals)
{
    if (n_totals != 0 && header->n_devices != n_totals)
        return false;
    for (unsigned i = 0; i < n_totals; i++)
        if (header->devices[i].total != totals[i])
            return false;
    return true;
}

static int check_registry(int dir, const char *path, const uint64_t *totals, unsigned n_totals, char *error)
{
    _cleanup_free_ struct shared *header = calloc(1, sizeof(*header));
    int r;

    if (!header)
        return fail(error, -ENOMEM, path, "out of memory");
    r = read_header(dir, header);
    if (r < 0)
        return fail(error, r, path, "%s", strerror(-r));
    if (header->magic != SHARED_MAGIC || header->format != SHARED_FORMAT || header->layout != sizeof(*header))
        return fail(error, -EPROTO, path,
                    "in use by another version of the emulator (format %u, this one has %u)", header->format,
                    SHARED_FORMAT);
    if (!same_devices(header, totals, n_totals))
        return fail(error, -EBUSY, path,
                    "in use with %u device(s), the first of %" PRIu64 " MiB, not as asked for",
                    header->n_devices, header->devices[0].total / MIB);
    return 0;
}

static int provide_registry(int dir, const char *path, const uint64_t *totals, unsigned n_totals,
                            uint64_t default_total, char *error)
{
    int r;

    if (folder_in_use(dir))
        return check_registry(dir, path, totals, n_totals, error);
    r = n_totals ? make_registry(dir, totals, n_totals) : make_registry(dir, &default_total, 1);
    return r < 0 ? fail(error, r, path, "%s", strerror(-r)) : 0;
}

static int map_registry(struct registry *registry)
{
    struct shared *shared;
    struct stat st;
    int r;

    r = folder_open_file(registry->dir, FOLDER_REGISTRY, O_RDWR, &registry->fd);
    if (r < 0)
        return r;
    if (fstat(registry->fd, &st) < 0)
        return -errno;
    shared =
        mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, registry->fd, 0);
    if (shared == MAP_FAILED)
        return -errno;
    registry->shared = shared;
    for (unsigned i = 0; i < shared->n_devices; i++)
        registry->extents[i] = (struct extent *)((char *)shared + shared->devices[i].extents_at);
    return 0;
}

static int lock_slot(struct registry *registry, unsigned slot)
{
    char name[FOLDER_NAME_MAX];
    int r;

    r = folder_open_file(registry->dir, slot_file_name(name, slot), O_RDWR | O_CREAT, &registry->slot_fd);
    if (r == 0)
        r = folder_lock_exclusive(registry->slot_fd);
    return r;
}

/*
 * Under the mutex. The table that the last owner left is cleared by giving its pages back. The slot is marked
 * as taken before its file exists, so that the file is found and removed whenever we are killed.
 */
static int take_slot(struct registry *registry)
{
    struct shared *shared = registry->shared;
    uint64_t table;
    unsigned slot = 0;
    int r;

    while (slot < shared->n_slots && shared->slots[slot].taken)
        slot++;
    if (slot == EMU_MAX_SLOTS)
        return -EUSERS;
    table = shared->refs_at + slot * shared->refs_stride;
    if (fallocate(registry->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)table,
                  (off_t)shared->refs_stride) < 0)
        return -errno;
    shared->slots[slot] = (struct slot){.serial = ++shared->serial, .taken = 1, .pid = getpid()};
    if (slot == shared->n_slots)
        __atomic_store_n(&shared->n_slots, slot + 1, __ATOMIC_RELEASE);
    r = lock_slot(registry, slot);
    if (r < 0) {
        slot_bury(registry, slot);
        return r;
    }
    for (unsigned i = 0; i < shared->n_devices; i++)
        registry->refs[i] = (uint32_t *)((char *)shared + table + shared->devices[i].refs_at);
    registry->slot = slot;
    return 0;
}

static struct registry *registry_free(struct registry *registry)
{
    if (!registry)
        return NULL;
    if (registry->shared)
        munmap(registry->shared, registry->shared->size);
    for (unsigned i = 0; i < EMU_MAX_DEVICES; i++)
        close_fd(registry->memory[i]);
    close_fd(registry->slot_fd);
    close_fd(registry->fd);
    if (registry->dir >= 0)
        folder_open_gate(registry->dir);
    close_fd(registry->dir);
    free(registry->path);
    free(registry);
    return NULL;
}

DEFINE_CLEANUP(struct registry *, registry_free);

static struct registry *registry_new(void)
{
    struct registry *registry = calloc(1, sizeof(*registry));

    if (!registry)
        return NULL;
    registry->dir = registry->fd = registry->slot_fd = -1;
    for (unsigned i = 0; i < EMU_MAX_DEVICES; i++) {
        registry->memory[i] = -1;
        registry->dying[i] = NO_EXTENT;
    }
    return registry;
}

/*
 * Every joiner looks at two others, so that the dead do not pile up where nobody asks for free memory. Under
 * the mutex.
 */
static void look_at_others(struct registry *registry)
{
    struct shared *shared = registry->shared;

    for (unsigned i = 0; i < 2; i++) {
        unsigned slot = shared->looked = (shared->looked + 1) % shared->n_slots;

        if (shared->slots[slot].taken && slot_is_dead(registry, slot)) {
            slot_sweep(registry, slot);
            slot_bury(registry, slot);
        }
    }
}

static int join_inside(struct registry *registry, char *error)
{
    int r;

    r = map_registry(registry);
    if (r < 0)
        return fail(error, r, registry->path, "%s", strerror(-r));
    shared_lock(registry);
    r = take_slot(registry);
    if (r == 0)
        look_at_others(registry);
    shared_unlock(registry);
    if (r == -EUSERS)
        return fail(error, r, registry->path, "more than %d processes", EMU_MAX_SLOTS);
    return r < 0 ? fail(error, r, registry->path, "%s", strerror(-r)) : 0;
}

int registry_join(const char *path, const uint64_t *totals, unsigned n_totals, uint64_t default_total,
                  struct registry **ret_registry, char error[static EMU_ERROR_MAX])
{
    _cleanup_(registry_freep) struct registry *registry = registry_new();
    struct stat folder;
    int r;

    if (!registry)
        return fail(error, -ENOMEM, path, "out of memory");
    r = folder_enter(path, &registry->dir, error);
    if (r < 0)
        return r;
    if (fstat(registry->dir, &folder) < 0)
        return fail(error, -errno, path, "%s", strerror(errno));
    registry->file_system = folder.st_dev;
    registry->path = realpath(path, NULL);
    if (!registry->path)
        return fail(error, -errno, path, "%s", strerror(errno));
    r = provide_registry(registry->dir, path, totals, n_totals, default_total, error);
    if (r == 0)
        r = join_inside(registry, error);
    if (r < 0)
        return r;
    folder_open_gate(registry->dir);
    *ret_registry = steal_pointer(registry);
    return 0;
}

/*
 * Gives our references back, unless a forked child holds on to the slot. The slot is locked again meanwhile,
 * so that nobody takes us for dead and does the same.
 */
static void release_slot(struct registry *registry)
{
    bool ours;

    shared_lock(registry);
    registry->slot_fd = close_fd(registry->slot_fd);
    ours = slot_is_dead(registry, registry->slot) && lock_slot(registry, registry->slot) == 0;
    if (ours)
        slot_sweep(registry, registry->slot);
    shared_unlock(registry);
    if (!ours)
        return;
    shared_lock(registry);
    slot_bury(registry, registry->slot);
    shared_unlock(registry);
}

struct registry *registry_leave(struct registry *registry)
{
    if (!registry)
        return NULL;
    folder_close_gate(registry->dir);
    release_slot(registry);
    if (!folder_in_use(registry->dir)) {
        folder_wipe(registry->dir);
        rmdir(registry->path);
    }
    return registry_free(registry);
}
