/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Status page: a page of memory per instance that the daemon writes and the instance's peers read without a
 * message. It travels with Welcome as a descriptor that can be neither written nor mapped writable
 * (F_SEAL_FUTURE_WRITE).
 *
 * A sequence lock: the writer makes `sequence` odd, writes, makes it even; a reader copies between two equal
 * even values. Fields are only ever appended; `size` tells a reader which exist.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATUS_MAGIC UINT32_C(0x5453564b) /* "KVST" */
#define STATUS_PAGE_SIZE 4096

enum {
    STATUS_FLAG_OVER_LIMIT = 1 << 0, /* used > limit: nothing new is granted */
    STATUS_FLAG_FROZEN = 1 << 1,     /* by an administrator */
};

struct status_values {
    uint64_t limit_bytes;    /* in force: the smaller of limit and budget */
    uint64_t used_bytes;     /* all charges of the instance */
    uint64_t budget_bytes;   /* the daemon's */
    uint64_t flags;          /* STATUS_FLAG_* */
    uint64_t pressure_bytes; /* what the instance is asked to give back now; appended with leases */
};

struct status_page {
    uint32_t magic;
    uint32_t size; /* of this struct as the writer knows it */
    _Atomic uint32_t sequence;
    uint32_t reserved;
    _Atomic uint64_t limit_bytes;
    _Atomic uint64_t used_bytes;
    _Atomic uint64_t budget_bytes;
    _Atomic uint64_t flags;
    _Atomic uint64_t pressure_bytes;
};

/* Of the first release: what every page has. */
#define STATUS_SIZE_FIRST offsetof(struct status_page, pressure_bytes)

/* Daemon: a new page. *ret_fd is read-only for whoever gets it; the mapping is the only way to write. */
int status_page_new(struct status_page **ret_page, int *ret_fd);
struct status_page *status_page_free(struct status_page *page); /* unmaps */
void status_page_write(struct status_page *page, const struct status_values *values);

/* Client: maps a received page read-only after checking its size, seals and magic (-EBADMSG). The descriptor
 * is borrowed. */
int status_page_map(int fd, const struct status_page **ret_page);
const struct status_page *status_page_unmap(const struct status_page *page);

/* True: a consistent copy. False, after a bounded number of tries (a writer that died or lost its processor
 * halfway): the values as they stand, each right by itself. */
bool status_page_read(const struct status_page *page, struct status_values *ret);
