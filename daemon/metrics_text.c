/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What there is to say is in tables: name, unit, kind, meaning, and where the number is. A counter's name
 * stands there without its "_total", which OpenMetrics wants in samples only and the older format in both.
 *
 * What names an instance is called "ipc", as in kvctl's output: "instance" is what Prometheus calls the place
 * that it scrapes. Series are bounded: beyond METRICS_INSTANCES_MAX, the instances that use least are one,
 * "_other", which no instance can be called. It has no counters, since a sum over others each time would not
 * only grow.
 */

#include "metrics_text.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "state.h"
#include "text_buffer.h"

#define OTHER "_other"
#define LABEL_MAX 4096 /* of domain and instance, each byte escaped */

enum kind { GAUGE, COUNTER, HISTOGRAM, INFO };

struct family {
    const char *name; /* without "kvcached_" and unit */
    const char *unit; /* NULL: a number of things */
    enum kind kind;
    const char *help;
};

/* Where a number is in a structure. */
struct field {
    size_t offset, size;
};

#define FIELD(type, member)                                                                                  \
    {                                                                                                        \
        offsetof(type, member), sizeof(((type *)NULL)->member)                                               \
    }

struct row {
    struct family family;
    struct field field;
};

struct writer {
    struct text_buffer text;
    bool openmetrics;
    double created; /* when the daemon started: since 1970, in seconds */
};

static uint64_t number(const void *of, struct field field)
{
    const char *at = (const char *)of + field.offset;

    switch (field.size) {
    case sizeof(uint64_t):
        return *(const uint64_t *)at;
    case sizeof(unsigned):
        return *(const unsigned *)at;
    default:
        return *(const bool *)at;
    }
}

/* ---- Families and samples ---- */

static void put_name(struct writer *writer, const struct family *family)
{
    text_buffer_add(&writer->text, "kvcached_");
    text_buffer_add(&writer->text, family->name);
    if (family->unit) {
        text_buffer_add(&writer->text, "_");
        text_buffer_add(&writer->text, family->unit);
    }
}

static void put_comment(struct writer *writer, const char *what, const struct family *family,
                        const char *suffix, const char *said)
{
    text_buffer_printf(&writer->text, "# %s ", what);
    put_name(writer, family);
    text_buffer_printf(&writer->text, "%s %s\n", suffix, said);
}

/* The older format has no type for an information, and gives a counter its samples' name. */
static const char *suffix_of(const struct writer *writer, const struct family *family)
{
    if (family->kind == INFO)
        return writer->openmetrics ? "" : "_info";
    return family->kind == COUNTER && !writer->openmetrics ? "_total" : "";
}

static void begin(struct writer *writer, const struct family *family)
{
    static const char *const types[] = {
        [GAUGE] = "gauge", [COUNTER] = "counter", [HISTOGRAM] = "histogram", [INFO] = "info"};
    const char *suffix = suffix_of(writer, family);

    put_comment(writer, "HELP", family, suffix, family->help);
    put_comment(writer, "TYPE", family, suffix,
                family->kind == INFO && !writer->openmetrics ? "gauge" : types[family->kind]);
    if (family->unit && writer->openmetrics)
        put_comment(writer, "UNIT", family, suffix, family->unit);
}

/* `labels`: with their braces, or "". */
static void put_series(struct writer *writer, const struct family *family, const char *suffix,
                       const char *labels)
{
    put_name(writer, family);
    text_buffer_add(&writer->text, suffix);
    text_buffer_add(&writer->text, labels);
    text_buffer_add(&writer->text, " ");
}

static void put_seconds(struct writer *writer, uint64_t ns)
{
    text_buffer_printf(&writer->text, "%" PRIu64 ".%09" PRIu64, ns / NSEC_PER_SEC, ns % NSEC_PER_SEC);
}

/* Seconds are kept in nanoseconds, everything else as what it is. */
static void put_sample(struct writer *writer, const struct family *family, const char *labels, uint64_t value)
{
    static const char *const suffixes[] = {
        [GAUGE] = "", [COUNTER] = "_total", [HISTOGRAM] = "", [INFO] = "_info"};

    put_series(writer, family, suffixes[family->kind], labels);
    if (family->unit && strcmp(family->unit, "seconds") == 0)
        put_seconds(writer, value);
    else
        text_buffer_add_u64(&writer->text, value);
    text_buffer_add(&writer->text, "\n");
}

