/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What kvtop does to the terminal, and what comes from it. One at a time in a process.
 */

#include <stdbool.h>

#include "top_layout.h"

enum top_key {
    TOP_KEY_NONE = 0, /* nothing was typed; printable keys are themselves */
    TOP_KEY_UP = 256,
    TOP_KEY_DOWN,
    TOP_KEY_PAGE_UP,
    TOP_KEY_PAGE_DOWN,
    TOP_KEY_ENTER,
    TOP_KEY_ESCAPE,
    TOP_KEY_ERASE,
    TOP_KEY_RESIZED,
    TOP_KEY_CLICK, /* top_draw_clicked() says where */
    TOP_KEY_WHEEL_UP,
    TOP_KEY_WHEEL_DOWN,
    TOP_KEY_OTHER, /* that means nothing here */
    TOP_KEY_GONE,  /* the terminal */
};

/* Whether kvctl was built with it. */
bool top_draw_exists(void);

/* False: the terminal is of a kind that isn't known. NO_COLOR is heeded. */
bool top_draw_begin(void);
void top_draw_end(void);

void top_draw_size(unsigned *ret_width, unsigned *ret_height);
void top_draw(const struct top_screen *screen);

/* A key that has been typed, or what else has happened. Doesn't wait, but for what may follow an Escape. */
int top_draw_key(void);

/* Where the last click was. */
void top_draw_clicked(unsigned *ret_column, unsigned *ret_row);
