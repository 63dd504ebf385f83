/* SPDX-License-Identifier: Apache-2.0 */
#include "settings.h"

#include "base/arith.h"
#include "test.h"

static struct config *parse(const char *text)
{
    char error[CONFIG_ERROR_MAX];
    struct config *config;

    check_eq(config_parse(text, "f", &config, error), 0);
    return config;
}

TEST(defaults)
{
    struct config *config = parse("");
    struct settings settings;

    settings_init(&settings, config, 80 * GIB, 2 * MIB, 2, 20000);
    check_eq(settings.broker.budget_bytes, 0);
    check_eq(settings.broker.utilization_ppm, 950000);
    check(settings.broker.headroom_bytes == 80 * GIB / 128);
    check(settings.broker.reserve_bytes == 256 * MIB);
    check_eq(settings.broker.n_classes, 4);
    check(settings.broker.class_bytes[3] == 128 * MIB);
    check_eq(settings.broker.warm_max, 5000);
    check_eq(settings.broker.lease_max, 2500);
    check_eq(settings.broker.courtesy_ns, 500 * NSEC_PER_MSEC);
    check_eq(settings.broker.notice_ns, 2 * NSEC_PER_SEC);
    check_eq(settings.peers_max, 1666);
    check_eq(settings.in_flight_max, 5000);
    config_free(config);
}

TEST(small_devices_and_tables)
{
    struct config *config = parse("[daemon]\nwarm=7\n");
    struct settings settings;

    settings_init(&settings, config, 16 * MIB, 2 * MIB, 0, 3);
    check_eq(settings.broker.n_classes, 2);
    check_eq(settings.broker.warm_max, 1);
    check_eq(settings.peers_max, 1);
    check_eq(settings.in_flight_max, 1);
    settings_init(&settings, config, GIB, 64 * MIB, 1, 1024);
    check_eq(settings.broker.n_classes, 3);
    check(settings.broker.class_bytes[0] == 64 * MIB);
    check_eq(settings.broker.warm_max, 7);
    config_free(config);
}

/* What flight.c counts on, or those who don't acknowledge could use up what everybody has a right to. */
TEST(each_peer_can_have_a_descriptor_in_flight)
{
    struct config *config = parse("");
    struct settings settings;

    for (unsigned n_devices = 1; n_devices <= 16; n_devices++) {
        settings_init(&settings, config, 80 * GIB, 2 * MIB, n_devices, 4096);
        check(settings.peers_max > 0);
        check(settings.peers_max <= settings.in_flight_max / 3);
    }
    config_free(config);
}

TEST(reload_changes_what_may_change)
{
    struct config *before = parse("[daemon]\nwarm=7\nbudget=1G\n");
    struct config *after = parse("[daemon]\nwarm=9\nutilization=0.5\nidle=1\n");
    struct settings settings;

    settings_init(&settings, before, 8 * GIB, 2 * MIB, 1, 1024);
    settings_reload(&settings, after);
    check_eq(settings.broker.warm_max, 7);
    check_eq(settings.broker.budget_bytes, 0);
    check_eq(settings.broker.utilization_ppm, 500000);
    check(settings.broker.idle_ns == NSEC_PER_SEC);
    config_free(before);
    config_free(after);
}
