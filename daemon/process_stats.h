/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What the system says of this process. What it doesn't say is zero. */

#include "metrics_text.h"

void process_stats(struct process_stats *ret);
