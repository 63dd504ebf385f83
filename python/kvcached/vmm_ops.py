# SPDX-License-Identifier: Apache-2.0
"""Pages by hand, for integrations of one's own: create tensors without memory behind them, map, unmap.

    init_kvcached("cuda:0")
    tensors = create_kv_tensors(1 << 30, 2, "cuda:0", num_layers=32)
    map_to_kv_tensors([0, 2 << 20])     # offsets in bytes ...
    map_to_kv_tensors([2, 3], [])       # ... or, with a second list, numbers of pages
    unmap_from_kv_tensors([0, 2 << 20])

A page is KVCACHED_PAGE_SIZE_MB of each layer's K or V. With KVCACHED_CONTIGUOUS_LAYOUT its parts in all
layers lie together, and one offset, a multiple of page size x layers x buffers, names all; else an offset is
that of the page in each of them, a multiple of the page size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kvcached import runtime, tensors
from kvcached.errors import KVCachedConfigError
from kvcached.layout import Layout
from kvcached.page_allocator import InternalPage, PageAllocator
from kvcached.utils import contiguous_layout
from kvcached.utils import page_size as default_page_size

if TYPE_CHECKING:
    import torch

_page_size = 0
_contiguous: bool | None = None


def init_kvcached(dev_str: str = "cuda:0", page_size: int = 0, contiguous_layout: bool | None = None) -> None:
    """Connects to the daemon of that GPU. page_size, of create_kv_tensors(): 0: KVCACHED_PAGE_SIZE_MB."""
    global _page_size, _contiguous
    if page_size < 0 or page_size % (2 << 20):
        raise KVCachedConfigError(f"A page of {page_size} bytes is not a multiple of 2 MiB")
    runtime.init(runtime.Role(device=runtime.device_index(dev_str)))
    _page_size, _contiguous = page_size, contiguous_layout


def shutdown_kvcached() -> None:
    """Returns all memory and disconnects. What tensors are left fault when they are touched."""
    runtime.shutdown()


def _dtype_of_size(size: int) -> torch.dtype:
    import torch

    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if size not in kinds:
        raise KVCachedConfigError(f"dtype_size is {size}, and must be 1, 2, 4 or 8")
    return kinds[size]


def create_kv_tensors(
    size: int,
    dtype_size: int,
    dev_str: Any,
    num_layers: int,
    num_kv_buffers: int = 2,
    group_id: int = 0,
    unified_pool: bool = False,
) -> list[torch.Tensor]:
    """Reserves addresses for `num_layers` layers of `size` bytes, K and V together; costs no memory.

    Returns one tensor for each layer, of one dimension and an integer type of `dtype_size` bytes; or, with
    the contiguous layout, one for all. unified_pool: K and V of a layer share pages, as if num_kv_buffers
    were 1.
    """
    buffers = 1 if unified_pool else num_kv_buffers
    page = _page_size or default_page_size()
    dtype = _dtype_of_size(dtype_size)
    together = contiguous_layout() if _contiguous is None else _contiguous
    if size < 1 or size % (buffers * page):
        raise KVCachedConfigError(
            f"{size} bytes a layer are not a positive multiple of {buffers} x {page}, "
            "the pages of its buffers"
        )
    layout = Layout(num_layers, buffers, page, page, together)
    pool = runtime.get().open_pool(group_id, layout, size // buffers // page)
    tensors.on_device(dev_str, pool)
    flat = tensors.whole(pool.region)
    if together:
        return [flat.view(dtype)]
    return [flat[i * size : (i + 1) * size].view(dtype) for i in range(num_layers)]


def kv_tensors_created(group_id: int = 0) -> bool:
    """Whether the group has tensors; of a scheduler: whether its workers have them, which are waited for."""
    return runtime.get().pool(group_id) is not None


def _pages(pool: runtime.Pool, offsets: Sequence[int]) -> list[int]:
    stride = pool.layout.segment_page_bytes
    for offset in offsets:
        if offset % stride:
            raise ValueError(f"Offset {offset} is not a multiple of {stride}, the bytes of a page")
    return [offset // stride for offset in offsets]


def _resolve(
    offsets: Sequence[int], blocks_or_group: int | Sequence[int], group_id: int
) -> tuple[runtime.Pool, list[int]]:
    """Of (offsets, group_id) and of (page_ids, block_ids), where the blocks say nothing that the pages
    don't."""
    by_offset = isinstance(blocks_or_group, int)
    group_id = blocks_or_group if isinstance(blocks_or_group, int) else group_id
    pool = runtime.get().pool(group_id)
    if pool is None:
        raise RuntimeError(f"KV tensors of group {group_id} have not been created")
    return pool, _pages(pool, offsets) if by_offset else list(offsets)


def map_to_kv_tensors(
    offsets: Sequence[int], block_ids: int | Sequence[int] = 0, *, group_id: int = 0
) -> bool:
    """Backs pages with memory, all or none. (offsets, group_id), or (page_ids, block_ids)."""
    pool, pages = _resolve(offsets, block_ids, group_id)
    pool.region.map(pages)
    return True


def unmap_from_kv_tensors(
    offsets: Sequence[int], block_ids: int | Sequence[int] = 0, *, group_id: int = 0
) -> bool:
    """Takes their memory away, all or none. (offsets, group_id), or (page_ids, block_ids)."""
    pool, pages = _resolve(offsets, block_ids, group_id)
    pool.region.unmap(pages)
    return True


__all__ = [
    "InternalPage",
    "PageAllocator",
    "create_kv_tensors",
    "init_kvcached",
    "kv_tensors_created",
    "map_to_kv_tensors",
    "shutdown_kvcached",
    "unmap_from_kv_tensors",
]
