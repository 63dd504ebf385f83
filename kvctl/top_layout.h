/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What of kvtop stands where on a terminal of a given size. Pure.
 */

#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"
#include "top_model.h"

#define TOP_WIDTH_MIN 40
#define TOP_HEIGHT_MIN 6

enum top_style {
    TOP_PLAIN,
    TOP_TITLE,
    TOP_PREALLOC,
    TOP_USED,
    TOP_FREE,
    TOP_WARNING,
    TOP_DIM,
    TOP_MARKED,
};

/* width × height cells, row after row. */
struct top_screen {
    unsigned width, height;
    char *text;                        /* printable ASCII */
    unsigned char *style;              /* TOP_* */
    unsigned scrolled;                 /* lines, as far as there are so many */
    const struct top_instance **rows;  /* which instance a row is about; NULL: none. They are the model's. */
    unsigned sort_column, sort_length; /* of the words in the last row that name the order */
};

struct top_view {
    unsigned scroll; /* lines that are above the screen */
    bool help;
    bool typing; /* the filter */
};

/* NULL: no memory. */
struct top_screen *top_layout(const struct top_model *model, const struct top_view *view, unsigned width,
                              unsigned height);
struct top_screen *top_screen_free(struct top_screen *screen);
DEFINE_CLEANUP(struct top_screen *, top_screen_free);

enum top_action {
    TOP_ACTION_NONE,
    TOP_ACTION_MARK, /* the instance, or no longer */
    TOP_ACTION_SORT, /* by the next order */
};

/* What a click means; *ret_instance is what it is about, with TOP_ACTION_MARK. */
enum top_action top_layout_click(const struct top_screen *screen, unsigned column, unsigned row,
                                 const struct top_instance **ret_instance);
