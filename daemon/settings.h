/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Settings: the numbers that the daemon runs with, from the configuration, the device and what the system
 * allows. All defaults that are numbers are here. Pure.
 */

#include <stdint.h>

#include "broker.h"
#include "config.h"

struct settings {
    struct broker_config broker;
    unsigned peers_max;
    unsigned in_flight_max; /* descriptors that are sent and not acknowledged */
};

/* `n_descriptors`: how many the process may have. */
void settings_init(struct settings *settings, const struct config *config, uint64_t total_bytes,
                   uint64_t granularity_bytes, unsigned n_devices, uint64_t n_descriptors);

/* What a new configuration may change while the daemon runs. */
void settings_reload(struct settings *settings, const struct config *config);
