/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The only place that speaks to systemd. Passed descriptors are named in the socket unit
 * (FileDescriptorName=) and are claimed by those names; the list is kept for the whole life of the process,
 * since it is a property of the process.
 */

#include "notify.h"

#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "base/arith.h"
#include "base/cleanup.h"

static char **passed_names;
static int n_passed = -1;

void notify_ready(const char *status)
{
    sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

void notify_reloading(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu",
               (unsigned long long)now.tv_sec * 1000000 + (unsigned long long)now.tv_nsec / 1000);
}

void notify_stopping(void)
{
    sd_notify(0, "STOPPING=1\nSTATUS=Giving the memory back");
}

void notify_alive(void)
{
    sd_notify(0, "WATCHDOG=1");
}

/* Half of the time after which we would be taken for dead. */
uint64_t notify_watchdog_ms(void)
{
    uint64_t usec;

    if (sd_watchdog_enabled(0, &usec) <= 0)
        return 0;
    return u64_max(usec / 2000, 1);
}

static void read_passed(void)
{
    if (n_passed < 0)
        n_passed = sd_listen_fds_with_names(1, &passed_names);
    if (n_passed < 0)
        n_passed = 0;
}

static int find_passed(const char *name)
{
    read_passed();
    for (int i = 0; i < n_passed; i++) {
        if (passed_names[i] && strcmp(passed_names[i], name) == 0)
            return i;
    }
    return -1;
}

bool notify_was_passed(const char *name)
{
    return find_passed(name) >= 0;
}

int notify_claim_socket(const char *name)
{
    int i = find_passed(name);

    if (i < 0)
        return -1;
    free(passed_names[i]);
    passed_names[i] = NULL;
    return SD_LISTEN_FDS_START + i;
}

const char *notify_unclaimed_socket(void)
{
    read_passed();
    for (int i = 0; i < n_passed; i++) {
        if (passed_names[i])
            return passed_names[i];
    }
    return NULL;
}
