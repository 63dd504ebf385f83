/* SPDX-License-Identifier: Apache-2.0 */

/*
 * kvpeer: an engine that does what it is told. Reads one command a line from standard input and answers each
 * with one line: "ok", perhaps with words behind it, or "error", a KVC_E_* name (or E_USAGE) and a sentence.
 * At the end of input it closes what is open and exits with 0. It makes one client, of libkvclient as it is
 * installed.
 *
 *     open [socket=PATH] [instance=NAME] [gpu=GPU] [role=engine|worker|scheduler|controller] [thread=0|1]
 *          [timeout=MS] [min=PAGES] [max=PAGES] [max-bytes=SIZE] [utilization=FRACTION] [report=MS]
 *                                  what is missing is as the environment says; but min and max are 0
 *     open SOCKET INSTANCE ...     the same, shorter
 *     region NAME page=SIZE pages=N [segments=N] [stride=SIZE] [extents=SIZE,SIZE...]     ok ADDRESS STRIDE
 *                                  with rank=N a worker's, that its scheduler maps
 *     attach NAME RANK [timeout=MS]    of a scheduler: ok PAGES PAGE-BYTES
 *     map NAME PAGES               PAGES is like 0-15,20
 *     unmap NAME PAGES
 *     region ... zero=yes holes=yes    with KVC_REGION_ZERO_ON_MAP, KVC_REGION_HOLES_ZERO
 *     write NAME PAGE SEGMENT VALUE    to the first and last four bytes; through the driver
 *     read NAME PAGE SEGMENT           ok VALUE; "torn" where first and last differ
 *     probe NAME PAGE SEGMENT          ok mapped, or ok fault: looks at the address itself (emulator only)
 *     status                       ok limit=N used=N budget=N mapped=N cached=N over=0|1 frozen=0|1
 *                                  connected=0|1
 *     await FIELD=VALUE            dispatches until status has that; for at most 30 s
 *     device                       ok UUID total=N granularity=N emulated=0|1 ordinal=N classes=N,N...
 *     driver                       ok PATH
 *     stats                        ok handles=N mappings=N reservations=N used=N (emulator only)
 *     calls FUNCTION               ok N: how often this process called it (emulator only)
 *     reserve BYTES FOREIGN [timeout=MS]   of a controller: of the budget, and beside it
 *     release
 *     trim
 *     dispatch
 *     alloc SIZE                   ok ADDRESS: ordinary device memory, as weights are
 *     free ADDRESS
 *     blocks NAME block=SIZE [null=0|1]        hands out the region's blocks from here on
 *     take NAME N                  takes N blocks and keeps them; ok FIRST
 *     give NAME N [EPOCH]          gives the N blocks back that it took last
 *     complete NAME EPOCH
 *     available NAME               ok N
 *     want NAME N TIMEOUT          ok N: that many are available
 *     count NAME                   ok used=N free=N claimed=N offered=N mapped=N free_pages=N waited=N
 *     yield NAME                   from here on gives all of its blocks back when it is asked for memory
 *     close-blocks NAME
 *     close-region NAME
 *     close
 *     fd-limit N                   this process may have descriptors below N; 0: as many as at first
 *     fork-child                   ok PID: a child that holds all it inherits until it is killed
 *     drop-socket                  ends the connection under the library, and lives on
 */

#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/parse.h"
#include "cuda/driver.h"
#include "cuda/emulator.h"
#include "kvclient.h"
#include "kvpeer-blocks.h"
#include "kvpeer-regions.h"
#include "kvpeer.h"

#define AWAIT_LIMIT_S 30
#define AWAIT_INTERVAL_MS 5

struct peer peer;

/* ---- Answers ---- */

