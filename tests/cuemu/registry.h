/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The devices as all processes see them: a folder with a table of extents, who refers to them, and their
 * bytes. See README.md for the files and for what happens when a process dies.
 *
 * A registry is one process's membership. Its functions are not thread-safe against each other; the callers
 * hold their own lock. Devices are numbered as in the folder, which is not the ordinal that a process sees.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/arith.h"

#define EMU_GRANULE (2 * MIB)
#define EMU_MAX_DEVICES 16
#define EMU_MAX_DEVICE_BYTES (512 * GIB)
#define EMU_MAX_SLOTS 4096
#define EMU_ERROR_MAX 256

/* Outcomes */
#define REGISTRY_E_FULL 1    /* the device has not that many bytes free, the dead swept out */
#define REGISTRY_E_FOREIGN 2 /* that descriptor is not an exported extent of this folder */

struct registry;

/* What is fixed when an extent is created and travels with it. */
struct extent_props {
    uint32_t handle_types;
    uint32_t rdma;
};

struct registry_process {
    pid_t pid;
    uint64_t bytes; /* created by it and not yet free */
};

/*
 * Joins the folder, and makes it where there is none. `totals` (multiples of the granule) must be what the
 * folder has, if anybody uses it; n_totals 0 takes what there is, or one device of `default_total`. Negative
 * errno with a sentence in `error`.
 */
int registry_join(const char *path, const uint64_t *totals, unsigned n_totals, uint64_t default_total,
                  struct registry **ret_registry, char error[static EMU_ERROR_MAX]);

/* Leaves, as death would; the last one out removes the folder. Always NULL. */
struct registry *registry_leave(struct registry *registry);

unsigned registry_n_devices(const struct registry *registry);
uint64_t registry_total(const struct registry *registry, unsigned device);
const char *registry_path(const struct registry *registry);

/* A new extent with one reference of this process. 0 or REGISTRY_E_FULL. */
int registry_create(struct registry *registry, unsigned device, uint64_t size,
                    const struct extent_props *props, uint32_t *ret_id);

/* Drops one reference of this process. */
void registry_unref(struct registry *registry, unsigned device, uint32_t id);

/* A new close-on-exec descriptor that refers to the extent, itself and in every copy. Negative errno. */
int registry_export(struct registry *registry, unsigned device, uint32_t id, int *ret_fd);

struct extent_ref {
    unsigned device;
    uint32_t id;
    uint64_t size;
    struct extent_props props;
};

/* One more reference of this process to the extent behind such a descriptor. 0, REGISTRY_E_FOREIGN, or
 * -errno. */
int registry_import(struct registry *registry, int fd, struct extent_ref *ret_ref);

/* Frees what only the dead refer to. */
void registry_sweep(struct registry *registry);

/* Bytes in use by everybody, as of the last sweep by anybody. */
uint64_t registry_used(const struct registry *registry, unsigned device);

/* Extents with a living exported descriptor, on all devices. */
uint64_t registry_count_exported(struct registry *registry);

/* Fills in up to `max` processes that hold bytes on the device; the number there are. */
unsigned registry_processes(struct registry *registry, unsigned device, struct registry_process *processes,
                            unsigned max);

/* The file that holds the device's bytes (borrowed), and where in it an extent lives. Negative errno. */
int registry_memory(struct registry *registry, unsigned device, int *ret_fd);
uint64_t registry_offset(uint32_t id, uint64_t size);
