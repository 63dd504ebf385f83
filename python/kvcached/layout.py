# SPDX-License-Identifier: Apache-2.0
"""Where what lies: the arithmetic of KV caches in a region. Nothing here touches memory, torch or a daemon.

A KV cache has `layers` layers of `kv_buffers` buffers (2: keys and values apart), each of blocks of
`block_bytes`. In a page of `page_bytes` for each layer and buffer they lie in one of two ways:

  contiguous   one segment, a page of layers x kv_buffers x page_bytes: block b has all layers together,
               layer after layer, at byte b x layers x kv_buffers x block_bytes
  per layer    a segment for each layer and buffer, of pages of page_bytes: block b of buffer i of layer l
               is at byte (l x kv_buffers + i) x stride + b x block_bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvcached.errors import KVCachedConfigError
from kvcached.utils import MIB, align_up


@dataclass(frozen=True)
class Layout:
    layers: int
    kv_buffers: int
    block_bytes: int  # of one layer and buffer
    page_bytes: int  # of one layer and buffer
    contiguous: bool

    def __post_init__(self) -> None:
        for name in ("layers", "kv_buffers", "block_bytes"):
            if getattr(self, name) < 1:
                raise KVCachedConfigError(f"{name} is {getattr(self, name)}, and must be positive")
        if self.block_bytes > self.page_bytes:
            need = align_up(align_up(self.block_bytes, 2 * MIB) // MIB, 2)
            raise KVCachedConfigError(
                f"A block of {self.block_bytes} bytes does not fit into a page of {self.page_bytes}: "
                f"set KVCACHED_PAGE_SIZE_MB={need} or more"
            )

    @property
    def parts(self) -> int:
        return self.layers * self.kv_buffers

    @property
    def segments(self) -> int:
        return 1 if self.contiguous else self.parts

    @property
    def segment_page_bytes(self) -> int:
        return self.page_bytes * self.parts if self.contiguous else self.page_bytes

    @property
    def segment_block_bytes(self) -> int:
        return self.block_bytes * self.parts if self.contiguous else self.block_bytes

    def pages_for(self, blocks: int) -> int:
        """Of which so many blocks take a part."""
        return align_up(max(blocks, 1) * self.block_bytes, self.page_bytes) // self.page_bytes

    def block_range(self, page: int) -> range:
        """Blocks that lie entirely in a page."""
        start = page * self.page_bytes
        return range(-(-start // self.block_bytes), (start + self.page_bytes) // self.block_bytes)

    def strides(self, stride_bytes: int) -> tuple[int, int, int]:
        """Bytes from one layer, one buffer, and one block to the next."""
        if self.contiguous:
            return self.kv_buffers * self.block_bytes, self.block_bytes, self.segment_block_bytes
        return self.kv_buffers * stride_bytes, stride_bytes, self.block_bytes


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides, in elements, of what lies without gaps."""
    strides, n = [], 1
    for size in reversed(shape):
        strides.append(n)
        n *= size
    return strides[::-1]


def product(numbers: Sequence[int]) -> int:
    n = 1
    for number in numbers:
        n *= number
    return n
