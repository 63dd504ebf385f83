# SPDX-License-Identifier: Apache-2.0
"""From an engine's shape of a KV cache to tensors. Shared by the engines' interfaces.

Where the engine's shape has K and V: before the blocks (2, N, ...), after them (N, 2, ...), or nowhere (MLA).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvcached import _native, runtime, tensors
from kvcached.errors import KVCachedConfigError
from kvcached.layout import Layout, product, row_major
from kvcached.utils import contiguous_layout, holes_zero, page_size

if TYPE_CHECKING:
    import torch

ATTENTION_TYPES = ("MHA", "GQA", "MLA", "HYBRID_LINEAR")


def check(attention_type: str, kv_layout: str) -> None:
    if attention_type not in ATTENTION_TYPES:
        raise NotImplementedError(
            f"Hybrid models with attention {attention_type} are not supported; "
            f"{', '.join(ATTENTION_TYPES)} are"
        )
    if kv_layout != "NHD":
        raise NotImplementedError(f"KV layout {kv_layout} is not supported; NHD is")


def open_pool(
    device: Any,
    num_layers: int,
    kv_buffers: int,
    n_blocks: int,
    block_bytes: int,
    group_id: int,
    holes: str | None = None,
    flags: int = 0,
) -> runtime.Pool:
    """Addresses for that many blocks. holes: see utils.holes_zero(). flags: further ones of the region."""
    layout = Layout(num_layers, kv_buffers, block_bytes, page_size(), contiguous_layout())
    flags |= _native.HOLES_ZERO if holes_zero(holes) else 0
    pool = runtime.get().open_pool(group_id, layout, layout.pages_for(n_blocks), flags)
    tensors.on_device(device, pool)
    return pool


def views(
    pool: runtime.Pool,
    dtype: torch.dtype,
    shape: Sequence[int],
    axes: tuple[int, int | None],
    flat: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """One tensor of `shape` for each layer. axes: which of its dimensions count the blocks, and K and V; all
    others are those of a block, in order. These blocks may be smaller than the pool's, which are made of
    them: then it is they that have all layers together in a contiguous layout."""
    layout = replace(pool.layout, block_bytes=block_bytes(shape, axes, dtype))
    layer, buffer, block = layout.strides(pool.region.stride_bytes)
    inner = [i for i in range(len(shape)) if i not in axes]
    strides = dict(zip(inner, (n * dtype.itemsize for n in row_major([shape[i] for i in inner]))))
    blocks_at, buffers_at = axes
    strides[blocks_at] = block
    if buffers_at is not None:
        strides[buffers_at] = buffer
    flat = tensors.whole(pool.region) if flat is None else flat
    in_order = [strides[i] for i in range(len(shape))]
    return [tensors.strided(flat, dtype, shape, in_order, i * layer) for i in range(layout.layers)]


def find_axes(shape: Sequence[int], attention_type: str) -> tuple[int, int | None]:
    """(blocks_at, buffers_at) of a shape as the engines have it."""
    if attention_type == "MLA":
        return 0, None
    if len(shape) < 3:
        raise KVCachedConfigError(f"{tuple(shape)} is no shape of a KV cache")
    if shape[0] == 2:
        return 1, 0
    if shape[1] == 2:
        return 0, 1
    raise KVCachedConfigError(
        f"Neither the first nor the second of {tuple(shape)} counts K and V: neither is 2"
    )


def block_bytes(shape: Sequence[int], axes: tuple[int, int | None], dtype: torch.dtype) -> int:
    """Of a block in one layer's K or V."""
    return product([n for i, n in enumerate(shape) if i not in axes]) * int(dtype.itemsize)
