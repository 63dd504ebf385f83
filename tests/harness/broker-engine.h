/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Engines that answer notices, on the broker's bench.
 */

#include "broker-bench.h"

/* An engine that listens, with one region of small pages. */
struct engine {
    struct broker_peer *peer;
    struct broker_lease *lease;
    struct lease_line line;
    uint64_t ids[64];
};

void engine_start(struct bench *b, struct engine *engine, const char *name, uint32_t held, uint32_t claimed);
void engine_end(struct bench *b, struct engine *engine);
void engine_return(struct bench *b, struct engine *engine, unsigned first, unsigned n);

/* What the index-th notice says, and to whom. */
void check_notice(struct bench *b, unsigned index, const struct engine *engine, uint64_t bytes,
                  bool courtesy);
