# SPDX-License-Identifier: Apache-2.0
"""From an engine's shape of a KV cache to tensors. Shared by the engines' interfaces.

Where the engine's shape has K and V: before the blocks (2, N, ...), after them (N, 2, ...), or nowhere (MLA).
(2, 2, ...) is the first of these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvcached import _native, runtime, tensors
from kvcached.errors import KVCachedConfigError
from kvcached.layout import Layout, product, row_major
from kvcached.utils import contiguous_layout, holes_zero, page_size, whole_number, whole_numbers

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


def sizes(shape: Sequence[int], dimensions: int, example: str) -> list[int]:
    """A shape of so many dimensions at least, all of them positive."""
    listed = whole_numbers(shape, "the dimensions of kvcache_shape")
    if len(listed) < dimensions or min(listed) < 1:
        raise KVCachedConfigError(f"{tuple(listed)} is no shape of a KV cache, such as {example}")
    return listed


@contextlib.contextmanager
def pool_of(
    device: Any,
    num_layers: int,
    kv_buffers: int,
    n_blocks: int,
    block_bytes: int,
    group_id: int,
    holes: str | None = None,
    flags: int = 0,
) -> Iterator[runtime.Pool]:
    """Addresses for that many blocks; they stay if what is done with them succeeds. holes: see
    utils.holes_zero(). flags: further ones of the region."""
    num_layers = whole_number(num_layers, "num_layers", 1)
    layout = Layout(num_layers, kv_buffers, block_bytes, page_size(), contiguous_layout())
    flags |= _native.HOLES_ZERO if holes_zero(holes) else 0
    with tensors.pool_of(device, group_id, layout, layout.pages_for(n_blocks), flags) as pool:
        yield pool


def open_pool(device: Any, *args: Any, **kwargs: Any) -> runtime.Pool:
    """The same, for good."""
    with pool_of(device, *args, **kwargs) as pool:
        return pool


def views(
    pool: runtime.Pool, dtype: torch.dtype, shape: Sequence[int], axes: tuple[int, int | None]
) -> list[torch.Tensor]:
    """One tensor of `shape` for each layer. axes: which of its dimensions count the blocks, and K and V; all
    others are those of a block, in order. These blocks may be smaller than the pool's, which are made of
    them: then it is they that have all layers together in a contiguous layout."""
    layout = replace(pool.layout, block_bytes=block_bytes(shape, axes, dtype))
    layer, *_ = layout.strides(pool.region.stride_bytes)
    in_order = strides_of(layout, pool.region.stride_bytes, dtype, shape, axes)
    flat = tensors.whole(pool.region)
    return [tensors.strided(flat, dtype, shape, in_order, i * layer) for i in range(layout.layers)]


def strides_of(
    layout: Layout, stride_bytes: int, dtype: torch.dtype, shape: Sequence[int], axes: tuple[int, int | None]
) -> list[int]:
    """Of one layer's tensor, in bytes."""
    _, buffer, block = layout.strides(stride_bytes)
    inner = [i for i in range(len(shape)) if i not in axes]
    strides = dict(zip(inner, (n * dtype.itemsize for n in row_major([shape[i] for i in inner]))))
    blocks_at, buffers_at = axes
    strides[blocks_at] = block
    if buffers_at is not None:
        strides[buffers_at] = buffer
    return [strides[i] for i in range(len(shape))]


def raw(pool: runtime.Pool) -> list[torch.Tensor]:
    """All bytes of a pool: one tensor with the contiguous layout, else one for each layer."""
    flat = tensors.whole(pool.region)
    if pool.layout.contiguous:
        return [flat]
    size = pool.region.stride_bytes * pool.layout.kv_buffers
    return [flat[i * size : (i + 1) * size] for i in range(pool.layout.layers)]


def find_axes(shape: Sequence[int], attention_type: str) -> tuple[int, int | None]:
    """(blocks_at, buffers_at) of a shape as the engines have it."""
    if attention_type == "MLA":
        return 0, None
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
