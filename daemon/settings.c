/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Arithmetic of the defaults. Of the descriptors that the process may have, a quarter is for warm extents and
 * half for peers, each of which takes three: its socket, its process, its instance's page. As many as half
 * may be in flight, shared with the daemons of the machine's other GPUs, since the kernel counts those by
 * user. There are never more peers than a third of that, so that each can be sent one (flight.c).
 */

#include "settings.h"

#include "base/arith.h"

#define N_CLASSES 4
#define SMALLEST_CLASS_BYTES (2 * MIB)
#define CREATING_MAX 16
#define LOOK_NS (250 * NSEC_PER_MSEC)
#define NOTICE_NS (2 * NSEC_PER_SEC)
#define COURTESY_NS (500 * NSEC_PER_MSEC)
#define PATIENCE_NS (5 * NSEC_PER_SEC)
#define BUDGET_RISE_NS (2 * NSEC_PER_SEC)

#define DEFAULT_UTILIZATION_PPM 950000
#define DEFAULT_HEADROOM_PARTS 128
#define DEFAULT_RESERVE_BYTES (256 * MIB)
#define DEFAULT_IDLE_NS (5 * NSEC_PER_SEC)

static uint64_t or_else(uint64_t value, uint64_t otherwise)
{
    return value != CONFIG_UNSET ? value : otherwise;
}

/* Each four times the one before, as far as the device has room for one. */
static void choose_classes(struct broker_config *broker, uint64_t granularity_bytes)
{
    uint64_t bytes = u64_max(SMALLEST_CLASS_BYTES, granularity_bytes);

    for (unsigned i = 0; i < N_CLASSES && bytes <= broker->total_bytes; i++, bytes *= 4)
        broker->class_bytes[broker->n_classes++] = bytes;
}

void settings_reload(struct settings *settings, const struct config *config)
{
    struct broker_config *broker = &settings->broker;

    broker->budget_bytes = or_else(config->budget_bytes, 0);
    broker->utilization_ppm = (uint32_t)or_else(config->utilization_ppm, DEFAULT_UTILIZATION_PPM);
    broker->headroom_bytes = or_else(config->headroom_bytes, broker->total_bytes / DEFAULT_HEADROOM_PARTS);
    broker->reserve_bytes = or_else(config->reserve_bytes, DEFAULT_RESERVE_BYTES);
    broker->idle_ns = or_else(config->idle_ns, DEFAULT_IDLE_NS);
}

void settings_init(struct settings *settings, const struct config *config, uint64_t total_bytes,
                   uint64_t granularity_bytes, unsigned n_devices, uint64_t n_descriptors)
{
    uint64_t warm_max = u64_max(n_descriptors / 4, 1);
    uint64_t in_flight_max = u64_max(n_descriptors / 2 / u64_max(n_devices, 1), 1);

    *settings = (struct settings){
        .broker =
            {
                .total_bytes = total_bytes,
                .warm_max = (unsigned)u64_min(or_else(config->warm_extents, warm_max), warm_max),
                .creating_max = CREATING_MAX,
                .notice_ns = NOTICE_NS,
                .courtesy_ns = COURTESY_NS,
                .look_ns = LOOK_NS,
                .budget_rise_ns = BUDGET_RISE_NS,
                .patience_ns = PATIENCE_NS,
            },
        .peers_max = (unsigned)u64_max(in_flight_max / 3, 1),
        .in_flight_max = (unsigned)in_flight_max,
    };
    settings->broker.lease_max = settings->broker.warm_max / 2;
    choose_classes(&settings->broker, granularity_bytes);
    settings_reload(settings, config);
}
