/* SPDX-License-Identifier: Apache-2.0 */

/*
 * With all layers of a page together, mapping it takes few and large extents, and costs follow their number;
 * but the engine's kernels must cope with the stride that this gives to a layer's blocks. With a segment for
 * each layer and buffer, every layer is as if it had been allocated by itself.
 */

#include "layout.h"

#include "base/arith.h"

int layout_shape(const struct layout *layout, uint64_t *ret_segments, uint64_t *ret_page_bytes)
{
    uint64_t parts, bytes;

    if (layout->layers == 0)
        return LAYOUT_E_LAYERS;
    if (layout->kv_buffers < 1 || layout->kv_buffers > 2)
        return LAYOUT_E_BUFFERS;
    if (layout->page_bytes == 0)
        return LAYOUT_E_PAGE;
    if (!u64_mul(layout->layers, layout->kv_buffers, &parts) || !u64_mul(parts, layout->page_bytes, &bytes))
        return LAYOUT_E_SPACE;
    *ret_segments = layout->contiguous ? 1 : parts;
    *ret_page_bytes = layout->contiguous ? bytes : layout->page_bytes;
    return 0;
}
