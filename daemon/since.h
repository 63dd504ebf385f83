/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Since: since when something has been the case without a break. Pure.
 */

#include <stdbool.h>
#include <stdint.h>

struct since {
    bool holds;
    uint64_t ns; /* when it began */
};

/* Whether that is a change. */
static inline bool since_note(struct since *since, bool holds, uint64_t now_ns)
{
    if (since->holds == holds)
        return false;
    *since = (struct since){.holds = holds, .ns = now_ns};
    return true;
}

static inline uint64_t since_ms(const struct since *since, uint64_t now_ns)
{
    return since->holds && now_ns > since->ns ? (now_ns - since->ns) / 1000000 : 0;
}
