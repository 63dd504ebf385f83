/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Sides: the ways of getting n pages of 2 MiB mapped and unmapped that are measured against each other.
 *
 *     broker      libkvclient and the daemon, caches off
 *     in-process  the driver's calls as one process makes them that owns its memory: create, map, set access
 *     bare        no memory at all: a request and an answer that carries n descriptors, which are closed,
 *                 over the same kind of socket, from a process that waits with uv_poll
 *     driver      the driver's calls that the broker's client cannot do without: import, map, set access
 *     least       both, one within the other: what no borrower can do without
 *
 * All end the process when something fails: a benchmark that goes on measures something else.
 */

#include <stdint.h>

#include "bench.h"
#include "cuda/driver.h"

#define PAGE_BYTES (UINT64_C(2) << 20)
#define PAGES_MAX 200 /* one packet carries no more than 253 descriptors */

struct side {
    const char *name;
    void (*map)(void *state, unsigned n_pages);
    void (*unmap)(void *state, unsigned n_pages);
    void *state;
};

/* ---- The broker ---- */

struct broker_side;
struct broker_side *broker_side_new(const char *socket_path);
void broker_side_free(struct broker_side *broker);
struct side broker_side(struct broker_side *broker);
const char *broker_side_uuid(struct broker_side *broker);
const char *broker_side_driver(struct broker_side *broker);

/* ---- A process that hands out descriptors of extents ---- */

/* Starts it, on one processor. It opens the driver at `driver_path` (NULL: the system's) itself. */
struct donor;
struct donor *donor_new(const char *driver_path, const char *uuid, unsigned n_pages, int processor);
void donor_free(struct donor *donor);

/* One round trip; the descriptors are the caller's. */
void donor_get(struct donor *donor, unsigned n_fds, int *fds);
struct side donor_side(struct donor *donor);

/* ---- The driver ---- */

struct driver_side;
struct driver_side *driver_side_new(const char *driver_path, const char *uuid);
void driver_side_free(struct driver_side *driver);

struct side driver_side_create(struct driver_side *driver);

/* Maps extents of the donor, which are fetched before. */
struct side driver_side_import(struct driver_side *driver);
void driver_side_offer(struct driver_side *driver, const int *fds);

/* Opens a driver and finds the device. */
void driver_open(const char *path, const char *uuid, struct cuda_driver **ret_driver, CUdevice *ret_device);
void driver_check(const struct cuda_driver *driver, CUresult result, const char *call);

/* ---- Both ---- */

struct least_side;
struct least_side *least_side_new(struct donor *donor, const char *driver_path, const char *uuid);
void least_side_free(struct least_side *least);
struct side least_side(struct least_side *least);
