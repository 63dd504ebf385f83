/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the caller asked for, completed from the environment and checked.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "interrupt.h"
#include "kvclient.h"

#define INSTANCE_NAME_MAX 64

struct settings {
    const char
        *socket; /* the caller's or the environment's, for as long as kvc_open() runs; NULL: look for it */
    char instance[INSTANCE_NAME_MAX + 1];
    const char *gpu_uuid;     /* as `socket`; NULL: any */
    bool has_gpu_index;       /* the caller named a number */
    uint32_t gpu_index;       /* for the socket's name; 0 when nothing was said */
    const char *emulator_dir; /* as `socket`; NULL: the one that is installed with this library */
    bool has_daemon_uid;
    uid_t daemon_uid;
    enum kvc_role role;
    bool own_thread;
    uint64_t timeout_ns; /* UINT64_MAX: none */
    uint64_t min_reserved_pages, max_reserved_pages, max_reserved_bytes;
    uint32_t limit_ppm; /* 0: no wish */
    kvc_log_fn log;
    void *log_data;
    struct kvc_listener listener; /* members are NULL where the caller has none */
    void *listener_data;
    uint64_t report_ns;
    struct interrupt interrupt;
};

/* 0, KVC_E_INVALID or KVC_E_ENVIRONMENT. Every variable is checked, also where an option overrides it. */
int settings_resolve(const struct kvc_options *options, struct settings *ret);

struct layout;

/* Likewise for a layout. */
int layout_resolve(const struct kvc_layout *options, struct layout *ret);

/* What the structures of the first release had; they have grown since. */
#define OPTIONS_SIZE_FIRST offsetof(struct kvc_options, listener)
#define REGION_OPTIONS_SIZE_FIRST offsetof(struct kvc_region_options, flags)

/* Copies a versioned structure of the caller's, of `size` bytes by its own first member: what the caller
 * knows and we don't must be zero. False where that fails, or `size` is below that of the first release. */
bool options_copy(void *to, size_t to_size, size_t first_size, const void *from);
