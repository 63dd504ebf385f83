/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What editor_read() does without an editor. */

#include "editor.h"

int editor_plain_read(const char *prompt, char **ret_line);
