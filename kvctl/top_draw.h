/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What kvtop does to the terminal, and what comes from it. One at a time in a process.
 */

#include <stdbool.h>

#include "top_layout.h"

enum top_key {
    TOP_KEY_NONE = 0, /* time is up; printable keys are themselves */
    TOP_KEY_UP = 256,
    TOP_KEY_DOWN,
    TOP_KEY_PAGE_UP,
    TOP_KEY_PAGE_DOWN,
    TOP_KEY_ENTER,
    TOP_KEY_ESCAPE,
    TOP_KEY_ERASE,
    TOP_KEY_RESIZED,
    TOP_KEY_GONE, /* the terminal */
};

/* Whether kvctl was built with it. */
bool top_draw_exists(void);

/* False: the terminal is of a kind that isn't known. NO_COLOR is heeded. */
bool top_draw_begin(void);
void top_draw_end(void);

void top_draw_size(unsigned *ret_width, unsigned *ret_height);
void top_draw(const struct top_screen *screen);

/* A key, or what else happens within the time. */
int top_draw_key(int timeout_ms);
