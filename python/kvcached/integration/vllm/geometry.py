# SPDX-License-Identifier: Apache-2.0
"""From vLLM's plan of a KV cache to the layout of a region. Arithmetic: no vLLM, no memory.

vLLM makes one buffer, in which block b of layer l lies at offset + l x layer_stride + b x block_stride.
Where a layer's blocks lie together (LBHNC, LBNHC: layer_stride is num_blocks x block_stride) the region has
a segment for each layer; where a block's layers do (BLHNC, BLNHC, BHLNC: block_stride is the larger one) it
has one. Groups of layers that share the blocks lie on top of each other.

The buffer's size is what vLLM computes, so a segment is a whole number of pages only if the number of
blocks is a multiple of what whole_blocks() says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvcached.errors import KVCachedConfigError
from kvcached.layout import Layout
from kvcached.utils import align_up


@dataclass(frozen=True)
class Geometry:
    layout: Layout
    num_blocks: int
    pages: int
    size: int  # bytes of vLLM's buffer

    @property
    def page_bytes(self) -> int:
        """Over all layers."""
        return self.layout.segments * self.layout.segment_page_bytes

    @property
    def stride_bytes(self) -> int:
        """From one segment to the next."""
        return self.size // self.layout.segments


def page_bytes_for(block_bytes: int, page_size: int) -> int:
    """A page that holds a block: the smallest multiple of page_size that does."""
    return align_up(block_bytes, page_size)


def block_unit(block_bytes: int, page_size: int) -> int:
    """A number of blocks that is a multiple of this fills whole pages."""
    return math.lcm(block_bytes, page_bytes_for(block_bytes, page_size)) // block_bytes


def whole_blocks(want_bytes: int, groups: Sequence[Sequence[int]], page_size: int) -> int:
    """The most bytes, at most want_bytes, of which vLLM's plan is whole pages, whichever its layout is.

    groups: for each group of layers, which share the blocks, a block's bytes in each of this worker's layers.
    0: not even one page is wanted.
    """
    together = [sum(layers) for layers in groups]
    units = [block_unit(n, page_size) for n in {n for layers in groups for n in layers} | {*together} - {0}]
    step = max(together) * math.lcm(*units)
    return want_bytes // step * step


def geometry(config: Any, page_size: int) -> Geometry:
    """Of a KVCacheConfig with tensors. KVCachedConfigError: one that no region can have; says why."""
    tensors = config.kv_cache_tensors
    blocks = config.num_blocks
    strides = {(t.layer_stride, t.block_stride) for t in tensors}
    if len({t.size for t in tensors}) != 1 or len(strides) != 1:
        raise KVCachedConfigError(
            "This model's layers have KV blocks of different sizes or in different places, which kvcached "
            f"cannot page: {sorted((t.size, t.layer_stride, t.block_stride) for t in tensors)}"
        )
    if any(getattr(t, "host_resident", False) for t in tensors):
        raise KVCachedConfigError("A KV cache in host memory is not kvcached's")
    size, (layer_stride, block_stride) = tensors[0].size, strides.pop()
    layers = 1 if layer_stride < block_stride else size // max(layer_stride, 1)
    if layers * blocks * block_stride != size or (layers > 1 and blocks * block_stride != layer_stride):
        raise KVCachedConfigError(
            f"A KV cache of {size} bytes is not {blocks} blocks of {block_stride} bytes in {layers} layers"
        )
    page = page_bytes_for(block_stride, page_size)
    unit = block_unit(block_stride, page_size)
    if blocks % unit:
        near = max(blocks // unit, 1) * unit
        raise KVCachedConfigError(
            f"{blocks} blocks of {block_stride} bytes are not whole pages of {page}: "
            f"set --num-gpu-blocks-override to a multiple of {unit}, such as {near}"
        )
    layout = Layout(layers, 1, block_stride, page, contiguous=layers == 1)
    return Geometry(layout, blocks, blocks * block_stride // page, size)