/* OpenMetrics only: since when something is counted. */
static void put_created(struct writer *writer, const struct family *family, const char *labels)
{
    if (!writer->openmetrics)
        return;
    put_series(writer, family, "_created", labels);
    text_buffer_printf(&writer->text, "%.3f\n", writer->created);
}

/* A counter of the daemon's whole life, or a gauge. */
static void put_number(struct writer *writer, const struct family *family, const char *labels, uint64_t value)
{
    put_sample(writer, family, labels, value);
    if (family->kind == COUNTER)
        put_created(writer, family, labels);
}

static void put_rows(struct writer *writer, const struct row *rows, size_t n, const void *of)
{
    for (size_t i = 0; i < n; i++) {
        begin(writer, &rows[i].family);
        put_number(writer, &rows[i].family, "", number(of, rows[i].field));
    }
}

/* ---- Labels ---- */

/* Printable ASCII: any other byte becomes \x1b, as kvctl writes it, and so does a backslash, so that no two
 * names look alike. Backslashes and quotes are escaped as the format wants it. */
static size_t escape(char *to, const char *text)
{
    static const char digits[] = "0123456789abcdef";
    char *begin = to;

    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (c < 0x20 || c >= 0x7f || c == '\\') {
            to = stpcpy(to, "\\\\x");
            *to++ = digits[c >> 4];
            *to++ = digits[c & 15];
            continue;
        }
        if (c == '"')
            *to++ = '\\';
        *to++ = *text;
    }
    *to = '\0';
    return (size_t)(to - begin);
}

static void put_label(struct text_buffer *to, const char *before, const char *name, const char *value)
{
    char escaped[LABEL_MAX];

    text_buffer_add(to, before);
    text_buffer_add(to, name);
    text_buffer_add(to, "=\"");
    text_buffer_add_n(to, escaped, escape(escaped, value));
    text_buffer_add(to, "\"");
}

static const char *label(char buf[static 64], const char *name, const char *value)
{
    snprintf(buf, 64, "{%s=\"%s\"}", name, value);
    return buf;
}

/* ---- What the daemon is ---- */

static void put_infos(struct writer *writer, const struct state *state)
{
    static const struct family build = {"build", NULL, INFO, "The daemon's version."};
    static const struct family gpu = {"gpu", NULL, INFO, "The GPU whose memory the daemon lends."};
    _cleanup_(text_buffer_deinit) struct text_buffer labels = {0};
    char index[16];

    begin(writer, &build);
    put_label(&labels, "{", "version", state->daemon_version);
    text_buffer_add(&labels, "}");
    put_sample(writer, &build, labels.data ?: "", 1);
    labels.length = 0;

    begin(writer, &gpu);
    snprintf(index, sizeof(index), "%u", state->gpu_index);
    put_label(&labels, "{", "gpu_index", index);
    put_label(&labels, ",", "gpu_uuid", state->gpu_uuid);
    put_label(&labels, ",", "gpu_name", state->gpu_name);
    put_label(&labels, ",", "emulated", state->emulated ? "true" : "false");
    text_buffer_add(&labels, "}");
    put_sample(writer, &gpu, labels.data ?: "", 1);
    writer->text.failed |= labels.failed;
}

static const struct row device_rows[] = {
    {{"gpu_memory_size", "bytes", GAUGE, "The GPU's memory."}, FIELD(struct state, totals.total_bytes)},
    {{"gpu_memory_free", "bytes", GAUGE, "Of that, free when the daemon last looked."},
     FIELD(struct state, totals.free_bytes)},
    {{"gpu_memory_foreign", "bytes", GAUGE, "Of that, used by others than this daemon."},
     FIELD(struct state, totals.foreign_bytes)},
    {{"budget", "bytes", GAUGE, "What the daemon may have from the driver."},
     FIELD(struct state, totals.budget_bytes)},
    {{"headroom", "bytes", GAUGE, "What the daemon keeps free."}, FIELD(struct state, totals.headroom_bytes)},
    {{"reserved", "bytes", GAUGE, "Of the budget, promised to what instances ask for next."},
     FIELD(struct state, totals.reserved_bytes)},
    {{"expected", "bytes", GAUGE, "What reservations count on engines to take from the driver."},
     FIELD(struct state, totals.expected_bytes)},
    {{"held", "bytes", GAUGE, "Everything that the daemon has from the driver."},
     FIELD(struct state, totals.held_bytes)},
    {{"pool_warm", "bytes", GAUGE, "Of the pool, what can be granted at once."},
     FIELD(struct state, totals.warm_bytes)},
};

