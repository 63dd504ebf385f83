/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the output is decides about colours and width; it is looked at anew each time, since terminals are
 * resized.
 */

#include "listing.h"

#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct table_style listing_style(FILE *out)
{
    const char *no_color = getenv("NO_COLOR");
    struct table_style style = {0};
    struct winsize size;

    if (!isatty(fileno(out)))
        return style;
    style.colour = !no_color || !*no_color;
    if (ioctl(fileno(out), TIOCGWINSZ, &size) == 0)
        style.width = size.ws_col;
    return style;
}
