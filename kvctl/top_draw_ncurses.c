/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The terminal by ncurses, which sends it only what has changed. newterm() instead of initscr(): the latter
 * ends the process where the terminal's kind is not known.
 */

#include "top_draw.h"

#include <curses.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define ESCAPE_MS 50 /* for what may follow an Escape: a key can be several bytes */

/* Where ncurses tells five buttons apart; a wheel is two of them. */
#if NCURSES_MOUSE_VERSION > 1
#define BUTTONS (BUTTON1_PRESSED | BUTTON4_PRESSED | BUTTON5_PRESSED)
#define WHEEL_UP BUTTON4_PRESSED
#define WHEEL_DOWN BUTTON5_PRESSED
#else
#define BUTTONS BUTTON1_PRESSED
#define WHEEL_UP 0
#define WHEEL_DOWN 0
#endif

static SCREEN *terminal;
static bool colour;
static MEVENT clicked;

bool top_draw_exists(void)
{
    return true;
}

static void begin_colours(void)
{
    static const short colours[] = {
        [TOP_TITLE] = COLOR_CYAN,
        [TOP_PREALLOC] = COLOR_YELLOW,
        [TOP_USED] = COLOR_GREEN,
        [TOP_WARNING] = COLOR_RED,
    };
    const char *no_color = getenv("NO_COLOR");

    colour = has_colors() && (!no_color || !*no_color) && start_color() == OK;
    if (!colour)
        return;
    use_default_colors();
    for (short i = 0; i < (short)(sizeof(colours) / sizeof(colours[0])); i++)
        if (colours[i])
            init_pair(i, colours[i], -1);
}

bool top_draw_begin(void)
{
    terminal = newterm(NULL, stdout, stdin);
    if (!terminal)
        return false;
    cbreak();
    noecho();
    keypad(stdscr, TRUE);
    nodelay(stdscr, TRUE);
    set_escdelay(ESCAPE_MS);
    mouseinterval(0); /* a click is a press: waiting for more would hold up the keys */
    mousemask(BUTTONS, NULL);
    curs_set(0);
    begin_colours();
    return true;
}

void top_draw_end(void)
{
    if (!terminal)
        return;
    endwin();
    delscreen(terminal);
    terminal = NULL;
}

void top_draw_size(unsigned *ret_width, unsigned *ret_height)
{
    *ret_width = (unsigned)COLS;
    *ret_height = (unsigned)LINES;
}

static attr_t attributes_of(unsigned char style)
{
    attr_t attributes = style == TOP_TITLE ? A_BOLD : style == TOP_DIM || style == TOP_FREE ? A_DIM : 0;

    if (style == TOP_MARKED)
        return A_BOLD | A_REVERSE;
    if (colour && style != TOP_PLAIN && style != TOP_DIM && style != TOP_FREE)
        attributes |= (attr_t)COLOR_PAIR(style);
    else if (style == TOP_WARNING)
        attributes |= A_REVERSE;
    return attributes;
}

void top_draw(const struct top_screen *screen)
{
    erase();
    for (size_t at = 0; at < (size_t)screen->width * screen->height; at++)
        mvaddch((int)(at / screen->width), (int)(at % screen->width),
                (chtype)(unsigned char)screen->text[at] | attributes_of(screen->style[at]));
    refresh();
}

static int mouse_key(void)
{
    MEVENT event;

    if (getmouse(&event) != OK)
        return TOP_KEY_OTHER;
    if (event.bstate & WHEEL_UP)
        return TOP_KEY_WHEEL_UP;
    if (event.bstate & WHEEL_DOWN)
        return TOP_KEY_WHEEL_DOWN;
    if (!(event.bstate & BUTTON1_PRESSED) || event.x < 0 || event.y < 0)
        return TOP_KEY_OTHER;
    clicked = event;
    return TOP_KEY_CLICK;
}

void top_draw_clicked(unsigned *ret_column, unsigned *ret_row)
{
    *ret_column = (unsigned)clicked.x;
    *ret_row = (unsigned)clicked.y;
}

int top_draw_key(void)
{
    int key;

    errno = 0;
    key = getch();
    switch (key) {
    case ERR:
        return feof(stdin) || errno == EIO ? TOP_KEY_GONE : TOP_KEY_NONE;
    case KEY_UP:
        return TOP_KEY_UP;
    case KEY_DOWN:
        return TOP_KEY_DOWN;
    case KEY_PPAGE:
        return TOP_KEY_PAGE_UP;
    case KEY_NPAGE:
        return TOP_KEY_PAGE_DOWN;
    case KEY_ENTER:
    case '\n':
    case '\r':
        return TOP_KEY_ENTER;
    case '\033':
        return TOP_KEY_ESCAPE;
    case KEY_BACKSPACE:
    case 0x7f:
    case '\b':
        return TOP_KEY_ERASE;
    case KEY_MOUSE:
        return mouse_key();
    case KEY_RESIZE:
        return TOP_KEY_RESIZED;
    default:
        return key > ' ' && key < 0x7f ? key : TOP_KEY_OTHER;
    }
}