static void put_states(struct writer *writer, const struct state *state)
{
    static const struct family family = {"memory", "bytes", GAUGE,
                                         "What the daemon has from the driver, by what has become of it."};
    static const struct {
        const char *name;
        struct field field;
    } states[] = {
        {"creating", FIELD(struct state, totals.creating_bytes)},
        {"pool", FIELD(struct state, totals.pool_bytes)},
        {"leased", FIELD(struct state, totals.leased_bytes)},
        {"granted", FIELD(struct state, totals.granted_bytes)},
        {"limbo", FIELD(struct state, totals.limbo_bytes)},
        {"destroying", FIELD(struct state, totals.destroying_bytes)},
    };
    char buf[64];

    begin(writer, &family);
    for (size_t i = 0; i < ARRAY_SIZE(states); i++)
        put_sample(writer, &family, label(buf, "state", states[i].name), number(state, states[i].field));
}

/* ---- Instances ---- */

static const struct row instance_gauges[] = {
    {{"instance_limit", "bytes", GAUGE, "The instance's limit in force."},
     FIELD(struct state_instance, limit_bytes)},
    {{"instance_used", "bytes", GAUGE, "Everything that is charged to the instance."},
     FIELD(struct state_instance, used_bytes)},
    {{"instance_granted", "bytes", GAUGE, "Of that, handed over to its processes."},
     FIELD(struct state_instance, granted_bytes)},
    {{"instance_leased", "bytes", GAUGE, "Of that, set aside for its regions and not handed over."},
     FIELD(struct state_instance, leased_bytes)},
    {{"instance_pending", "bytes", GAUGE, "Of that, promised to requests that wait for memory."},
     FIELD(struct state_instance, pending_bytes)},
    {{"instance_reserved", "bytes", GAUGE, "Of that, promised to what it asks for next."},
     FIELD(struct state_instance, reserved_bytes)},
    {{"instance_limbo", "bytes", GAUGE, "Of that, held by lost processes and not yet proven free."},
     FIELD(struct state_instance, limbo_bytes)},
    {{"instance_cached", "bytes", GAUGE, "Of what was granted, free pages that its processes keep."},
     FIELD(struct state_instance, cached_bytes)},
    {{"instance_pinned", "bytes", GAUGE, "Of what was granted, what its processes cannot return."},
     FIELD(struct state_instance, pinned_bytes)},
    {{"instance_wanted", "bytes", GAUGE, "What it has asked for and neither limit nor budget holds."},
     FIELD(struct state_instance, wanted_bytes)},
    {{"instance_processes", NULL, GAUGE,
      "Its processes, those included that are gone and still hold memory."},
     FIELD(struct state_instance, n_peers)},
    {{"instance_over_limit", NULL, GAUGE, "Whether it uses more than its limit."},
     FIELD(struct state_instance, over_limit)},
    {{"instance_missed_notice", NULL, GAUGE, "Whether it was asked to meet its limit and has not in time."},
     FIELD(struct state_instance, missed_notice)},
    {{"instance_frozen", NULL, GAUGE, "Whether an administrator has frozen it."},
     FIELD(struct state_instance, frozen)},
};

static const struct row instance_counters[] = {
    {{"instance_lent", "bytes", COUNTER, "Handed over to its processes since the instance was made."},
     FIELD(struct state_instance, total_granted_bytes)},
    {{"instance_returned", "bytes", COUNTER, "Given back by its processes since the instance was made."},
     FIELD(struct state_instance, total_returned_bytes)},
    {{"instance_refusals", NULL, COUNTER, "Requests that were refused since the instance was made."},
     FIELD(struct state_instance, n_refused)},
};

struct instances {
    const struct state_instance **shown;
    size_t n_shown, n_all;
    struct text_buffer labels; /* of the shown ones, one after the other */
};

static int by_use(const void *a, const void *b)
{
    const struct state_instance *x = *(const struct state_instance *const *)a,
                                *y = *(const struct state_instance *const *)b;

    if (x->used_bytes != y->used_bytes)
        return x->used_bytes < y->used_bytes ? 1 : -1;
    return x->serial < y->serial ? -1 : 1;
}

static void instances_deinit(struct instances *instances)
{
    free(instances->shown);
    text_buffer_deinit(&instances->labels);
}

