/* SPDX-License-Identifier: Apache-2.0 */
#include "stateworld.h"

#include <stdlib.h>

#include "base/arith.h"
#include "test.h"

struct state *stateworld_new(size_t n_instances)
{
    struct state *state = calloc(1, sizeof(*state) + n_instances * sizeof(struct state_instance));

    check(state != NULL);
    *state = (struct state){
        .gpu_uuid = "GPU-1",
        .gpu_name = "A GPU",
        .daemon_version = "1.2.3",
        .gpu_index = 3,
        .now_ns = 50 * NSEC_PER_SEC,
        .realtime_ms = 1700000000500,
        .uptime_ms = 1500,
        .life = 0x1234,
        .n_instances = n_instances,
        .instances = (struct state_instance *)(state + 1),
    };
    for (size_t i = 0; i < n_instances; i++)
        state->instances[i] = (struct state_instance){
            .domain = "d", .name = "i", .serial = i, .limit_source = BROKER_LIMIT_BUDGET};
    return state;
}

struct state *state_free(struct state *state)
{
    free(state);
    return NULL;
}
