/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "stateworld.h"
#include "test.h"

static char *text_of(const struct state *state, bool openmetrics)
{
    struct metrics metrics = {
        .state = state,
        .process = {.cpu_seconds = 1.5, .start_seconds = 1700000000.25, .open_fds = 7},
        .http = {.n_connections = 2, .n_requests = 3, .n_states = 4},
    };
    size_t length;
    char *text;

    check_eq(metrics_text(&metrics, openmetrics, &text, &length), 0);
    check_eq(strlen(text), length);
    return text;
}

static void expect(const char *text, const char *part)
{
    if (!strstr(text, part))
        test_fail(__FILE__, __LINE__, "there is no %s here: %s", part, text);
}

static unsigned count(const char *text, const char *part)
{
    unsigned n = 0;

    for (; (text = strstr(text, part)); text++)
        n++;
    return n;
}

TEST(gauges_and_counters)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(0);
    _cleanup_free_ char *text = NULL;

    state->totals.budget_bytes = 60 * GIB;
    state->totals.limbo_bytes = 5;
    state->counters.n_grants = 17;
    state->draining = true;
    text = text_of(state, false);
    check(strncmp(text, "# HELP kvcached_build_info ", 27) == 0);
    expect(text, "# TYPE kvcached_build_info gauge\nkvcached_build_info{version=\"1.2.3\"} 1\n");
    expect(text,
           "kvcached_gpu_info{gpu_index=\"3\",gpu_uuid=\"GPU-1\",gpu_name=\"A GPU\",emulated=\"false\"} 1\n");
    expect(text, "# HELP kvcached_budget_bytes What the daemon may have from the driver.\n"
                 "# TYPE kvcached_budget_bytes gauge\nkvcached_budget_bytes 64424509440\n");
    expect(text, "\nkvcached_memory_bytes{state=\"limbo\"} 5\n");
    expect(text, "# HELP kvcached_grants_total Requests for memory that were met.\n"
                 "# TYPE kvcached_grants_total counter\nkvcached_grants_total 17\n");
    expect(text, "\nkvcached_draining 1\n");
    expect(text, "\nprocess_cpu_seconds_total 1.50\n");
    expect(text, "\nprocess_start_time_seconds 1700000000.25\n");
    expect(text, "\nkvcached_http_states_total 4\n");
    check_eq(count(text, "_created"), 0);
    check_eq(count(text, "# UNIT"), 0);
    check_eq(count(text, "# EOF"), 0);
}

TEST(openmetrics)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(0);
    _cleanup_free_ char *text = NULL;

    state->counters.granted_bytes = 2 * MIB;
    text = text_of(state, true);
    expect(text, "# HELP kvcached_build The daemon's version.\n# TYPE kvcached_build info\n"
                 "kvcached_build_info{version=\"1.2.3\"} 1\n");
    expect(text, "# HELP kvcached_granted_bytes Memory that was handed over.\n"
                 "# TYPE kvcached_granted_bytes counter\n# UNIT kvcached_granted_bytes bytes\n"
                 "kvcached_granted_bytes_total 2097152\nkvcached_granted_bytes_created 1699999999.000\n");
    expect(text, "# TYPE process_cpu_seconds counter\nprocess_cpu_seconds_total 1.50\n");
    check_str(text + strlen(text) - 6, "# EOF\n");
    check_eq(count(text, "# EOF"), 1);
}

TEST(by_reason_and_call)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(0);
    _cleanup_free_ char *text = NULL;

    state->counters.n_refused[BROKER_E_LIMIT] = 3;
    state->counters.n_missed[1] = 4;
    state->server.n_rejected[1] = 5;
    state->driver.n_failed[BACKING_RELEASE] = 6;
    text = text_of(state, false);
    expect(text, "# TYPE kvcached_refusals_total counter\nkvcached_refusals_total{reason=\"limit\"} 3\n"
                 "kvcached_refusals_total{reason=\"budget\"} 0\n");
    expect(text, "\nkvcached_missed_notices_total{cause=\"limit\"} 0\n"
                 "kvcached_missed_notices_total{cause=\"need\"} 4\n");
    expect(text, "\nkvcached_rejected_connections_total{socket=\"control\"} 5\n");
    expect(text, "\nkvcached_driver_failures_total{call=\"release\"} 6\n");
}

