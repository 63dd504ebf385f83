/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the tests of the library share: a client of a fake daemon, regions, and the driver that the client
 * has loaded.
 */

#include <string.h>

#include "base/arith.h"
#include "cuda/driver.h"
#include "cuda/emulator.h"
#include "fakedaemon.h"
#include "kvclient.h"
#include "test.h"

#define check_ok(call)                                                                                       \
    do {                                                                                                     \
        int check_r = (call);                                                                                \
        if (check_r != 0)                                                                                    \
            test_fail(__FILE__, __LINE__, "%s: %s: %s", #call, kvc_strerror(check_r), kvc_last_error());     \
    } while (0)

#define check_error(call, error)                                                                             \
    do {                                                                                                     \
        int check_r = (call);                                                                                \
        if (check_r != (error))                                                                              \
            test_fail(__FILE__, __LINE__, "%s: %d (%s) in place of %s: %s", #call, check_r,                  \
                      kvc_strerror(check_r), kvc_strerror(error), kvc_last_error());                         \
    } while (0)

/* Options for a client without reserves, log or thread. */
struct kvc_options plain_options(struct fake *fake);

struct kvc_client *open_plain(struct fake *fake);
struct kvc_client *open_caching(struct fake *fake, int min, int max, uint64_t max_bytes);
struct kvc_region *open_region(struct kvc_client *client, unsigned segments, uint64_t page_bytes,
                               uint64_t pages);

/* Pages first, first + 1, ... */
int map_range(struct kvc_region *region, uint64_t first, size_t n);
int unmap_range(struct kvc_region *region, uint64_t first, size_t n);

/* The driver as the client has loaded it. */
struct emulator {
    void *library;
    __typeof__(&cuemuGetStats) stats;
    __typeof__(&cuemuGetCalls) calls;
    struct cuda_driver *driver;
    CUcontext context;
};
struct emulator *emulator_open(struct kvc_client *client);
struct emulator *emulator_close(struct emulator *emulator);

/* From the next client on driver calls cost what this file of costs says: tests/cuemu/README.md. */
void emulate_costs(const char *costs);

/* Writes a value to the first and last word of a page's share of a segment, or checks that it is there. */
void stamp(struct emulator *emulator, struct kvc_region *region, uint64_t page_bytes, unsigned segment,
           uint64_t page, uint32_t value);
void check_stamp(struct emulator *emulator, struct kvc_region *region, uint64_t page_bytes, unsigned segment,
                 uint64_t page, uint32_t value);

/* What the fake daemon has lent. */
uint64_t lent_bytes(struct fake *fake);

/* Dispatches until the condition holds; each turn waits for the socket. */
#define dispatch_until(client, condition)                                                                    \
    do {                                                                                                     \
        while (!(condition))                                                                                 \
            dispatch_once(client);                                                                           \
    } while (0)
void dispatch_once(struct kvc_client *client);

/* How often the library's own thread has gone to sleep or been woken. */
unsigned long own_thread_switches(void);

/* As soon as it has nothing left to do. */
unsigned long own_thread_at_rest(void);
