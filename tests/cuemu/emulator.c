/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The process as the driver sees it: settings, cuInit and the end, and what every entry point does before and
 * after its own work.
 *
 * A forked child has the parent's memory, and would give away the parent's references if it acted on it. So a
 * word in a page that the kernel wipes on fork tells the two apart, at the cost of one load; everything but
 * asking for an error's name or the version fails in the child with the error that the real driver gives
 * there.
 *
 * The process leaves its folder when the library's destructors run. Until then, or after SIGKILL, the kernel
 * holds the locks that tell others whether it lives.
 */

#include "internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/parse.h"
#include "config.h"
#include "cuda/emulator.h"
#include "faults.h"
#include "place.h"

struct emulator emu = {.lock = PTHREAD_MUTEX_INITIALIZER};

static const char *const names[CALL_N] = {
#define CUDA_FUNCTION(name, symbol, parameters) [CALL_##symbol] = #name,
#include "cuda/driver.def"
#include "extra.def"
#undef CUDA_FUNCTION
};

/* What the environment says, read once, at the first call of any kind. */
static struct {
    bool read;
    bool bad;
    bool poison;
    bool has_costs;
    struct cost_table costs;
    struct fault_plan faults;
} settings;

static struct place place;

static uint64_t counts[CALL_N], count_overall;
static uint64_t call_start_ns, call_cost_ns, call_wait_ns;

bool in_forked_child(void)
{
    return place_is_forked(&place);
}

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

void undefined_behaviour(const char *call, const char *what, unsigned long long value)
{
    fprintf(stderr, "cuemu: %s: %s (0x%llx): undefined behaviour, aborting\n", call, what, value);
    fflush(stderr);
    abort();
}

const char *call_name(enum call_id call)
{
    return names[call];
}

uint64_t call_count(enum call_id call)
{
    return __atomic_load_n(&counts[call], __ATOMIC_RELAXED);
}

bool poisons(void)
{
    return settings.poison;
}

uint64_t memset_ns(uint64_t bytes)
{
    return settings.has_costs ? costs_of(&settings.costs, COST_MEMSET, bytes) : 0;
}

void call_charge(enum cost cost, uint64_t bytes)
{
    if (settings.has_costs)
        call_cost_ns += costs_of(&settings.costs, cost, bytes);
}

