/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the emulated driver exports beside the vendor's entry points, under names that a real one cannot have.
 * cuda_driver_load_emulated() uses cuemuConfigure; the others are for tests, which find them by dlsym.
 */

#include <stddef.h>
#include <stdint.h>

/*
 * Says where the devices live and how large they are, in place of KVCACHED_EMULATE_DIR and KVCACHED_EMULATE;
 * NULL leaves either as the environment has it. Returns 0, or -EINVAL with a sentence in `error` for text
 * that is no list of sizes, or -EBUSY where the library is already initialised with another folder or other
 * sizes; or -ECHILD, without a sentence, in a child that was forked with it.
 */
int cuemuConfigure(const char *folder, const char *sizes, char *error, size_t error_size);

/* The same for the emulated management library. */
int nvemuConfigure(const char *folder, const char *sizes, char *error, size_t error_size);

struct cuemu_stats {
    uint64_t handles;      /* live allocation handles of this process, imported ones included */
    uint64_t mappings;     /* live mappings of this process */
    uint64_t reservations; /* live address reservations of this process */
    uint64_t allocations;  /* live cuMemAlloc blocks of this process */
    uint64_t streams;
    uint64_t events;
    uint64_t contexts;   /* retained primary and created contexts */
    uint64_t exported;   /* exported extents, of all processes and devices of the folder */
    uint64_t used_bytes; /* of all processes and devices of the folder, the dead swept out */
};

/* 0, or -ENOTCONN before cuInit. */
int cuemuGetStats(struct cuemu_stats *ret);

/* How often this process has called an entry point (its name without version suffix); 0 for an unknown one.
 */
uint64_t cuemuGetCalls(const char *function);

/* Leaves the folder as the end of the process would; all later calls give CUDA_ERROR_DEINITIALIZED. */
void cuemuLeave(void);
