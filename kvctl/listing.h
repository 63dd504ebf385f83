/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Listing: how the table of instances is shown on what the output is.
 */

#include <stdio.h>

#include "table.h"

/* Colours and width for a terminal, none of both for anything else. NO_COLOR is heeded. */
struct table_style listing_style(FILE *out);
