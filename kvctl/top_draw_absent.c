/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Without ncurses there is no kvtop; the command says so.
 */

#include "top_draw.h"

bool top_draw_exists(void)
{
    return false;
}

bool top_draw_begin(void)
{
    return false;
}

void top_draw_end(void) {}

void top_draw_size(unsigned *ret_width, unsigned *ret_height)
{
    *ret_width = *ret_height = 0;
}

void top_draw(const struct top_screen *screen) {}

int top_draw_key(void)
{
    return TOP_KEY_GONE;
}

void top_draw_clicked(unsigned *ret_column, unsigned *ret_row)
{
    *ret_column = *ret_row = 0;
}
