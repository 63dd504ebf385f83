/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What `limit` and `limit-percent` say once the daemon has answered.
 */

#include "command.h"

/* Prints the reply and deinitialises it. `asked_bytes`: what the limit was to be. Exit status. */
int limit_report(const struct invocation *invocation, const struct control *control, uint64_t asked_bytes,
                 struct message *limit_reply);
