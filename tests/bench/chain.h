/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The bare chain: what it costs to reach several workers through a process each, and to hear from them, with
 * nothing done on the way. Per rank a relay and a worker, each with one libuv loop; a request goes to the
 * relay, from there with one descriptor to the worker, and an answer comes back the same way.
 */

struct chain;

/* Starts 2 × `ranks` processes; relays run on one processor, workers on the other. */
struct chain *chain_new(unsigned ranks, int relay_processor, int worker_processor);
void chain_free(struct chain *chain);

/* One request to all ranks at once, and all answers. */
void chain_go(struct chain *chain);
