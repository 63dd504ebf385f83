# SPDX-License-Identifier: Apache-2.0
"""Pages one at a time, for integrations that keep their own books of blocks: PageAllocator hands out pages
that are mapped, InternalPage keeps the books of one. (KVCacheManager does both, in C.)"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvcached import _native, runtime
from kvcached.errors import KVCachedConfigError, OutOfMemoryError
from kvcached.layout import Layout
from kvcached.utils import contiguous_layout as default_contiguous_layout
from kvcached.utils import whole_number, whole_numbers


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
        if whole_number(num_blocks, "num_blocks") > len(self._free):
            raise ValueError(f"Page {self.page_id} has {len(self._free)} free blocks, not {num_blocks}")
        return [self._free.pop() for _ in range(num_blocks)]

    def free(self, block_id: int) -> None:
        self.free_batch([block_id])

    def free_batch(self, block_ids: Iterable[int]) -> None:
        """All or none. ValueError: one is not allocated, named twice, or of another page."""
        ids, free = whole_numbers(block_ids, "block_ids"), set(self._free)
        if len(set(ids)) != len(ids) or any(i not in self._range or i in free for i in ids):
            raise ValueError(f"Not all of blocks {ids} of page {self.page_id} are allocated")
        self._free += ids

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

    mem_size_per_layer: bytes of one layer's K or V, of which so many may be used. page_size, num_layers,
    num_kv_buffers, contiguous_layout: as the tensors have them. ipc_name, async_sched, world_size, pp_rank:
    accepted as the reference has them. enable_page_prealloc: accepted; what is kept ready is the library's
    affair (KVCACHED_PAGE_PREALLOC_ENABLED, KVCACHED_MIN_RESERVED_PAGES). Any thread.

    KVCachedConfigError: arguments that are no sizes, or, once pages are asked for, not the tensors'.
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
        self.page_size = whole_number(page_size, "page_size", 1)
        self._runtime = runtime.get()
        self._group_id = group_id
        self._mem_size = whole_number(mem_size_per_layer, "mem_size_per_layer", self.page_size)
        self._total = self._mem_size // self.page_size
        self._layout = Layout(
            whole_number(num_layers, "num_layers", 1),
            whole_number(num_kv_buffers, "num_kv_buffers", 1),
            self.page_size,
            self.page_size,
            together,
        )
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
                    pool = self._runtime.attach_pool(self._group_id)
                if pool is None:
                    raise RuntimeError(f"KV tensors of group {self._group_id} have not been created")
                self._check_tensors(pool.region)
                self._opened = _native.Blocks(
                    pool.regions,
                    self._layout.segment_page_bytes,
                    max_pages=min(self._total, pool.region.pages),
                )
            return self._opened

    def _check_tensors(self, region: _native.Region) -> None:
        """Offsets would name other pages than those that were mapped."""
        layout = self._layout
        if (region.page_bytes, region.segments) != (layout.page_bytes * layout.parts, layout.segments):
            raise KVCachedConfigError(
                f"Pages of {layout.page_bytes} bytes in each of {layout.layers} layers and "
                f"{layout.kv_buffers} buffers, {'' if layout.contiguous else 'not '}contiguous, are not the "
                f"pages of group {self._group_id}, of {region.page_bytes} bytes in {region.segments} segments"
            )

    def alloc_page(self) -> InternalPage:
        """A mapped page. RuntimeError: there is none to be had; the text says why."""
        blocks = self._blocks
        try:
            (page_id,) = blocks.alloc(1)
        except OutOfMemoryError as error:
            raise RuntimeError(f"No free pages left: {error}") from error
        if self._on_map:
            try:
                self._on_map([page_id * self._layout.segment_page_bytes])
            except BaseException:
                blocks.free([page_id])  # nobody has got it
                raise
        return InternalPage(page_id, self.page_size)

    def free_page(self, page_id: int) -> None:
        self.free_pages([page_id])

    def free_pages(self, page_ids: Iterable[int]) -> None:
        """All or none. ValueError: one is not allocated, or named twice."""
        ids, blocks = whole_numbers(page_ids, "page_ids"), self._blocks
        # Whom the callback tells may drop what is in the pages, so it is told of none that isn't freed.
        if self._on_unmap and len(set(ids)) == len(ids) and all(blocks.occupancy(ids)):
            self._on_unmap([page_id * self._layout.segment_page_bytes for page_id in ids])
        blocks.free(ids)

    def resize(self, new_mem_size: int) -> bool:
        """Only so many bytes of each layer's K or V may be used. False: more are, for now."""
        pages = min(whole_number(new_mem_size, "new_mem_size") // self.page_size, self._total)
        self._blocks.resize(pages)
        return self._blocks.status()["mapped_pages"] <= pages

    def check_and_get_resize_target(self, current_mem_size: int) -> int:
        """What resize() would be for the instance's limit, if it had this group only: bytes of a layer's K or
        V. -1: as many as `current_mem_size`. The limit is enforced without a resize, too."""
        run = self._runtime
        ranks = run.role.ranks if run.role.native_role == _native.ROLE_SCHEDULER else (None,)
        clients = [run.client(rank) for rank in ranks]
        # Workers on one GPU have one limit together.
        limit = min(client.status()["limit_bytes"] // clients.count(client) for client in clients)
        target = min(limit // self._layout.parts, self._mem_size)
        return -1 if target == current_mem_size else target

    def get_resize_target(self) -> int:
        """The same, compared with mem_size_per_layer."""
        return self.check_and_get_resize_target(self._mem_size)

    def set_use_worker_ipc(self, use: bool) -> None:
        """Does nothing: init_kvcached() was told whether workers are other processes."""

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

    def group_indices_by_page(self, indices: Iterable[int], block_mem_size: int) -> dict[int, list[int]]:
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