static int choose(struct instances *instances, const struct state *state)
{
    instances->shown = calloc(state->n_instances + 1, sizeof(*instances->shown));
    if (!instances->shown)
        return -ENOMEM;
    for (size_t i = 0; i < state->n_instances; i++)
        instances->shown[i] = &state->instances[i];
    instances->n_all = state->n_instances;
    instances->n_shown = u64_min(state->n_instances, METRICS_INSTANCES_MAX);
    if (instances->n_all > instances->n_shown)
        qsort(instances->shown, instances->n_all, sizeof(*instances->shown), by_use);
    for (size_t i = 0; i < instances->n_shown; i++) {
        put_label(&instances->labels, "{", "domain", instances->shown[i]->domain);
        put_label(&instances->labels, ",", "ipc", instances->shown[i]->name);
        text_buffer_add_n(&instances->labels, "}", 2);
    }
    return instances->labels.failed ? -ENOMEM : 0;
}

static void put_instance_row(struct writer *writer, const struct row *row, const struct instances *instances)
{
    const char *labels = instances->labels.data;
    uint64_t others = 0;

    begin(writer, &row->family);
    for (size_t i = 0; i < instances->n_shown; i++, labels += strlen(labels) + 1)
        put_sample(writer, &row->family, labels, number(instances->shown[i], row->field));
    for (size_t i = instances->n_shown; i < instances->n_all; i++)
        others += number(instances->shown[i], row->field);
    if (instances->n_all > instances->n_shown && row->family.kind == GAUGE)
        put_sample(writer, &row->family, "{domain=\"\",ipc=\"" OTHER "\"}", others);
}

static int put_instances(struct writer *writer, const struct state *state)
{
    _cleanup_(instances_deinit) struct instances instances = {0};
    int r = choose(&instances, state);

    if (r < 0)
        return r;
    for (size_t i = 0; i < ARRAY_SIZE(instance_gauges); i++)
        put_instance_row(writer, &instance_gauges[i], &instances);
    for (size_t i = 0; i < ARRAY_SIZE(instance_counters); i++)
        put_instance_row(writer, &instance_counters[i], &instances);
    return 0;
}

/* ---- What has happened ---- */

static const struct row count_rows[] = {
    {{"instances", NULL, GAUGE, "Instances, those included that only have a limit."},
     FIELD(struct state, totals.n_instances)},
    {{"processes", NULL, GAUGE, "Processes of all instances."}, FIELD(struct state, totals.n_peers)},
    {{"draining", NULL, GAUGE, "Whether the daemon is stopping."}, FIELD(struct state, draining)},
    {{"driver_silent", NULL, GAUGE, "Whether the driver doesn't say how much memory is free."},
     FIELD(struct state, look_failed)},
    {{"driver_busy", "seconds", GAUGE, "How long the driver call that is being made has taken so far."},
     FIELD(struct state, driver.busy_ns)},
    {{"descriptors_in_flight", NULL, GAUGE, "Descriptors that were sent to engines and not received yet."},
     FIELD(struct state, n_in_flight)},
    {{"descriptors_in_flight_bound", NULL, GAUGE, "How many of those there may be."},
     FIELD(struct state, in_flight_max)},
    {{"grants", NULL, COUNTER, "Requests for memory that were met."}, FIELD(struct state, counters.n_grants)},
    {{"granted_extents", NULL, COUNTER, "Extents that were handed over."},
     FIELD(struct state, counters.n_granted_extents)},
    {{"granted", "bytes", COUNTER, "Memory that was handed over."},
     FIELD(struct state, counters.granted_bytes)},
    {{"leases", NULL, COUNTER, "Requests to set memory aside that were met."},
     FIELD(struct state, counters.n_leases)},
    {{"leased", "bytes", COUNTER, "Memory that was set aside."}, FIELD(struct state, counters.leased_bytes)},
    {{"reservations", NULL, COUNTER, "Reservations that were made."},
     FIELD(struct state, counters.n_reservations)},
    {{"returned_extents", NULL, COUNTER, "Extents that were given back."},
     FIELD(struct state, counters.n_returned_extents)},
    {{"returned", "bytes", COUNTER, "Memory that was given back."},
     FIELD(struct state, counters.returned_bytes)},
    {{"protocol_violations", NULL, COUNTER, "Processes that were disconnected for what they sent."},
     FIELD(struct state, server.n_violations)},
    {{"processes_joined", NULL, COUNTER, "Processes that joined an instance."},
     FIELD(struct state, server.n_joined)},
    {{"processes_left", NULL, COUNTER, "Processes that went and held nothing."},
     FIELD(struct state, server.n_left)},
    {{"processes_lost", NULL, COUNTER, "Processes that went and held memory."},
     FIELD(struct state, server.n_lost)},
    {{"reloads", NULL, COUNTER, "Times that the configuration was read again."},
     FIELD(struct state, server.n_reloads)},
    {{"failed_reloads", NULL, COUNTER, "Of those, how many found an error in it."},
     FIELD(struct state, server.n_reloads_failed)},
    {{"events", NULL, COUNTER, "Events that were noted."}, FIELD(struct state, n_events)},
    {{"suppressed_events", NULL, COUNTER, "Events that were not noted, being too many of a trust domain."},
     FIELD(struct state, server.n_suppressed)},
};

