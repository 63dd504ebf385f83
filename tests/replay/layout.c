/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sizes of pages and blocks. A block that lay in two pages would be of no use, so pages are multiples of both
 * blocks and the driver's granularity.
 */

#include "layout.h"

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;

        a = b;
        b = rest;
    }
    return a;
}

bool layout_make(const struct model *model, bool per_layer, uint64_t page_bytes, uint64_t granularity,
                 struct layout *ret)
{
    struct layout l = {.segments = per_layer ? model->layers : 1};

    l.block_bytes = model_block_bytes(model) / l.segments;
    if (l.block_bytes == 0)
        return false;
    l.page_bytes =
        page_bytes ? page_bytes : l.block_bytes / common_divisor(l.block_bytes, granularity) * granularity;
    if (l.page_bytes % granularity != 0 || l.page_bytes % l.block_bytes != 0)
        return false;
    *ret = l;
    return true;
}