/* Buckets are cumulative, the last one holds all, and the sum is exact. */
TEST(histograms)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(0);
    _cleanup_free_ char *text = NULL;

    histogram_add(&state->counters.waits, 1000);
    histogram_add(&state->counters.waits, 1001);
    histogram_add(&state->counters.waits, 20 * NSEC_PER_SEC);
    histogram_add(&state->driver.times[BACKING_LOOK], 70 * NSEC_PER_USEC);
    text = text_of(state, false);
    expect(text, "# TYPE kvcached_grant_wait_seconds histogram\n"
                 "kvcached_grant_wait_seconds_bucket{le=\"1e-06\"} 1\n"
                 "kvcached_grant_wait_seconds_bucket{le=\"4e-06\"} 2\n"
                 "kvcached_grant_wait_seconds_bucket{le=\"1.6e-05\"} 2\n");
    expect(text, "kvcached_grant_wait_seconds_bucket{le=\"16.777216\"} 2\n"
                 "kvcached_grant_wait_seconds_bucket{le=\"+Inf\"} 3\n"
                 "kvcached_grant_wait_seconds_count 3\nkvcached_grant_wait_seconds_sum 20.000002001\n");
    expect(text, "kvcached_driver_call_seconds_bucket{call=\"look\",le=\"6.4e-05\"} 0\n"
                 "kvcached_driver_call_seconds_bucket{call=\"look\",le=\"0.000256\"} 1\n");
    expect(text, "kvcached_driver_call_seconds_count{call=\"look\"} 1\n"
                 "kvcached_driver_call_seconds_sum{call=\"look\"} 0.000070000\n");
}

TEST(seconds)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(0);
    _cleanup_free_ char *text = NULL;

    state->driver.busy_ns = 1500 * NSEC_PER_MSEC;
    text = text_of(state, false);
    expect(text, "\nkvcached_driver_busy_seconds 1.500000000\n");
}

/* No name ends its label, or looks like another one. */
TEST(hostile_names)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(2);
    _cleanup_free_ char *text = NULL;

    state->instances[0].domain = "a\"} 1\nkvcached_x{y=\"\xff\t\\";
    state->instances[1].domain = "\\xff";
    state->instances[1].used_bytes = 9;
    text = text_of(state, false);
    expect(text, "kvcached_instance_used_bytes{domain=\"a\\\"} "
                 "1\\\\x0akvcached_x{y=\\\"\\\\xff\\\\x09\\\\x5c\",ipc=\"i\"} 0\n"
                 "kvcached_instance_used_bytes{domain=\"\\\\x5cxff\",ipc=\"i\"} 9\n");
}

/* Those that use least are put together, and only what can be added up. */
TEST(bounded)
{
    enum { MORE = 10, N = METRICS_INSTANCES_MAX + MORE };
    _cleanup_(state_freep) struct state *state = stateworld_new(N);
    static char names[N][8];
    _cleanup_free_ char *text = NULL;
    char line[128];

    for (unsigned i = 0; i < N; i++) {
        snprintf(names[i], sizeof(names[i]), "n%u", i);
        state->instances[i].name = names[i];
        state->instances[i].used_bytes = i < MORE / 2 || i >= N - MORE / 2 ? 7 : 100 + i;
        state->instances[i].over_limit = true;
    }
    text = text_of(state, false);
    check_eq(count(text, "\nkvcached_instance_used_bytes{"), METRICS_INSTANCES_MAX + 1);
    check_eq(count(text, "\nkvcached_instance_refusals_total{"), METRICS_INSTANCES_MAX);
    snprintf(line, sizeof(line), "\nkvcached_instance_used_bytes{domain=\"\",ipc=\"_other\"} %u\n", 7 * MORE);
    expect(text, line);
    expect(text, "\nkvcached_instance_over_limit{domain=\"\",ipc=\"_other\"} 10\n");
    expect(text, "\nkvcached_instance_used_bytes{domain=\"d\",ipc=\"n5\"} 105\n");
    check_eq(count(text, "ipc=\"n0\""), 0);
}

TEST(as_many_as_may_be)
{
    _cleanup_(state_freep) struct state *state = stateworld_new(METRICS_INSTANCES_MAX);
    _cleanup_free_ char *text = text_of(state, true);

    check_eq(count(text, "_other"), 0);
    check_eq(count(text, "\nkvcached_instance_used_bytes{"), METRICS_INSTANCES_MAX);
}
