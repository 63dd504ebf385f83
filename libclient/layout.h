/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Layout: from the numbers of a model's KV cache to the shape of a region. Pure.
 */

#include <stdbool.h>
#include <stdint.h>

enum {
    _LAYOUT_E_SUCCESS,
    LAYOUT_E_LAYERS,  /* none */
    LAYOUT_E_BUFFERS, /* neither one nor two */
    LAYOUT_E_PAGE,    /* no bytes */
    LAYOUT_E_SPACE,   /* does not fit 64 bits */
};

struct layout {
    uint64_t layers;
    uint64_t kv_buffers;
    uint64_t page_bytes; /* of one layer and buffer */
    bool contiguous;     /* all layers and buffers of a page together, in one segment; else a segment each */
};

/* 0 or LAYOUT_E_*. */
int layout_shape(const struct layout *layout, uint64_t *ret_segments, uint64_t *ret_page_bytes);
