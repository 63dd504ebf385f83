/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Notify: what the service manager hears from us, and what it hands us at start. Without one, all of this
 * does nothing.
 */

#include <stdint.h>

void notify_ready(const char *status);
void notify_reloading(void);
void notify_stopping(void);
void notify_alive(void);

/* How often notify_alive() is wanted, in milliseconds; 0: never. */
uint64_t notify_watchdog_ms(void);

/* Descriptors that were passed, by name; -1 for a name that was not passed. To be asked once per name; a name
 * that nobody asked for is told by notify_unclaimed() (NULL: none). */
int notify_claim_socket(const char *name);
const char *notify_unclaimed_socket(void);
