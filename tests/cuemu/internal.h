/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One process's view of the emulated driver. All of it is protected by one lock, which every entry point
 * holds from start to end: the real driver serialises these calls too, and a latency model that let them
 * overlap would flatter whoever calls from many threads.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "address.h"
#include "base/arith.h"
#include "costs.h"
#include "cuda/api.h"
#include "cuda/prototypes.h"
#include "handles.h"
#include "registry.h"

#define EXPORT __attribute__((visibility("default")))

#define CUDA_FUNCTION(name, symbol, parameters) CUresult symbol parameters;
#include "extra.def"
#undef CUDA_FUNCTION

enum call_id {
#define CUDA_FUNCTION(name, symbol, parameters) CALL_##symbol,
#include "cuda/driver.def"
#include "extra.def"
#undef CUDA_FUNCTION
    CALL_N,
};

/* What an entry point needs before it can do anything. */
enum need {
    NEEDS_NOTHING, /* works before cuInit */
    NEEDS_INIT,
    NEEDS_CONTEXT, /* a context current to the calling thread, and not broken by an earlier fault */
};

enum emulator_state { EMULATOR_FRESH, EMULATOR_JOINED, EMULATOR_READY, EMULATOR_GONE };

struct emulator {
    pthread_mutex_t lock;
    enum emulator_state state;
    struct registry *registry;
    unsigned n_devices;                 /* that the process may see */
    unsigned physical[EMU_MAX_DEVICES]; /* by ordinal: the number in the folder */
    CUuuid uuids[EMU_MAX_DEVICES];      /* by number in the folder */
    struct address_map addresses;
    struct handle_table handles;
};

extern struct emulator emu;

bool in_forked_child(void);

/* The start and the end of every entry point; see CALL. */
CUresult call_enter(enum call_id call, enum need need);
CUresult call_leave(CUresult result);

/* An entry point's body: counts the call, injects faults, checks what it needs, and spends what it costs. */
#define CALL(symbol, need, expression)                                                                       \
    ({                                                                                                       \
        CUresult call_result = call_enter(CALL_##symbol, need);                                              \
                                                                                                             \
        call_result == CUDA_SUCCESS ? call_leave(expression) : call_result;                                  \
    })

/* For what touches no state, and works in a forked child too. */
#define CALL_ANYWHERE(symbol, expression)                                                                    \
    (in_forked_child() ? (expression) : CALL(symbol, NEEDS_NOTHING, expression))

/* Adds to the duration of the call in progress. */
void call_charge(enum cost cost, uint64_t bytes);

/* The call in progress returns to its caller no sooner; others can call meanwhile. */
void call_wait_until(uint64_t ns);

uint64_t call_count(enum call_id call);
const char *call_name(enum call_id call);

/* Ends the process: the caller did what a real driver leaves undefined. */
_Noreturn void undefined_behaviour(const char *call, const char *what, unsigned long long value);

/* What a memset of that size keeps a stream busy for. */
uint64_t memset_ns(uint64_t bytes);

/* Fresh memory is filled with a pattern. */
bool poisons(void);

uint64_t now_ns(void);

static inline bool valid_device(CUdevice device)
{
    return device >= 0 && (unsigned)device < emu.n_devices;
}

/* The ordinal of a folder's device, or -1 where the process may not see it. */
int device_ordinal(unsigned physical);

/* context.c */
struct CUctx_st {
    CUdevice device;
    bool primary;
    bool alive;
    unsigned flags;
    unsigned refs; /* retains, of a primary one */
    uint64_t id;
    uint64_t busy_until_ns[2]; /* of its legacy and its per-thread stream */
    CUresult broken;           /* what a fault left behind; every later call that needs the context says it */
};

CUcontext context_current(void);
unsigned contexts_count(void);
void context_break(CUresult why);

/* stream.c */
unsigned streams_count(void);
unsigned events_count(void);

/* Where the busy-until mark of a stream of the current context is; NULL for no such stream. */
uint64_t *stream_busy(CUstream stream);

/* When the last work of all streams of the context is done. */
uint64_t streams_busy_until(CUcontext context);
void streams_extend(CUstream stream, uint64_t ns);

/* vmm.c */

/* The host's page tables. A NULL handle: reserved, with nothing there. 0 or negative errno. */
int map_host(uint64_t address, uint64_t size, const struct handle *handle, int protection);
int reserve_host(uint64_t size, uint64_t alignment, uint64_t hint, uint64_t *ret_address);

/* A new extent and its handle; internal ones back cuMemAlloc. */
CUresult create_handle(unsigned physical, uint64_t size, const struct extent_props *props, bool internal,
                       struct handle **ret_handle);

/* Gives up what keeps a handle; the extent goes with the last. */
void unref_handle(struct handle *handle);

/* stats.c */
void stats_append(const char *path);
