/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What a client of the status page says in its headers, as far as it matters. Pure. */

#include <stdbool.h>

/* Whether a Host header means this machine: localhost, 127.x.y.z or [::1], with any port. A page of a foreign
 * site, whose name somebody has made to mean 127.0.0.1, says that name. */
bool http_host_is_local(const char *host);

/* Whether an Accept header would rather have OpenMetrics 1.0 than plain text. */
bool http_accepts_openmetrics(const char *accept);