void ok(const char *format, ...)
{
    va_list args;

    fputs("ok ", stdout);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

void done(void)
{
    puts("ok");
}

void usage(const char *sentence)
{
    printf("error E_USAGE %s\n", sentence);
}

/* The answer to a command that is one call. */
void result(int r)
{
    if (r == 0)
        done();
    else
        printf("error %s %s\n", words_error(r), kvc_last_error());
}

void driver_result(CUresult r)
{
    if (r == CUDA_SUCCESS)
        done();
    else
        printf("error KVC_E_DRIVER %s\n", cuda_error_name(peer.driver, r));
}

/* ---- Client ---- */

static bool read_options(const struct words *words, struct kvc_options *o)
{
    const char *role = words_value(words, "role"), *utilization = words_value(words, "utilization");

    o->socket = words_value(words, "socket");
    o->instance = words_value(words, "instance");
    if (words->n > 2 && !strchr(words->word[1], '=') && !strchr(words->word[2], '=')) {
        o->socket = words->word[1];
        o->instance = words->word[2];
    }
    o->gpu = words_value(words, "gpu");
    if (role)
        o->role = strcmp(role, "worker") == 0       ? KVC_ROLE_WORKER
                  : strcmp(role, "scheduler") == 0  ? KVC_ROLE_SCHEDULER
                  : strcmp(role, "controller") == 0 ? KVC_ROLE_CONTROLLER
                                                    : KVC_ROLE_ENGINE;
    if (utilization && parse_decimal(utilization, &o->gpu_utilization) < 0)
        return false;
    return words_int(words, "thread", &o->own_thread) && words_int(words, "timeout", &o->timeout_ms) &&
           words_int(words, "min", &o->min_reserved_pages) &&
           words_int(words, "max", &o->max_reserved_pages) &&
           words_size(words, "max-bytes", &o->max_reserved_bytes);
}

/* The peer's own driver calls are made in the primary context, too. */
static void load_driver(void)
{
    struct kvc_device device = {.size = sizeof(device)};
    char error[CUDA_DRIVER_ERROR_MAX];
    CUcontext context;

    if (kvc_device(peer.client, &device) < 0 ||
        cuda_driver_load(kvc_driver_path(peer.client), &peer.driver, error) < 0)
        abort();
    peer.device = device.ordinal;
    if (peer.driver->cuDevicePrimaryCtxRetain(&context, peer.device) != CUDA_SUCCESS ||
        peer.driver->cuCtxSetCurrent(context) != CUDA_SUCCESS)
        abort();
}

static void unload_driver(void)
{
    if (!peer.driver)
        return;
    peer.driver->cuCtxSetCurrent(NULL);
    peer.driver->cuDevicePrimaryCtxRelease(peer.device);
    peer.driver = cuda_driver_unload(peer.driver);
}

static void on_reclaim(void *data, struct kvc_client *client, uint64_t bytes, unsigned deadline_ms)
{
    blocks_yield();
}

static const struct kvc_listener listener = {.size = sizeof(listener), .reclaim = on_reclaim};

static void do_open(const struct words *words)
{
    struct kvc_options options = {.size = sizeof(options), .listener = &listener};
    int report_ms = 0;
    int r;

    if (peer.client) {
        usage("There is a client already");
        return;
    }
    if (!read_options(words, &options) || !words_int(words, "report", &report_ms)) {
        usage("An option has a value that cannot be used");
        return;
    }
    options.report_ms = (unsigned)report_ms;
    r = kvc_open(&options, &peer.client);
    if (r == 0 && options.role != KVC_ROLE_SCHEDULER && options.role != KVC_ROLE_CONTROLLER)
        load_driver();
    result(r);
}

static void close_all(void)
{
    unload_driver();
    peer.client = kvc_close(peer.client);
    for (unsigned i = 0; i < REGIONS_MAX; i++)
        free(peer.regions[i].ids);
    memset(peer.regions, 0, sizeof(peer.regions));
}

static void do_close(const struct words *words)
{
    close_all();
    done();
}

static void do_reserve(const struct words *words)
{
    uint64_t bytes, foreign_bytes;
    int timeout_ms = 0;

    if (!words_number(words, 1, &bytes) || !words_number(words, 2, &foreign_bytes))
        return;
    if (!words_int(words, "timeout", &timeout_ms)) {
        usage("reserve BYTES FOREIGN [timeout=MS]");
        return;
    }
    result(kvc_reserve(peer.client, bytes, foreign_bytes, timeout_ms));
}

static void do_release(const struct words *words)
{
    result(kvc_release(peer.client));
}

static void do_trim(const struct words *words)
{
    result(kvc_trim(peer.client));
}

static void do_dispatch(const struct words *words)
{
    result(kvc_dispatch(peer.client));
}

static int format_status(char *buf, size_t size)
{
    struct kvc_status s = {.size = sizeof(s)};
    int r = kvc_status(peer.client, &s);

    if (r == 0)
        snprintf(buf, size,
                 "limit=%" PRIu64 " used=%" PRIu64 " budget=%" PRIu64 " mapped=%" PRIu64 " cached=%" PRIu64
                 " over=%d frozen=%d connected=%d",
                 s.limit_bytes, s.used_bytes, s.budget_bytes, s.mapped_bytes, s.cached_bytes, s.over_limit,
                 s.frozen, s.connected);
    return r;
}

static void do_status(const struct words *words)
{
    char text[256];
    int r = format_status(text, sizeof(text));

    if (r == 0)
        ok("%s", text);
    else
        result(r);
}

static bool has_word(const char *text, const char *word)
{
    size_t length = strlen(word);

    for (const char *p = text; (p = strstr(p, word)); p++)
        if ((p == text || p[-1] == ' ') && (p[length] == ' ' || !p[length]))
            return true;
    return false;
}

/* The status page changes without a word, so there is nothing to wait for but time. */
static void do_await(const struct words *words)
{
    struct timespec now, end;
    char text[256];

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += AWAIT_LIMIT_S;
    do {
        struct pollfd pfd = {.fd = kvc_get_fd(peer.client), .events = (short)kvc_get_events(peer.client)};

        kvc_dispatch(peer.client);
        if (words->n > 1 && format_status(text, sizeof(text)) == 0 && has_word(text, words->word[1])) {
            ok("%s", text);
            return;
        }
        poll(&pfd, 1, AWAIT_INTERVAL_MS);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec);
    printf("error KVC_E_TIMEOUT still %s\n", text);
}

static void do_device(const struct words *words)
{
    struct kvc_device d = {.size = sizeof(d)};
    char classes[256] = "";
    int r = kvc_device(peer.client, &d);

    for (uint32_t i = 0; r == 0 && i < d.n_classes; i++)
        snprintf(classes + strlen(classes), sizeof(classes) - strlen(classes), "%s%" PRIu64, i ? "," : "",
                 d.class_bytes[i]);
    if (r == 0)
        ok("%s total=%" PRIu64 " granularity=%" PRIu64 " emulated=%d ordinal=%d classes=%s", d.uuid,
           d.total_bytes, d.granularity_bytes, d.emulated, d.ordinal, classes);
    else
        result(r);
}

static void do_driver(const struct words *words)
{
    ok("%s", kvc_driver_path(peer.client));
}

/* ---- Driver and process ---- */

static void *emulator_function(const char *name)
{
    void *library = dlopen(kvc_driver_path(peer.client), RTLD_NOW | RTLD_NOLOAD);
    void *function = library ? dlsym(library, name) : NULL;

    if (library)
        dlclose(library);
    if (!function)
        usage("That needs the emulated driver");
    return function;
}

static void do_stats(const struct words *words)
{
    __typeof__(&cuemuGetStats) get = (__typeof__(get))emulator_function("cuemuGetStats");
    struct cuemu_stats s;

    if (!get)
        return;
    if (get(&s) < 0)
        usage("The emulated driver is not initialised");
    else
        ok("handles=%" PRIu64 " mappings=%" PRIu64 " reservations=%" PRIu64 " used=%" PRIu64, s.handles,
           s.mappings, s.reservations, s.used_bytes);
}

static void do_calls(const struct words *words)
{
    __typeof__(&cuemuGetCalls) get = (__typeof__(get))emulator_function("cuemuGetCalls");

    if (get)
        ok("%" PRIu64, get(words->n > 1 ? words->word[1] : ""));
}

static void do_alloc(const struct words *words)
{
    CUdeviceptr address;
    uint64_t size;
    CUresult r;

    if (words->n < 2 || parse_size(words->word[1], &size) < 0) {
        usage("alloc SIZE");
        return;
    }
    r = peer.driver->cuMemAlloc(&address, size);
    if (r == CUDA_SUCCESS)
        ok("%llu", address);
    else
        driver_result(r);
}

static void do_free(const struct words *words)
{
    uint64_t address;

    if (words_number(words, 1, &address))
        driver_result(peer.driver->cuMemFree(address));
    else
        usage("free ADDRESS");
}

static void do_fd_limit(const struct words *words)
{
    struct rlimit limit;
    uint64_t n;

    if (!words_number(words, 1, &n) || getrlimit(RLIMIT_NOFILE, &limit) < 0) {
        usage("fd-limit N");
        return;
    }
    limit.rlim_cur = n ? n : peer.first_fd_limit;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        usage(strerror(errno));
    else
        done();
}

static void do_fork_child(const struct words *words)
{
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        /* Not the pipes: whoever reads them waits for their end. */
        close(STDIN_FILENO);
        close(STDOUT_FILENO);
        for (;;)
            pause();
    }
    if (pid < 0)
        usage(strerror(errno));
    else
        ok("%d", pid);
}

