/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Words and numbers as kvctl shows them. The one gate between text that others chose and the terminal: escape
 * sequences in an engine's name must not move the cursor of an administrator.
 */

#include "text.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/arith.h"

const char *text_clean(char buf[static TEXT_MAX], const char *text)
{
    static const char digits[] = "0123456789abcdef";
    size_t n = 0;

    for (const char *p = text; *p && n + 4 < TEXT_MAX; p++) {
        unsigned char c = (unsigned char)*p;

        if (c >= 0x20 && c < 0x7f) {
            buf[n++] = *p;
            continue;
        }
        buf[n++] = '\\';
        buf[n++] = 'x';
        buf[n++] = digits[c >> 4];
        buf[n++] = digits[c & 15];
    }
    buf[n] = '\0';
    return buf;
}

const char *text_instance(char buf[static TEXT_MAX], const Kvcached__InstanceInfo *instance, bool with_domain)
{
    char raw[TEXT_MAX];

    snprintf(raw, sizeof(raw), "%s%s%s", with_domain ? instance->domain : "", with_domain ? "/" : "",
             instance->instance);
    return text_clean(buf, raw);
}

const char *text_percent(char buf[static TEXT_PERCENT_MAX], uint64_t used_bytes, uint64_t limit_bytes)
{
    if (limit_bytes == 0)
        snprintf(buf, TEXT_PERCENT_MAX, "%s", used_bytes ? "-" : "0.0 %");
    else
        snprintf(buf, TEXT_PERCENT_MAX, "%.1f %%", 100.0 * (double)used_bytes / (double)limit_bytes);
    return buf;
}

const char *text_peer(char buf[static TEXT_MAX], const Kvcached__PeerInfo *peer)
{
    char raw[TEXT_MAX];

    if (peer->program[0])
        snprintf(raw, sizeof(raw), "pid %d (%s)", peer->pid, peer->program);
    else
        snprintf(raw, sizeof(raw), "pid %d", peer->pid);
    return text_clean(buf, raw);
}

const char *text_role(Kvcached__Role role)
{
    static const char *const names[] = {
        [KVCACHED__ROLE__ROLE_ENGINE] = "engine",
        [KVCACHED__ROLE__ROLE_WORKER] = "worker",
        [KVCACHED__ROLE__ROLE_SCHEDULER] = "scheduler",
        [KVCACHED__ROLE__ROLE_CONTROLLER] = "controller",
    };

    return (unsigned)role < ARRAY_SIZE(names) && names[role] ? names[role] : "unknown";
}

const char *text_limit_source(Kvcached__LimitSource source)
{
    static const char *const names[] = {
        [KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ADMIN] = "admin",
        [KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_CONFIG] = "config",
        [KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_ENGINE] = "engine",
        [KVCACHED__LIMIT_SOURCE__LIMIT_SOURCE_BUDGET] = "budget",
    };

    return (unsigned)source < ARRAY_SIZE(names) && names[source] ? names[source] : "unknown";
}

const char *text_age(char buf[static TEXT_AGE_MAX], uint64_t ms)
{
    uint64_t s = ms / 1000;

    if (s < 1)
        snprintf(buf, TEXT_AGE_MAX, "%" PRIu64 " ms", ms);
    else if (s < 120)
        snprintf(buf, TEXT_AGE_MAX, "%" PRIu64 " s", s);
    else if (s < 7200)
        snprintf(buf, TEXT_AGE_MAX, "%" PRIu64 " min", s / 60);
    else if (s < 172800)
        snprintf(buf, TEXT_AGE_MAX, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
    else
        snprintf(buf, TEXT_AGE_MAX, "%" PRIu64 " d %" PRIu64 " h", s / 86400, s / 3600 % 24);
    return buf;
}

const char *text_event_kind(Kvcached__EventKind kind)
{
    static const char *const names[] = {
        "unknown",     "started",       "stopping",   "reloaded",      "reload-failed",
        "joined",      "left",          "lost",       "freed",         "limit",
        "deleted",     "frozen",        "over-limit", "within-limit",  "missed-notice",
        "refused",     "scribbled",     "violation",  "driver-failed", "driver-recovered",
        "over-budget", "within-budget", "suppressed",
    };

    return (size_t)kind < ARRAY_SIZE(names) ? names[kind] : names[0];
}

const char *text_holding(Kvcached__Holding holding)
{
    static const char *const names[] = {
        "unknown", "used",  "cached",     "pinned", "leased",
        "pending", "limbo", "destroying", "wanted", "reserved",
    };

    return (size_t)holding < ARRAY_SIZE(names) ? names[holding] : names[0];
}