/* A family whose series differ in one label, with a number for each. */
static void put_by(struct writer *writer, const struct family *family, const char *name,
                   const char *const *values, const uint64_t *numbers, size_t n)
{
    char buf[64];

    begin(writer, family);
    for (size_t i = 0; i < n; i++)
        if (values[i])
            put_number(writer, family, label(buf, name, values[i]), numbers[i]);
}

static const char *const refusal_reasons[_BROKER_E_N] = {
    [BROKER_E_LIMIT] = "limit",
    [BROKER_E_BUDGET] = "budget",
    [BROKER_E_DRIVER] = "driver",
    [BROKER_E_FROZEN] = "frozen",
    [BROKER_E_INVALID] = "invalid",
    [BROKER_E_NOT_LEASED] = "not_leased",
    [BROKER_E_DESCRIPTORS] = "descriptors",
};
static const char *const notice_causes[] = {"limit", "need"};
static const char *const socket_kinds[] = {"engine", "control"};
static const char *const driver_calls[] = {
    [BACKING_EXPORT] = "export",
    [BACKING_CREATE] = "create",
    [BACKING_LOOK] = "look",
    [BACKING_RELEASE] = "release",
};

static void put_counters_by(struct writer *writer, const struct state *state)
{
    static const struct family refusals = {"refusals", NULL, COUNTER, "Requests that were refused."};
    static const struct family notices = {"notices", NULL, COUNTER,
                                          "Times that a process was asked to give memory back."};
    static const struct family missed = {"missed_notices", NULL, COUNTER,
                                         "Of those, how many it let the time pass."};
    static const struct family connections = {"connections", NULL, COUNTER, "Connections that were let in."};
    static const struct family rejected = {"rejected_connections", NULL, COUNTER,
                                           "Connections that were turned away."};
    static const struct family failures = {"driver_failures", NULL, COUNTER,
                                           "Calls that failed for another reason than a full GPU."};

    put_by(writer, &refusals, "reason", refusal_reasons, state->counters.n_refused, _BROKER_E_N);
    put_by(writer, &notices, "cause", notice_causes, state->counters.n_notices, ARRAY_SIZE(notice_causes));
    put_by(writer, &missed, "cause", notice_causes, state->counters.n_missed, ARRAY_SIZE(notice_causes));
    put_by(writer, &connections, "socket", socket_kinds, state->server.n_connections,
           ARRAY_SIZE(socket_kinds));
    put_by(writer, &rejected, "socket", socket_kinds, state->server.n_rejected, ARRAY_SIZE(socket_kinds));
    put_by(writer, &failures, "call", driver_calls, state->driver.n_failed, _BACKING_TYPES);
}

/* ---- How long things took ---- */

/* `label`: name="value", without braces, or "". */
static void put_histogram(struct writer *writer, const struct family *family,
                          const struct histogram *histogram, const char *label)
{
    const char *comma = *label ? "," : "";
    char series[96], braces[64];
    uint64_t n = 0;

    for (unsigned i = 0; i <= HISTOGRAM_BOUNDS; i++) {
        n += histogram->n[i];
        if (i < HISTOGRAM_BOUNDS)
            snprintf(series, sizeof(series), "{%s%sle=\"%.10g\"}", label, comma,
                     (double)histogram_bound_ns(i) / 1e9);
        else
            snprintf(series, sizeof(series), "{%s%sle=\"+Inf\"}", label, comma);
        put_series(writer, family, "_bucket", series);
        text_buffer_add_u64(&writer->text, n);
        text_buffer_add(&writer->text, "\n");
    }
    snprintf(braces, sizeof(braces), *label ? "{%s}" : "%s", label);
    put_series(writer, family, "_count", braces);
    text_buffer_add_u64(&writer->text, n);
    text_buffer_add(&writer->text, "\n");
    put_series(writer, family, "_sum", braces);
    put_seconds(writer, histogram->sum_ns);
    text_buffer_add(&writer->text, "\n");
    put_created(writer, family, braces);
}

