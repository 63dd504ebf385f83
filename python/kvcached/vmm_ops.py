# SPDX-License-Identifier: Apache-2.0
"""Pages by hand, for integrations of one's own: create tensors without memory behind them, map, unmap.

    init_kvcached("cuda:0")
    tensors = create_kv_tensors(1 << 30, 2, "cuda:0", num_layers=32)
    map_to_kv_tensors([0, 2 << 20])     # offsets in bytes (and the group) ...
    map_to_kv_tensors([2, 3], [])       # ... or, with a second list or as page_ids=, numbers of pages
    unmap_from_kv_tensors([0, 2 << 20])

A page is KVCACHED_PAGE_SIZE_MB of each layer's K or V. With KVCACHED_CONTIGUOUS_LAYOUT its parts in all
layers lie together, and one offset, a multiple of page size x layers x buffers, names all; else an offset is
that of the page in each of them, a multiple of the page size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kvcached import _native, runtime, tensors
from kvcached.errors import DaemonTimeoutError, KVCachedConfigError
from kvcached.layout import Layout
from kvcached.page_allocator import InternalPage, PageAllocator
from kvcached.utils import contiguous_layout, whole_number, whole_numbers
from kvcached.utils import page_size as default_page_size

if TYPE_CHECKING:
    import torch


def init_kvcached(dev_str: str = "cuda:0", page_size: int = 0, contiguous_layout: bool | None = None) -> None:
    """Connects to the daemon of that GPU. page_size and contiguous_layout, of create_kv_tensors() until
    shutdown_kvcached(): 0 and None: KVCACHED_PAGE_SIZE_MB and KVCACHED_CONTIGUOUS_LAYOUT."""
    page_size = whole_number(page_size, "page_size")
    if page_size % (2 << 20):
        raise KVCachedConfigError(f"A page of {page_size} bytes is not a multiple of 2 MiB")
    current = runtime.init(runtime.Role(device=runtime.named_device(dev_str)))
    current.manual_page_size, current.manual_contiguous = page_size, contiguous_layout


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
    current = runtime.get()
    size = whole_number(size, "size")
    num_layers = whole_number(num_layers, "num_layers", 1)
    buffers = 1 if unified_pool else whole_number(num_kv_buffers, "num_kv_buffers", 1)
    page = current.manual_page_size or default_page_size()
    dtype = _dtype_of_size(dtype_size)
    together = contiguous_layout() if current.manual_contiguous is None else current.manual_contiguous
    if size < 1 or size % (buffers * page):
        raise KVCachedConfigError(
            f"{size} bytes a layer are not a positive multiple of {buffers} x {page}, "
            "the pages of its buffers"
        )
    layout = Layout(num_layers, buffers, page, page, together)
    with tensors.pool_of(dev_str, group_id, layout, size // buffers // page) as pool:
        flat = tensors.whole(pool.region)
        if together:
            return [flat.view(dtype)]
        return [flat[i * size : (i + 1) * size].view(dtype) for i in range(num_layers)]


def kv_tensors_created(group_id: int = 0) -> bool:
    """Whether the group has tensors; of a scheduler: whether all its workers have them, which are waited for
    as long as KVCACHED_IPC_TIMEOUT says."""
    current = runtime.get()
    if current.role.native_role != _native.ROLE_SCHEDULER:
        return current.pool(group_id) is not None
    try:
        current.attach_pool(group_id)
    except DaemonTimeoutError:
        return False
    return True


def _pages(pool: runtime.Pool, offsets: list[int]) -> list[int]:
    stride = pool.layout.segment_page_bytes
    for offset in offsets:
        if offset % stride:
            raise ValueError(f"Offset {offset} is not a multiple of {stride}, the bytes of a page")
    return [offset // stride for offset in offsets]


_NOT_SAID: Any = object()


def _resolve(
    offsets: Any, blocks_or_group: Any, group_id: Any, page_ids: Any
) -> tuple[runtime.Pool, list[int]]:
    """Of (offsets, group_id) and of (page_ids, block_ids), where the blocks say nothing that the pages
    don't. A wrong guess would map a wrong page, so what is neither is a TypeError."""
    if (offsets is _NOT_SAID) == (page_ids is _NOT_SAID):
        raise TypeError("Either offsets or page_ids are wanted")
    by_number = page_ids is not _NOT_SAID
    if hasattr(blocks_or_group, "__iter__") and getattr(blocks_or_group, "ndim", True):
        by_number = True
        whole_numbers(blocks_or_group, "block_ids")
    elif blocks_or_group is not _NOT_SAID:
        if group_id is not _NOT_SAID:
            raise TypeError(f"The group is {blocks_or_group!r}, and group_id is {group_id!r}")
        group_id = blocks_or_group
    if isinstance(group_id, bool):
        raise TypeError(f"group_id is {group_id}, and must be a whole number")
    group = 0 if group_id is _NOT_SAID else whole_number(group_id, "group_id")
    numbers = whole_numbers(*((offsets, "offsets") if page_ids is _NOT_SAID else (page_ids, "page_ids")))
    current = runtime.get()
    if current.role.native_role == _native.ROLE_SCHEDULER:
        raise RuntimeError("A scheduler maps pages in its workers: kvcached.tp_ipc_util does")
    pool = current.pool(group)
    if pool is None:
        raise RuntimeError(f"KV tensors of group {group} have not been created")
    return pool, numbers if by_number else _pages(pool, numbers)


def map_to_kv_tensors(
    offsets: Iterable[int] = _NOT_SAID,
    block_ids: int | Iterable[int] = _NOT_SAID,
    *,
    group_id: int = _NOT_SAID,
    page_ids: Iterable[int] = _NOT_SAID,
) -> bool:
    """Backs pages with memory, all or none. (offsets, group_id), or (page_ids, block_ids); the group is 0
    unless it is said."""
    pool, pages = _resolve(offsets, block_ids, group_id, page_ids)
    pool.region.map(pages)
    return True


def unmap_from_kv_tensors(
    offsets: Iterable[int] = _NOT_SAID,
    block_ids: int | Iterable[int] = _NOT_SAID,
    *,
    group_id: int = _NOT_SAID,
    page_ids: Iterable[int] = _NOT_SAID,
) -> bool:
    """Takes their memory away, all or none. Arguments as map_to_kv_tensors()."""
    pool, pages = _resolve(offsets, block_ids, group_id, page_ids)
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
