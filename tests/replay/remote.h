/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The workers (worker.h) of an engine in processes of their own, and how their scheduler speaks to them: what
 * an engine's own channel between its processes is for. Memory is none of its business.
 */

#include "worker.h"

struct remote;

/* Forks, so before this process has a driver. Returns when the workers are ready. A negative errno with a
 * sentence. */
int remote_new(const struct worker_options *options, struct remote **ret_remote,
               char error[static WORKER_ERROR_MAX]);
/* Ends the processes and waits for them. */
struct remote *remote_free(struct remote *remote);

DEFINE_CLEANUP(struct remote *, remote_free);

/* As those of worker.h, by all workers at once. The layout is that of each, the counts are of all. */
int remote_stamp(struct remote *remote, const uint32_t *blocks, size_t n);
int remote_check(struct remote *remote, const uint32_t *blocks, size_t n);
const char *remote_error(const struct remote *remote);
const struct layout *remote_layout(const struct remote *remote);
struct worker_counts remote_counts(const struct remote *remote);