__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...)
{
    va_list args;

    fputs("cuemu: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

static void read_faults(void)
{
    const char *text = getenv("KVCACHED_EMULATE_FAULTS");
    unsigned offset;

    if (text && faults_parse(text, &settings.faults, &offset) < 0) {
        complain("KVCACHED_EMULATE_FAULTS: \"%s\" is no fault rule", text + offset);
        settings.bad = true;
    }
}

static void read_poison(void)
{
    const char *text = getenv("KVCACHED_EMULATE_POISON");

    if (text && *text && parse_bool(text, &settings.poison) < 0) {
        complain("KVCACHED_EMULATE_POISON: \"%s\" is neither true nor false", text);
        settings.bad = true;
    }
}

static char *read_text_file(const char *path)
{
    _cleanup_free_ char *text = calloc(1, 65536);
    FILE *file = text ? fopen(path, "re") : NULL;

    if (!file)
        return NULL;
    text[fread(text, 1, 65535, file)] = '\0';
    fclose(file);
    return steal_pointer(text);
}

static void read_costs(void)
{
    const char *name = getenv("KVCACHED_EMULATE_COSTS"), *text = name && *name ? costs_builtin(name) : "";
    _cleanup_free_ char *file = NULL;
    unsigned line;

    if (!text)
        text = file = read_text_file(name);
    if (!text) {
        complain("KVCACHED_EMULATE_COSTS: \"%s\" is neither none, a100, gb10 nor a file that can be read",
                 name);
        settings.bad = true;
    } else if (costs_parse(text, &settings.costs, &line) < 0) {
        complain("KVCACHED_EMULATE_COSTS: %s:%u: not a line of a cost table", name, line);
        settings.bad = true;
    } else {
        settings.has_costs = *text != '\0';
    }
}

static void read_settings(void)
{
    if (settings.read)
        return;
    settings.read = true;
    read_faults();
    read_poison();
    read_costs();
}

static void look_at_devices(void)
{
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    unsigned n = registry_n_devices(emu.registry);

    for (unsigned i = 0; i < n; i++) {
        emu.uuids[i] = config_uuid(registry_path(emu.registry), i);
        emu.physical[i] = i;
    }
    emu.n_devices = visible ? config_parse_visible(visible, emu.uuids, n, emu.physical) : n;
}

/* Joins the folder, if that has not been done. Under the lock. */
static int join(char *error)
{
    int r;

    if (emu.state != EMULATOR_FRESH)
        return 0;
    r = place_join(&place, &emu.registry, error);
    if (r < 0)
        return r;
    look_at_devices();
    if (getrandom(&emu.handles.salt, sizeof(emu.handles.salt), 0) < 0)
        emu.handles.salt = now_ns();
    emu.handles.salt >>= 1; /* so that it is positive where somebody stores it in a long */
    emu.state = EMULATOR_JOINED;
    return 0;
}

EXPORT int cuemuConfigure(const char *folder, const char *sizes, char *error, size_t error_size)
{
    char sentence[EMU_ERROR_MAX] = "Emulated devices: this process already uses others";
    int r = -EBUSY;

    if (in_forked_child())
        return -ECHILD;
    pthread_mutex_lock(&emu.lock);
    if (emu.state == EMULATOR_FRESH) {
        place_set(&place, folder, sizes);
        r = join(sentence);
        if (r < 0)
            place_set(&place, NULL, NULL);
    } else if (emu.state != EMULATOR_GONE && place_matches(emu.registry, folder, sizes)) {
        r = 0;
    }
    pthread_mutex_unlock(&emu.lock);
    if (r < 0)
        snprintf(error, error_size, "%s", sentence);
    return r;
}

static CUresult initialise(unsigned flags)
{
    char error[EMU_ERROR_MAX];
    int r;

    if (flags != 0)
        return CUDA_ERROR_INVALID_VALUE;
    if (emu.state == EMULATOR_GONE)
        return CUDA_ERROR_DEINITIALIZED;
    if (settings.bad)
        return CUDA_ERROR_INVALID_VALUE;
    r = join(error);
    if (r < 0) {
        complain("%s", error);
        return r == -EINVAL                  ? CUDA_ERROR_INVALID_VALUE
               : r == -EBUSY || r == -EPROTO ? CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
                                             : CUDA_ERROR_OPERATING_SYSTEM;
    }
    if (emu.n_devices == 0)
        return CUDA_ERROR_NO_DEVICE;
    emu.state = EMULATOR_READY;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuInit(unsigned int flags)
{
    return CALL(cuInit, NEEDS_NOTHING, initialise(flags));
}

static CUresult check_state(enum need need)
{
    if (need == NEEDS_NOTHING)
        return CUDA_SUCCESS;
    if (emu.state == EMULATOR_GONE)
        return CUDA_ERROR_DEINITIALIZED;
    if (emu.state != EMULATOR_READY)
        return CUDA_ERROR_NOT_INITIALIZED;
    if (need == NEEDS_INIT)
        return CUDA_SUCCESS;
    if (!context_current())
        return CUDA_ERROR_INVALID_CONTEXT;
    return context_current()->alive ? context_current()->broken : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

CUresult call_enter(enum call_id call, enum need need)
{
    CUresult result;

    if (in_forked_child())
        return CUDA_ERROR_NOT_INITIALIZED;
    pthread_mutex_lock(&emu.lock);
    read_settings();
    count_overall++;
    __atomic_add_fetch(&counts[call], 1, __ATOMIC_RELAXED);
    result = (CUresult)faults_check(&settings.faults, names[call], counts[call], count_overall);
    if (result == CUDA_SUCCESS)
        result = check_state(need);
    if (result != CUDA_SUCCESS) {
        pthread_mutex_unlock(&emu.lock);
        return result;
    }
    call_cost_ns = call_wait_ns = 0;
    call_start_ns = settings.has_costs ? now_ns() : 0;
    return CUDA_SUCCESS;
}

void call_wait_until(uint64_t ns)
{
    call_wait_ns = ns;
}

static void sleep_until(uint64_t ns)
{
    struct timespec at = {(time_t)(ns / NSEC_PER_SEC), (long)(ns % NSEC_PER_SEC)};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
}

/* Spends the cost spinning, since sleeping is not exact to the microsecond; waits for the device asleep. */
CUresult call_leave(CUresult result)
{
    uint64_t wait_ns = call_wait_ns;

    if (call_cost_ns > 0)
        while (now_ns() < call_start_ns + call_cost_ns)
            ;
    pthread_mutex_unlock(&emu.lock);
    if (wait_ns > 0)
        sleep_until(wait_ns);
    return result;
}

static void write_stats(void)
{
    const char *path = getenv("KVCACHED_EMULATE_STATS");

    if (path && *path)
        stats_append(path);
}

EXPORT void cuemuLeave(void)
{
    /* Who never joined, or is the child of who did, has nothing to leave, and may have inherited a locked
     * mutex. */
    if (!place_has_joined(&place) || place_is_forked(&place))
        return;
    pthread_mutex_lock(&emu.lock);
    if (emu.state == EMULATOR_JOINED || emu.state == EMULATOR_READY) {
        write_stats();
        emu.registry = registry_leave(emu.registry);
        address_deinit(&emu.addresses);
        handle_table_deinit(&emu.handles);
    }
    emu.state = EMULATOR_GONE;
    pthread_mutex_unlock(&emu.lock);
}

__attribute__((destructor)) static void on_unload(void)
{
    cuemuLeave();
}
