/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Notify: what the service manager hears from us, and what it hands us at start. Without one, all of this
 * does nothing.
 */

#include <stdbool.h>
#include <stdint.h>

void notify_ready(const char *status);
void notify_reloading(void);
void notify_stopping(void);
void notify_alive(void);

/* How often notify_alive() is wanted, in milliseconds; 0: never. */
uint64_t notify_watchdog_ms(void);

/* Descriptors that were passed, by name; -1 for a name that was not passed. To be claimed once per name; one
 * that nobody claimed is told by notify_unclaimed_socket() (NULL: none). */
bool notify_was_passed(const char *name);
int notify_claim_socket(const char *name);
const char *notify_unclaimed_socket(void);
