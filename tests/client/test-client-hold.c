/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Holds: addresses that stay reserved when their region is closed.
 */

#include "support.h"

#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE (2 * MIB)

static struct cuemu_stats stats_of(const struct emulator *emulator)
{
    struct cuemu_stats stats;

    check_eq(emulator->stats(&stats), 0);
    return stats;
}

TEST(addresses_outlive_the_region)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 2, PAGE, 4), *other;
    struct emulator *emulator = emulator_open(client);
    uint64_t address = kvc_region_address(region);
    struct kvc_hold *first, *second;

    check_ok(map_range(region, 0, 3));
    check_ok(kvc_region_hold(region, &first));
    check_ok(kvc_region_hold(region, &second));
    check_eq(stats_of(emulator).reservations, 1);
    kvc_region_close(region);
    check_eq(lent_bytes(fake), 0);
    check_eq(stats_of(emulator).mappings, 0);
    check_eq(stats_of(emulator).reservations, 1);
    other = open_region(client, 2, PAGE, 4);
    check(kvc_region_address(other) != address);
    kvc_region_close(other);
    check(!kvc_hold_release(first));
    check_eq(stats_of(emulator).reservations, 1);
    check(!kvc_hold_release(second));
    check_eq(stats_of(emulator).reservations, 0);
    emulator_close(emulator);
    kvc_close(client);
    fake_stop(fake);
}

TEST(holds_that_end_first)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 4);
    struct emulator *emulator = emulator_open(client);
    struct kvc_hold *hold;

    check_ok(kvc_region_hold(region, &hold));
    check(!kvc_hold_release(hold));
    check_ok(map_range(region, 0, 4));
    stamp(emulator, region, PAGE, 0, 3, 42);
    check_stamp(emulator, region, PAGE, 0, 3, 42);
    kvc_region_close(region);
    check_eq(stats_of(emulator).reservations, 0);
    emulator_close(emulator);
    kvc_close(client);
    fake_stop(fake);
}

/* Its driver and context live until then. */
TEST(addresses_outlive_the_client)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 4);
    struct emulator *emulator = emulator_open(client);
    struct kvc_hold *hold;

    check_ok(map_range(region, 0, 1));
    check_ok(kvc_region_hold(region, &hold));
    kvc_close(client);
    check_eq(lent_bytes(fake), 0);
    check_eq(stats_of(emulator).reservations, 1);
    kvc_hold_release(hold);
    check_eq(stats_of(emulator).reservations, 0);
    emulator_close(emulator);
    fake_stop(fake);
}

TEST(nothing_to_hold)
{
    struct kvc_hold *hold = NULL;

    check_error(kvc_region_hold(NULL, &hold), KVC_E_INVALID);
    check(!hold);
    check(!kvc_hold_release(NULL));
}

/* The child's releases do nothing, so the parent's still count. */
TEST(forked_child)
{
    struct fake *fake = fake_start(NULL);
    struct kvc_client *client = open_plain(fake);
    struct kvc_region *region = open_region(client, 1, PAGE, 4);
    struct emulator *emulator = emulator_open(client);
    struct kvc_hold *hold, *late = NULL;
    int status;
    pid_t pid;

    check_ok(kvc_region_hold(region, &hold));
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        bool good = kvc_region_hold(region, &late) == KVC_E_FORKED && !late;

        kvc_hold_release(hold);
        kvc_hold_release(hold);
        kvc_close(client);
        kvc_hold_release(hold);
        _exit(good ? 0 : 1);
    }
    check_eq(waitpid(pid, &status, 0), pid);
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    kvc_close(client);
    check_eq(stats_of(emulator).reservations, 1);
    kvc_hold_release(hold);
    check_eq(stats_of(emulator).reservations, 0);
    emulator_close(emulator);
    fake_stop(fake);
}
