/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `kvctl info` for people: one fact a line, its name first.
 */

#include "describe.h"

#include <inttypes.h>

#include "base/arith.h"
#include "base/parse.h"
#include "text.h"

#define LABEL_WIDTH 14

static void label(FILE *out, const char *name)
{
    fprintf(out, "%-*s", LABEL_WIDTH, name);
}

static void print_text(FILE *out, const char *name, const char *text)
{
    char clean[TEXT_MAX];

    label(out, name);
    fprintf(out, "%s\n", text_clean(clean, text));
}

static void print_size(FILE *out, const char *name, uint64_t bytes, const char *remark)
{
    char size[FORMAT_SIZE_MAX];

    label(out, name);
    fprintf(out, "%12s  (%" PRIu64 " bytes)%s\n", format_size(size, bytes), bytes, remark);
}

static const char *explain_source(Kvcached__LimitSource source)
{
    switch (source) {
    case KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ADMIN:
        return "set with kvctl";
    case KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_CONFIG:
        return "from the daemon's configuration";
    case KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ENGINE:
        return "asked for by the engine (KVCACHED_GPU_UTILIZATION)";
    case KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_BUDGET:
        return "none of its own: the daemon's budget";
    default:
        return "from a source that this kvctl doesn't know";
    }
}

static void print_peers(FILE *out, const Kvcached__InstanceInfo *instance)
{
    char peer[TEXT_MAX];

    if (instance->n_peers == 0)
        print_text(out, "Processes", "none");
    for (size_t i = 0; i < instance->n_peers; i++) {
        label(out, i == 0 ? "Processes" : "");
        fprintf(out, "%s, %s%s\n", text_peer(peer, instance->peers[i]), text_role(instance->peers[i]->role),
                instance->peers[i]->connected ? "" : ", has disconnected and is still running");
    }
}

void describe_instance(FILE *out, const Kvcached__InstanceInfo *instance)
{
    char percent[TEXT_PERCENT_MAX], remark[TEXT_PERCENT_MAX + 32], size[FORMAT_SIZE_MAX];

    print_text(out, "IPC", instance->instance);
    print_text(out, "Trust domain", instance->domain);
    print_size(out, "Limit", instance->limit_bytes, "");
    print_text(out, "  source", explain_source(instance->limit_source));
    snprintf(remark, sizeof(remark), ", %s of the limit",
             text_percent(percent, instance->used_bytes, instance->limit_bytes));
    print_size(out, "Used", instance->used_bytes, instance->limit_bytes ? remark : "");
    print_size(out, "  granted", instance->granted_bytes, "");
    print_size(out, "  leased", instance->leased_bytes, ", set aside for it, not handed over");
    print_size(out, "  pending", instance->pending_bytes, ", promised to requests that wait");
    if (instance->reserved_bytes)
        print_size(out, "  reserved", instance->reserved_bytes, ", promised to what it asks for next");
    print_size(out, "  limbo", instance->limbo_bytes, ", of lost processes, not yet proven free");
    if (instance->over_limit) {
        label(out, "Over limit");
        fprintf(out, "by %s: nothing is granted until it returns memory\n",
                format_size(size, u64_sub_floor(instance->used_bytes, instance->limit_bytes)));
    }
    if (instance->missed_notice)
        print_text(out, "Missed notice", "it was asked to return memory and has not: nothing new is granted");
    if (instance->frozen)
        print_text(out, "Frozen", "by an administrator: nothing is granted, nobody may join");
    print_peers(out, instance);
}

static void print_gpu(FILE *out, const Kvcached__InfoReply *info)
{
    char name[TEXT_MAX], uuid[TEXT_MAX];

    label(out, "GPU");
    fprintf(out, "%" PRIu32 ", %s, %s\n", info->gpu_index, text_clean(name, info->gpu_name),
            text_clean(uuid, info->gpu_uuid));
    if (info->emulated_folder[0])
        print_text(out, "Emulated in", info->emulated_folder);
}

static void print_versions(FILE *out, const Kvcached__InfoReply *info)
{
    char version[TEXT_MAX];

    label(out, "Version");
    fprintf(out, "daemon %s, protocol %" PRIu32 "; kvctl " KVCACHED_VERSION "\n",
            text_clean(version, info->daemon_version), info->protocol_version);
}