static void do_drop_socket(const struct words *words)
{
    if (shutdown(kvc_get_fd(peer.client), SHUT_RDWR) < 0)
        usage(strerror(errno));
    else
        done();
}

/* ---- Main ---- */

static const struct command commands[] = {
    {"open", do_open, false},
    {"close", do_close, false},
    {"status", do_status, true},
    {"await", do_await, true},
    {"device", do_device, true},
    {"driver", do_driver, true},
    {"stats", do_stats, true},
    {"calls", do_calls, true},
    {"reserve", do_reserve, true},
    {"release", do_release, true},
    {"trim", do_trim, true},
    {"dispatch", do_dispatch, true},
    {"alloc", do_alloc, true},
    {"free", do_free, true},
    {"fd-limit", do_fd_limit, false},
    {"fork-child", do_fork_child, false},
    {"drop-socket", do_drop_socket, true},
};

static const struct command *find(const struct command *all, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(name, all[i].name) == 0)
            return &all[i];
    return NULL;
}

static void run(const struct words *words)
{
    const struct command *command = find(commands, ARRAY_SIZE(commands), words->word[0]);

    if (!command)
        command = find(regions_commands, N_REGIONS_COMMANDS, words->word[0]);
    if (!command)
        command = find(blocks_commands, N_BLOCKS_COMMANDS, words->word[0]);
    if (!command)
        usage("There is no such command");
    else if (command->needs_client && !peer.client)
        usage("There is no client; open one");
    else
        command->run(words);
}

int main(void)
{
    struct rlimit limit;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    getrlimit(RLIMIT_NOFILE, &limit);
    peer.first_fd_limit = limit.rlim_cur;
    words_serve(run);
    close_all();
    return 0;
}
