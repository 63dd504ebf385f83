/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The status page's files, as the build has put them into the program (page/embed.py). */

#include <stddef.h>

struct page_file {
    const char *path; /* "/" is the page itself; NULL ends the list */
    const char *type;
    const unsigned char *data;
    size_t size;
};

extern const struct page_file page_files[];