void describe_daemon(FILE *out, const Kvcached__InfoReply *info, const char *socket_path)
{
    print_gpu(out, info);
    print_versions(out, info);
    print_text(out, "Socket", socket_path);
    print_size(out, "Total", info->total_bytes, "");
    print_size(out, "Free", info->free_bytes, ", when last looked at");
    print_size(out, "Foreign", info->foreign_bytes, ", used by others than engines here");
    print_size(out, "Budget", info->budget_bytes, ", what the daemon may have");
    print_size(out, "Headroom", info->headroom_bytes, ", kept free");
    if (info->reserved_bytes)
        print_size(out, "Reserved", info->reserved_bytes, ", of the budget, for what instances ask for next");
    if (info->expected_bytes)
        print_size(out, "Expected", info->expected_bytes, ", that engines will take by themselves");
    print_size(out, "Held", info->held_bytes, ", what the daemon has");
    print_size(out, "  granted", info->granted_bytes, ", to engines");
    print_size(out, "  leased", info->leased_bytes, ", set aside for engines, not handed over");
    print_size(out, "  pool", info->pool_bytes, ", ready for engines");
    print_size(out, "    warm", info->warm_bytes, ", at once");
    print_size(out, "  creating", info->creating_bytes, "");
    print_size(out, "  limbo", info->limbo_bytes, ", of lost processes, not yet proven free");
    print_size(out, "  destroying", info->destroying_bytes, ", until the driver shows it free");
    label(out, "Instances");
    fprintf(out, "%" PRIu32 ", with %" PRIu32 " %s\n", info->instances, info->peers,
            info->peers == 1 ? "process" : "processes");
}

/* ---- Why ---- */

static const char *explain_holding(Kvcached__Holding holding)
{
    switch (holding) {
    case KVCACHED__HOLDING__HOLDING_USED:
        return "in use";
    case KVCACHED__HOLDING__HOLDING_CACHED:
        return "free pages that it keeps ready, as it says";
    case KVCACHED__HOLDING__HOLDING_PINNED:
        return "what it says that it cannot return now";
    case KVCACHED__HOLDING__HOLDING_LEASED:
        return "set aside for it, not handed over";
    case KVCACHED__HOLDING__HOLDING_PENDING:
        return "promised to requests that wait for it";
    case KVCACHED__HOLDING__HOLDING_LIMBO:
        return "held by a process that has disconnected and still runs";
    case KVCACHED__HOLDING__HOLDING_DESTROYING:
        return "of ended processes, until the driver shows it free";
    case KVCACHED__HOLDING__HOLDING_RESERVED:
        return "promised to what it asks for next";
    case KVCACHED__HOLDING__HOLDING_WANTED:
        return "asked for, and not charged: waits until others have given back";
    default:
        return "in a state that this kvctl doesn't know";
    }
}

static void print_part(FILE *out, const Kvcached__WhyPart *part)
{
    char size[FORMAT_SIZE_MAX], age[TEXT_AGE_MAX], peer[TEXT_MAX];

    fprintf(out, "  %-10s%12s  %s", text_holding(part->holding), format_size(size, part->bytes),
            explain_holding(part->holding));
    if (part->peer)
        fprintf(out, "; %s", text_peer(peer, part->peer));
    fprintf(out, "; for %s\n", text_age(age, part->for_ms));
}

static void print_limits(FILE *out, const Kvcached__WhyReply *reply)
{
    char size[FORMAT_SIZE_MAX];

    for (size_t i = 0; i < reply->n_limits; i++)
        fprintf(out, "  %-10s%12s  %s\n", text_limit_source(reply->limits[i]->source),
                format_size(size, reply->limits[i]->bytes),
                reply->limits[i]->source == KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_BUDGET
                    ? "what the daemon may have"
                    : explain_source(reply->limits[i]->source));
}

static void print_state(FILE *out, const Kvcached__WhyState *state, const char *sentence)
{
    char age[TEXT_AGE_MAX];

    if (state && state->holds)
        fprintf(out, "%s, for %s\n", sentence, text_age(age, state->for_ms));
}

void describe_why(FILE *out, const Kvcached__WhyReply *reply)
{
    const Kvcached__InstanceInfo *instance = reply->instance;
    char name[TEXT_MAX], size[FORMAT_SIZE_MAX], limit[FORMAT_SIZE_MAX];

    fprintf(out, "%s uses %s of %s\n", text_instance(name, instance, true),
            format_size(size, instance->used_bytes), format_size(limit, instance->limit_bytes));
    for (size_t i = 0; i < reply->n_parts; i++)
        print_part(out, reply->parts[i]);
    fputs("Limits, the first of which holds, but never above the budget\n", out);
    print_limits(out, reply);
    print_state(out, reply->over_limit, "It is over its limit, so nothing more is granted to it");
    print_state(out, reply->missed_notice, "It was asked to return memory, and has let the time pass");
    print_state(out, reply->frozen, "It is frozen by an administrator");
    if (reply->pressure_bytes)
        fprintf(out, "It is asked to return %s now\n", format_size(size, reply->pressure_bytes));
}
