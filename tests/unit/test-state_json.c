/* SPDX-License-Identifier: Apache-2.0 */
#include "state_json.h"

#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "stateworld.h"
#include "test.h"
#include "wire/codec.h"

#define HEAD                                                                                                 \
    "{\"gpu\":{\"index\":3,\"uuid\":\"GPU-1\",\"name\":\"A GPU\",\"emulated\":false},"                       \
    "\"daemon_version\":\"1.2.3\",\"life\":\"0000000000001234\",\"realtime_ms\":1700000000500,"              \
    "\"uptime_ms\":1500,\"draining\":false,\"driver_silent\":false,"
#define NO_MEMORY                                                                                            \
    "\"total_bytes\":0,\"free_bytes\":0,\"foreign_bytes\":0,\"budget_bytes\":0,\"headroom_bytes\":0,"        \
    "\"held_bytes\":0,\"creating_bytes\":0,\"pool_bytes\":0,\"warm_bytes\":0,\"leased_bytes\":0,"            \
    "\"granted_bytes\":0,\"limbo_bytes\":0,\"destroying_bytes\":0,\"reserved_bytes\":0,"                     \
    "\"expected_bytes\":0,"

static void expect(const struct state *state, const char *expected)
{
    _cleanup_free_ char *text = NULL;
    size_t length;

    check_eq(state_json(state, &text, &length), 0);
    check_str(text, expected);
    check_eq(length, strlen(expected));
}

TEST(nothing_going_on)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(0);

    expect(state, HEAD NO_MEMORY "\"instances\":[],\"history\":[],\"events\":[],\"last_event\":0}");
}

TEST(an_instance)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(1);

    state->instances[0] = (struct state_instance){
        .domain = "uid:1@/a\xff",
        .name = "</script>\"\\",
        .limit_bytes = UINT64_MAX - 1, /* beyond what a double holds */
        .used_bytes = 2,
        .granted_bytes = 3,
        .limbo_bytes = 4,
        .pending_bytes = 5,
        .leased_bytes = 6,
        .reserved_bytes = 14,
        .cached_bytes = 7,
        .pinned_bytes = 8,
        .wanted_bytes = 9,
        .total_granted_bytes = 10,
        .total_returned_bytes = 11,
        .n_refused = 12,
        .limit_source = BROKER_LIMIT_ADMIN,
        .n_peers = 13,
        .over_limit = true,
        .frozen = true,
    };
    expect(state, HEAD NO_MEMORY
           "\"instances\":[{\"ipc\":\"</script>\\\"\\\\\",\"domain\":\"uid:1@/a\\\\xff\","
           "\"limit_bytes\":18446744073709551614,\"limit_source\":\"admin\",\"used_bytes\":2,"
           "\"granted_bytes\":3,\"limbo_bytes\":4,\"pending_bytes\":5,\"leased_bytes\":6,"
           "\"reserved_bytes\":14,\"cached_bytes\":7,"
           "\"pinned_bytes\":8,\"wanted_bytes\":9,\"total_granted_bytes\":10,\"total_returned_bytes\":11,"
           "\"refusals\":12,\"processes\":13,\"over_limit\":true,\"missed_notice\":false,\"frozen\":true}],"
           "\"history\":[],\"events\":[],\"last_event\":0}");
}

/* Times on the monotonic clock are told on the other one; one that seems to be still to come is now. */
TEST(history_and_events)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(0);

    state->n_samples = 2;
    state->samples[0] = (struct history_sample){48 * NSEC_PER_SEC, 1, 2, 3, 4, 5, 6};
    state->samples[1] = (struct history_sample){51 * NSEC_PER_SEC, 7, 8, 9, 10, 11, UINT64_MAX};
    state->n_events = 9;
    state->n_recent = 2;
    state->recent[0] = (struct event){.number = 8,
                                      .realtime_ms = 1,
                                      .kind = KVCACHED__EVENT_KIND__EVENT_OVER_LIMIT,
                                      .pid = 4,
                                      .bytes = 5,
                                      .domain = "d",
                                      .instance = "i",
                                      .text = "It\n"};
    state->recent[1] =
        (struct event){.number = 9, .realtime_ms = 2, .kind = 9999, .domain = "", .instance = "", .text = ""};
    expect(
        state, HEAD NO_MEMORY
        "\"instances\":[],\"history\":[[1699999998500,1,2,3,4,5,6],"
        "[1700000000500,7,8,9,10,11,18446744073709551615]],"
        "\"events\":[{\"number\":8,\"realtime_ms\":1,\"kind\":\"over_limit\",\"domain\":\"d\",\"ipc\":\"i\","
        "\"pid\":4,\"bytes\":5,\"text\":\"It\\\\x0a\"},"
        "{\"number\":9,\"realtime_ms\":2,\"kind\":\"unspecified\",\"domain\":\"\",\"ipc\":\"\","
        "\"pid\":0,\"bytes\":0,\"text\":\"\"}],\"last_event\":9}");
}
