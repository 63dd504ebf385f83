/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the parts of kvpeer share.
 */

#include <stdbool.h>
#include <sys/resource.h>

#include "cuda/driver.h"
#include "kvclient.h"
#include "kvpeer-words.h"

#define REGIONS_MAX 64

struct named_region {
    char name[32];
    struct kvc_region *region;
    uint64_t page_bytes;
    struct kvc_blocks *blocks;
    uint32_t *ids; /* taken */
    size_t n_ids;
    bool yields;
};

extern struct peer {
    struct kvc_client *client;
    struct named_region regions[REGIONS_MAX];
    struct cuda_driver *driver;
    CUdevice device;
    rlim_t first_fd_limit;
} peer;

struct command {
    const char *name;
    void (*run)(const struct words *words);
    bool needs_client;
};

/* ---- Answers: every command gives one ---- */

void ok(const char *format, ...) __attribute__((format(printf, 1, 2)));
void done(void);
void usage(const char *sentence);

/* To a command that is one call, of the library or of the driver. */
void result(int r);
void driver_result(CUresult r);

/* The region that a command names; NULL with a complaint. */
struct named_region *find_region(const struct words *words);
