/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Text for a terminal. Names of instances and programs come from whoever runs an engine, so nothing of them
 * is shown unless it is printable ASCII. Pure.
 */

#include <stdbool.h>
#include <stdint.h>

#include "wire/codec.h"

#define TEXT_MAX 1024 /* terminating NUL included */

/* A copy in which every byte that is not printable ASCII reads "\x1b". Cut where the buffer ends. */
const char *text_clean(char buf[static TEXT_MAX], const char *text);

/* The instance's name, with its trust domain in front where asked for. Clean. */
const char *text_instance(char buf[static TEXT_MAX], const Kvcached__InstanceInfo *instance,
                          bool with_domain);

/* "12.5 %": of a limit; "-" when something is used of a limit of nothing. */
#define TEXT_PERCENT_MAX 32
const char *text_percent(char buf[static TEXT_PERCENT_MAX], uint64_t used_bytes, uint64_t limit_bytes);

/* "pid 12 (vllm)", or "pid 12". Clean. */
const char *text_peer(char buf[static TEXT_MAX], const Kvcached__PeerInfo *peer);

/* "engine", "worker", "scheduler", "controller"; "unknown" for what a newer daemon may say. */
const char *text_role(Kvcached__Role role);

/* "3 s", "12 min", "5 h 10 min", "2 d 3 h". */
#define TEXT_AGE_MAX 48
const char *text_age(char buf[static TEXT_AGE_MAX], uint64_t ms);

/* "joined", "over-limit", …; "unknown" for what a newer daemon may say. */
const char *text_event_kind(Kvcached__EventKind kind);

/* "used", "cached", …; likewise. */
const char *text_holding(Kvcached__Holding holding);

/* "admin", "config", "engine", "budget", "unknown". */
const char *text_limit_source(Kvcached__LimitSource source);
