/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sizes of pages and blocks. A page holds whole blocks; what is left at its end is not used.
 */

#include "layout.h"

#include "pages.h"

bool layout_make(const struct model *model, bool per_layer, uint64_t page_bytes, uint64_t granularity,
                 struct layout *ret)
{
    struct layout l = {.segments = per_layer ? model->layers : 1};
    uint64_t per_page;

    l.block_bytes = model_block_bytes(model) / l.segments;
    l.page_bytes = page_bytes ? page_bytes : (l.block_bytes + granularity - 1) / granularity * granularity;
    if (l.block_bytes == 0 || l.page_bytes % granularity != 0)
        return false;
    per_page = l.page_bytes / l.block_bytes;
    if (per_page == 0 || per_page > PAGES_BLOCKS_MAX)
        return false;
    l.blocks_per_page = (uint32_t)per_page;
    *ret = l;
    return true;
}