static void put_histograms(struct writer *writer, const struct state *state)
{
    static const struct family waits = {"grant_wait", "seconds", HISTOGRAM,
                                        "How long requests waited that were met."};
    static const struct family calls = {"driver_call", "seconds", HISTOGRAM, "How long driver calls took."};
    char buf[64];

    begin(writer, &waits);
    put_histogram(writer, &waits, &state->counters.waits, "");
    begin(writer, &calls);
    for (unsigned i = 0; i < _BACKING_TYPES; i++) {
        snprintf(buf, sizeof(buf), "call=\"%s\"", driver_calls[i]);
        put_histogram(writer, &calls, &state->driver.times[i], buf);
    }
}

/* ---- The process ---- */

static const struct row http_rows[] = {
    {{"http_connections", NULL, GAUGE, "Open connections to this page."},
     FIELD(struct http_stats, n_connections)},
    {{"http_requests", NULL, COUNTER, "Requests to this page that were answered."},
     FIELD(struct http_stats, n_requests)},
    {{"http_states", NULL, COUNTER, "Copies of its state that the broker was asked for, for this page."},
     FIELD(struct http_stats, n_states)},
};

/* These have their names from Prometheus' own libraries. */
static void put_process_value(struct writer *writer, const char *name, const char *type, const char *help,
                              const char *format, double value)
{
    bool is_counter = strcmp(type, "counter") == 0;
    const char *suffix = is_counter ? "_total" : "";
    const char *family_suffix = writer->openmetrics ? "" : suffix;

    text_buffer_printf(&writer->text, "# HELP process_%s%s %s\n", name, family_suffix, help);
    text_buffer_printf(&writer->text, "# TYPE process_%s%s %s\n", name, family_suffix, type);
    text_buffer_printf(&writer->text, "process_%s%s ", name, suffix);
    text_buffer_printf(&writer->text, strcmp(format, "s") == 0 ? "%.2f\n" : "%.0f\n", value);
}

static void put_process(struct writer *writer, const struct process_stats *process)
{
    put_process_value(writer, "cpu_seconds", "counter", "Processor time used.", "s", process->cpu_seconds);
    put_process_value(writer, "start_time_seconds", "gauge", "When the process started, since 1970.", "s",
                      process->start_seconds);
    put_process_value(writer, "resident_memory_bytes", "gauge", "Memory in RAM.", "",
                      (double)process->resident_bytes);
    put_process_value(writer, "virtual_memory_bytes", "gauge", "Address space.", "",
                      (double)process->virtual_bytes);
    put_process_value(writer, "open_fds", "gauge", "Open file descriptors.", "", (double)process->open_fds);
    put_process_value(writer, "max_fds", "gauge", "How many of those there may be.", "",
                      (double)process->max_fds);
}

/* ---- The whole ---- */

int metrics_text(const struct metrics *metrics, bool openmetrics, char **ret, size_t *ret_length)
{
    const struct state *state = metrics->state;
    struct writer writer = {.openmetrics = openmetrics};
    int r;

    writer.created = (double)u64_sub_floor(state->realtime_ms, state->uptime_ms) / 1000;
    put_infos(&writer, state);
    put_rows(&writer, device_rows, ARRAY_SIZE(device_rows), state);
    put_states(&writer, state);
    r = put_instances(&writer, state);
    put_rows(&writer, count_rows, ARRAY_SIZE(count_rows), state);
    put_counters_by(&writer, state);
    put_histograms(&writer, state);
    put_rows(&writer, http_rows, ARRAY_SIZE(http_rows), &metrics->http);
    put_process(&writer, &metrics->process);
    if (openmetrics)
        text_buffer_add(&writer.text, "# EOF\n");
    if (r < 0 || writer.text.failed) {
        text_buffer_deinit(&writer.text);
        return -ENOMEM;
    }
    *ret = writer.text.data;
    *ret_length = writer.text.length;
    return 0;
}
