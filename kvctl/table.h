/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The table of `kvctl list`. Pure: what it prints depends on nothing but its arguments.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "wire/codec.h"

struct table_style {
    bool colour;
    unsigned width; /* columns of the terminal; 0: no bound */
};

/* A trust domain is shown with the names that several domains have. */
void table_print(FILE *out, const struct table_style *style, Kvcached__InstanceInfo *const *instances,
                 size_t n);
