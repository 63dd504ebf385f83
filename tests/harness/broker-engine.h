/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Engines on the broker's bench, and the notices that they get.
 */

#include "broker-bench.h"

/* A peer with one region of small pages. */
struct engine {
    struct broker_peer *peer;
    struct broker_lease *lease;
    struct lease_line line;
    uint64_t ids[64];
};

/* Comes with nothing, and hears no notices. */
void engine_join(struct bench *b, struct engine *engine, const char *domain, const char *name);

/* Comes, listens, and takes memory, some of which it only claims. */
void engine_start(struct bench *b, struct engine *engine, const char *name, uint32_t held, uint32_t claimed);
void engine_return(struct bench *b, struct engine *engine, unsigned first, unsigned n);

/* What the index-th notice says, and to whom. */
void check_notice(struct bench *b, unsigned index, const struct engine *engine, uint64_t bytes,
                  bool courtesy);
