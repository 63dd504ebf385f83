/* SPDX-License-Identifier: Apache-2.0 */

/* What tests ask the emulator about itself, and the line that a process leaves behind when it ends. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cuda/emulator.h"
#include "internal.h"

static uint64_t used_bytes(void)
{
    uint64_t used = 0;

    for (unsigned i = 0; i < registry_n_devices(emu.registry); i++)
        used += registry_used(emu.registry, i);
    return used;
}

EXPORT int cuemuGetStats(struct cuemu_stats *ret)
{
    int r = -ENOTCONN;

    if (in_forked_child())
        return r;
    pthread_mutex_lock(&emu.lock);
    if (emu.state == EMULATOR_READY) {
        registry_sweep(emu.registry);
        *ret = (struct cuemu_stats){
            .handles = emu.handles.n_live - emu.addresses.n_internal,
            .mappings = emu.addresses.n_mappings - emu.addresses.n_internal,
            .reservations = emu.addresses.n_ranges - emu.addresses.n_internal,
            .allocations = emu.addresses.n_internal,
            .streams = streams_count(),
            .events = events_count(),
            .contexts = contexts_count(),
            .exported = registry_count_exported(emu.registry),
            .used_bytes = used_bytes(),
        };
        r = 0;
    }
    pthread_mutex_unlock(&emu.lock);
    return r;
}

EXPORT uint64_t cuemuGetCalls(const char *function)
{
    uint64_t n = 0;

    for (int i = 0; i < CALL_N; i++)
        if (strcmp(call_name(i), function) == 0)
            n += call_count(i);
    return n;
}

/* One write, so that lines of processes that end together do not mix. */
void stats_append(const char *path)
{
    _cleanup_close_ int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    char line[8192];
    size_t at;

    if (fd < 0)
        return;
    at = (size_t)snprintf(line, sizeof(line),
                          "{\"pid\": %d, \"handles\": %" PRIu64 ", \"mappings\": %" PRIu64
                          ", \"reservations\": %" PRIu64 ", \"allocations\": %" PRIu64 ", \"calls\": {",
                          (int)getpid(), emu.handles.n_live - emu.addresses.n_internal,
                          emu.addresses.n_mappings - emu.addresses.n_internal,
                          emu.addresses.n_ranges - emu.addresses.n_internal, emu.addresses.n_internal);
    for (int i = 0, n = 0; i < CALL_N; i++)
        if (call_count(i) > 0)
            at += (size_t)snprintf(line + at, sizeof(line) - at, "%s\"%s\": %" PRIu64, n++ ? ", " : "",
                                   call_name(i), call_count(i));
    at += (size_t)snprintf(line + at, sizeof(line) - at, "}}\n");
    if (write(fd, line, at) < 0)
        fprintf(stderr, "cuemu: %s: %s\n", path, strerror(errno));
}
