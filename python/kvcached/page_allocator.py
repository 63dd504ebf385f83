# SPDX-License-Identifier: Apache-2.0
"""Pages one at a time, for integrations that keep their own books of blocks: PageAllocator hands out pages
that are mapped, InternalPage keeps the books of one. (KVCacheManager does both, in C.)"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from kvcached import _native, runtime
from kvcached.errors import OutOfMemoryError
from kvcached.layout import Layout
from kvcached.utils import contiguous_layout as default_contiguous_layout


class InternalPage:
    """The blocks of one page, of those that lie in it entirely. Not for several threads at a time."""

    def __init__(self, page_id: int, page_size: int) -> None:
        self.page_id = page_id
        self.page_size = page_size
        self._free: list[int] = []
        self._range = range(0)

    @staticmethod
    def get_block_range(page_id: int, page_size: int, block_mem_size: int) -> tuple[int, int]:
        """First block, and the one behind the last."""
        first = -(-page_id * page_size // block_mem_size)
        return first, max(first, (page_id + 1) * page_size // block_mem_size)

    @staticmethod
    def get_num_blocks(page_size: int, block_mem_size: int) -> int:
        """Of a page that begins with a block."""
        return page_size // block_mem_size

    def init(self, block_mem_size: int) -> None:
        """All blocks are free."""
        self._range = range(*self.get_block_range(self.page_id, self.page_size, block_mem_size))
        self._free = list(reversed(self._range))

    def alloc(self, num_blocks: int = 1) -> list[int]:
        """ValueError: there are not so many."""
        if num_blocks > len(self._free):
            raise ValueError(f"Page {self.page_id} has {len(self._free)} free blocks, not {num_blocks}")
        return [self._free.pop() for _ in range(num_blocks)]

    def free(self, block_id: int) -> None:
        self.free_batch([block_id])

    def free_batch(self, block_ids: Sequence[int]) -> None:
        """All or none. ValueError: one is not allocated, named twice, or of another page."""
        free = set(self._free)
        wrong = [i for i in block_ids if i not in self._range or i in free]
        if wrong or len(set(block_ids)) != len(block_ids):
            raise ValueError(f"Not all of blocks {list(block_ids)} of page {self.page_id} are allocated")
        self._free += block_ids

    def empty(self) -> bool:
        """Whether no block is allocated."""
        return len(self._free) == len(self._range)

    def full(self) -> bool:
        return not self._free

    def num_free_blocks(self) -> int:
        return len(self._free)

    def get_free_blocks(self) -> list[int]:
        return sorted(self._free)


class PageAllocator:
    """Pages of a group's tensors, mapped when they are handed out.

    mem_size_per_layer: bytes of one layer's K or V, of which so many may be used. ipc_name, async_sched,
    world_size, pp_rank: accepted as the reference has them. enable_page_prealloc: accepted; what is kept
    ready is the library's affair (KVCACHED_PAGE_PREALLOC_ENABLED, KVCACHED_MIN_RESERVED_PAGES). Any thread.
    """

    def __init__(
        self,
        num_layers: int,
        mem_size_per_layer: int,
        page_size: int,
        world_size: int = 1,
        pp_rank: int = 0,
        async_sched: bool = False,
        contiguous_layout: bool | None = None,
        enable_page_prealloc: bool = True,
        num_kv_buffers: int = 2,
        group_id: int = 0,
        ipc_name: str = "",
    ) -> None:
        together = default_contiguous_layout() if contiguous_layout is None else contiguous_layout
        self.page_size = page_size
        self._runtime = runtime.get()
        self._group_id = group_id
        self._total = mem_size_per_layer // page_size
        self._layout = Layout(num_layers, num_kv_buffers, page_size, page_size, together)
        self._lock = threading.Lock()
        self._opened: _native.Blocks | None = None
        self._on_map: Callable[[Sequence[int]], Any] | None = None
        self._on_unmap: Callable[[Sequence[int]], Any] | None = None

    @property
    def _blocks(self) -> _native.Blocks:
        """A block for each page."""
        with self._lock:
            if self._opened is None:
                pool = self._runtime.pool(self._group_id)
                if pool is None and self._runtime.role.native_role == _native.ROLE_SCHEDULER:
                    pool = self._runtime.attach_pool(self._group_id, self._layout)
                if pool is None:
                    raise RuntimeError(f"KV tensors of group {self._group_id} have not been created")
                self._opened = _native.Blocks(
                    pool.regions,
                    pool.layout.segment_page_bytes,
                    max_pages=min(self._total, pool.region.pages),
                )
            return self._opened

    def alloc_page(self) -> InternalPage:
        """A mapped page. RuntimeError: there is none to be had; the text says why."""
        try:
            (page_id,) = self._blocks.alloc(1)
        except OutOfMemoryError as error:
            raise RuntimeError(f"No free pages left: {error}") from error
        if self._on_map:
            self._on_map([page_id * self._layout.segment_page_bytes])
        return InternalPage(page_id, self.page_size)

    def free_page(self, page_id: int) -> None:
        self.free_pages([page_id])

    def free_pages(self, page_ids: Sequence[int]) -> None:
        """All or none. ValueError: one is not allocated."""
        if self._on_unmap:
            self._on_unmap([page_id * self._layout.segment_page_bytes for page_id in page_ids])
        self._blocks.free(page_ids)

    def resize(self, new_mem_size: int) -> bool:
        """Only so many bytes of each layer's K or V may be used. False: more are, for now."""
        pages = min(new_mem_size // self.page_size, self._total)
        self._blocks.resize(pages)
        return self._blocks.status()["mapped_pages"] <= pages

    def trim(self) -> None:
        """Gives back what is mapped and not handed out."""
        self._blocks.trim()

    def reset_free_page_order(self) -> None:
        """Does nothing: pages come in the order of their numbers whenever there is a choice."""

    def start_prealloc_thread(self) -> None:
        """Does nothing: the library's thread runs from init_kvcached() on."""

    def stop_prealloc_thread(self, timeout: float | None = None) -> None:
        """Does nothing: the library's thread ends with shutdown_kvcached()."""

    def get_num_free_pages(self) -> int:
        status = self._blocks.status()
        return status["total_blocks"] - status["used_blocks"]

    def get_num_inuse_pages(self) -> int:
        return self._blocks.status()["used_blocks"]

    def get_num_total_pages(self) -> int:
        return self._blocks.status()["total_blocks"]

    def get_num_reserved_pages(self) -> int:
        """Mapped and not handed out."""
        return self._blocks.status()["free_pages"]

    def get_page_state(self) -> dict[str, int]:
        status = self._blocks.status()
        return {
            "total": status["total_blocks"],
            "inuse": status["used_blocks"],
            "reserved": status["free_pages"],
            "free": status["total_blocks"] - status["used_blocks"],
        }

    def get_avail_physical_pages(self) -> int:
        """That are promised to this process now, mapped ones included."""
        return self._blocks.available()

    def get_page_id(self, block_id: int, block_mem_size: int) -> int:
        return block_id * block_mem_size // self.page_size

    def group_indices_by_page(self, indices: Sequence[int], block_mem_size: int) -> dict[int, list[int]]:
        """Blocks by the page in which they begin."""
        by_page: dict[int, list[int]] = {}
        for index in indices:
            by_page.setdefault(self.get_page_id(index, block_mem_size), []).append(index)
        return by_page

    def set_broadcast_map_callback(self, callback: Callable[[Sequence[int]], Any]) -> None:
        """Called with the offset of a page after it was mapped. (Workers are told by the daemon.)"""
        self._on_map = callback

    def set_broadcast_unmap_callback(self, callback: Callable[[Sequence[int]], Any]) -> None:
        """Called with the offsets of pages before they are unmapped."""
        self._on_unmap = callback

    def close(self) -> None:
        """Unmaps everything."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
