# SPDX-License-Identifier: Apache-2.0
"""Blocks of a KV cache: allocate, free, how many there are.

A thin shell around libkvclient's blocks, where all of the arithmetic is. On mapped pages alloc() and free()
send nothing and keep the interpreter's lock; otherwise memory is asked for, and the lock given up meanwhile.

Threads: all methods, from any.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvcached import _native, runtime
from kvcached.errors import Error, OutOfMemoryError
from kvcached.layout import Layout
from kvcached.utils import contiguous_layout, env_int, page_size, sanity_check

if TYPE_CHECKING:
    from kvcached.observability import KVCachePoolSnapshot

COMFORT_PAGES = 10
_UNITS = {"bytes": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}


@dataclass(frozen=True)
class LimitState:
    """What has become of a limit that this process set for itself.

    status: "applied"; "deferred" while more is mapped, of blocks in use, which go as they are freed; "stale":
    an older revision than the last one; "conflict": the last revision, with another limit; "unavailable":
    there is no memory to limit yet.
    """

    status: str
    reason: str
    revision: int | None
    limit_bytes: int | None
    effective_limit_bytes: int
    mapped_bytes: int
    remaining_bytes: int
    overage_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class KVCacheManager:
    """The blocks of one group.

    num_blocks: how many there are at most. block_size, cell_size: tokens of a block, and bytes of a token in
    one layer's K or V; only their product matters. num_layers, num_kv_buffers: 2 where K and V are apart.
    world_size, pp_rank, async_sched: accepted as the reference has them; who the workers are was said to
    init_kvcached(). reserve_null_block: block 0 is never handed out and always mapped. group_id: whose
    tensors. pool_name: for people; by default the instance's name and the group. layout: where the engine has
    chosen one; then the settings for it don't count.

    Raises RuntimeError before init_kvcached(); KVCachedConfigError for a block that fits into no page. The
    group's tensors must exist when blocks are first asked for; a scheduler waits for its workers'.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        cell_size: int,
        num_layers: int,
        world_size: int = 1,
        pp_rank: int = 0,
        async_sched: bool = False,
        reserve_null_block: bool = False,
        num_kv_buffers: int = 2,
        group_id: int = 0,
        pool_name: str | None = None,
        *,
        tp_size: int | None = None,
        layout: Layout | None = None,
    ) -> None:
        self._runtime = runtime.get()
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}, and must be positive")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.cell_size = cell_size
        self.num_layers = num_layers
        self.num_kv_buffers = num_kv_buffers
        self.world_size = tp_size or world_size
        self.group_id = group_id
        self.reserve_null_block = reserve_null_block
        self.block_mem_size = block_size * cell_size
        self.page_size = page_size()
        self.pool_name = pool_name or f"{self._runtime.instance}_g{group_id}"
        self._layout = layout or Layout(
            num_layers, num_kv_buffers, self.block_mem_size, self.page_size, contiguous_layout()
        )
        self._lock = threading.Lock()
        self._opened: _native.Blocks | None = None
        self._closed = False
        self._comfort = 0
        self._needed = 0
        self._limit: tuple[int | None, int] | None = None
        self._max_pages = 0
        self._page_bytes = 0
        self._spare = 0
        self._withheld: list[int] = []
        self._out: set[int] | None = set() if sanity_check() else None

    # ---- Opening ----

    @property
    def instance(self) -> str:
        return self._runtime.instance

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    def is_ready(self) -> bool:
        """Whether blocks can be asked for without waiting: the tensors exist. Opens them then."""
        if self._opened is None and not self._closed and self._runtime.pool(self.group_id) is not None:
            self._open()
        return self._opened is not None

    @property
    def page_bytes(self) -> int:
        """Of a page over all layers and workers; 0 before there are tensors."""
        return self._page_bytes

    @property
    def capacity_bytes(self) -> int:
        """If all blocks were mapped, over all layers and workers."""
        return self._max_pages * self._page_bytes

    @property
    def layout(self) -> Layout:
        """Of the tensors, once they exist."""
        pool = self._runtime.pool(self.group_id)
        return (pool and pool.known_layout) or self._layout

    @property
    def blocks(self) -> _native.Blocks:
        """The library's, opened when first wanted."""
        return self._opened or self._open()

    def _find_pool(self) -> runtime.Pool:
        pool = self._runtime.pool(self.group_id)
        if pool is None and self._runtime.role.native_role == _native.ROLE_SCHEDULER:
            pool = self._runtime.attach_pool(self.group_id)
        if pool is None:
            raise RuntimeError(f"KV tensors of group {self.group_id} have not been created")
        return pool

    def _open(self) -> _native.Blocks:
        with self._lock:
            if self._opened is not None:
                return self._opened
            if self._closed:
                raise RuntimeError("The KVCacheManager is closed")
            pool = self._find_pool()
            layout = pool.known_layout or self._layout
            if layout.block_bytes != self.block_mem_size:
                raise ValueError(
                    f"Blocks of {self.block_mem_size} bytes were asked for, and the tensors of group "
                    f"{self.group_id} have blocks of {layout.block_bytes}"
                )
            if pool.managers and any(ref() is not None for ref in pool.managers):
                raise RuntimeError(f"Group {self.group_id} has a KVCacheManager already")
            pages = min(layout.pages_for(self.num_blocks), pool.region.pages)
            self._opened = _native.Blocks(
                pool.regions,
                self._block_bytes(pool.region, layout),
                null_block=self.reserve_null_block,
                max_pages=pages,
            )
            self._max_pages = pages
            self._page_bytes = sum(region.page_bytes for region in pool.regions)
            per_page = self._opened.status()["page_blocks"]
            # What the last page has beyond the tensors' end; see _withhold().
            last = layout.block_range(pages - 1)
            self._spare = max(last.stop - max(last.start, self.num_blocks), 0)
            self._comfort = per_page * max(COMFORT_PAGES, env_int("KVCACHED_MAX_RESERVED_PAGES", 0))
            pool.known_layout = layout
            pool.managers[:] = [weakref.ref(self)]
            return self._opened

    @staticmethod
    def _block_bytes(region: _native.Region, layout: Layout) -> int:
        """Of a block in a segment of the first worker's, of whose layers a scheduler may know nothing."""
        share = region.page_bytes // region.segments
        if share % layout.page_bytes:
            raise ValueError(
                f"Pages are {layout.page_bytes} bytes here, and the workers' are no multiple of that: "
                "KVCACHED_PAGE_SIZE_MB differs"
            )
        return share // layout.page_bytes * layout.block_bytes

    def close(self) -> None:
        """Unmaps everything. The tensors stay; what is in them faults."""
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()
        pool = self._runtime.pool(self.group_id)
        if pool is not None:
            pool.managers[:] = [ref for ref in pool.managers if ref() not in (None, self)]

    # ---- Blocks ----

    def alloc(self, need_size: int) -> list[int] | None:
        """So many blocks, all or none. None: memory or blocks are short."""
        try:
            ids = (self._opened or self._open()).alloc(need_size)
        except OutOfMemoryError:
            self._needed = max(self._needed, need_size)
            return None
        if self._spare and ids and max(ids) >= self.num_blocks:
            return self._withhold(ids)
        return ids if self._out is None else self._note_out(ids, self._out)

    def _note_out(self, ids: list[int], out: set[int]) -> list[int]:
        """KVCACHED_SANITY_CHECK: books of our own beside the library's."""
        with self._lock:
            twice = out.intersection(ids)
            if twice or len(set(ids)) != len(ids) or any(not 0 <= i < self.num_blocks for i in ids):
                raise AssertionError(f"Blocks were handed out twice, or don't exist: {sorted(twice or ids)}")
            out.update(ids)
        return ids

    def _withhold(self, ids: list[int]) -> list[int] | None:
        """The last page may have blocks that the tensors don't: they are taken, and never handed out."""
        with self._lock:
            good = ids
            while beyond := [i for i in good if i >= self.num_blocks]:
                good = [i for i in good if i < self.num_blocks]
                self._withheld += beyond
                try:
                    good += self.blocks.alloc(len(beyond))
                except OutOfMemoryError:
                    self.blocks.free(good)
                    return None
        return good if self._out is None else self._note_out(good, self._out)

    def _give_withheld(self) -> None:
        with self._lock:
            self._withheld, withheld = [], self._withheld
        if withheld:
            self.blocks.free(withheld)

    def free(self, indices: Sequence[int]) -> None:
        """Gives blocks back, all or none, in any order. ValueError: one is not allocated, or named twice."""
        blocks = self._opened or self._open()
        if self._withheld:
            self._check_handed_out(indices)
        if self._out is not None:
            self._note_in(indices, self._out)
        blocks.free(indices)

    def _note_in(self, indices: Sequence[int], out: set[int]) -> None:
        with self._lock:
            if len(set(indices)) == len(indices) and out.issuperset(indices):
                out.difference_update(indices)

    def _check_handed_out(self, indices: Sequence[int]) -> None:
        if indices and max(indices) >= self.num_blocks:
            raise ValueError(f"Block {max(indices)} is not allocated: there are {self.num_blocks}")

    def free_after(self, indices: Sequence[int], epoch: int) -> None:
        """As free(), and their pages stay mapped until complete(epoch)."""
        self._check_handed_out(indices)
        if self._out is not None:
            self._note_in(indices, self._out)
        self.blocks.free_after(indices, epoch)

    def complete(self, epoch: int) -> None:
        """What was freed with this epoch or a lower one is used by nothing on the GPU any more."""
        self.blocks.complete(epoch)

    def available_size(self, need: int | None = None) -> int:
        """How many blocks alloc() can have now: a promise, that no other engine can spend, for 100 ms.

        So much is asked for that `need` are available; without it, some pages' worth, or twice what an
        earlier alloc() wanted in vain. More than that may be had: alloc() asks for what it needs.
        """
        blocks = self._opened or self._open()
        available = blocks.available()
        spare = self._spare - len(self._withheld)
        want = (max(self._comfort, 2 * self._needed) if need is None else need) + spare
        if available < want:
            available = self._want(blocks, want)
        return max(available - spare, 0)

    def promised_size(self) -> int:
        """As available_size(), and nothing is asked for."""
        return max(self.blocks.available() - (self._spare - len(self._withheld)), 0)

    def _want(self, blocks: _native.Blocks, want: int) -> int:
        status = blocks.status()
        want = min(want, status["total_blocks"] - status["used_blocks"])
        try:
            return blocks.want(want, -1)
        except Error:
            return blocks.available()  # whoever needs more is told why by alloc()

    def try_to_reserve(self, need_size: int) -> bool:
        """Sets so many free blocks aside; the next allocations take them."""
        try:
            self.blocks.reserve(need_size)
        except OutOfMemoryError:
            return False
        return True

    def free_reserved(self) -> None:
        self.blocks.release()

    def trim(self) -> None:
        """Gives back what is mapped and not used."""
        self._give_withheld()
        self.blocks.trim()

    def clear(self) -> None:
        """Frees all blocks, and what is reserved."""
        with self._lock:
            self._withheld = []
            if self._out is not None:
                self._out.clear()
        self.blocks.clear()

    def resize(self, new_mem_size: int) -> bool:
        """Only so many bytes of each layer's K or V may be used from now on. False: more are in use; they go
        as they are freed."""
        if new_mem_size < 0:
            raise ValueError(f"{new_mem_size} bytes: less than nothing")
        return self._resize(new_mem_size // self.layout.page_bytes)

    def _resize(self, pages: int) -> bool:
        self.blocks.resize(min(pages, self._max_pages))
        return self.blocks.status()["mapped_pages"] <= pages

    # ---- Limits ----

    def set_memory_limit(self, limit_bytes: int | None, *, revision: int) -> LimitState:
        """Of this group, in bytes over all layers and workers; None: no limit of its own. Revisions only
        grow."""
        if limit_bytes is not None and limit_bytes < 0:
            raise ValueError(f"{limit_bytes} bytes: less than nothing")
        if self._limit is not None and revision < self._limit[1]:
            return self._limit_state("stale", f"revision {self._limit[1]} is in force")
        if self._limit is not None and revision == self._limit[1] and limit_bytes != self._limit[0]:
            return self._limit_state("conflict", f"revision {revision} has another limit")
        blocks = self.blocks
        pages = self._max_pages if limit_bytes is None else limit_bytes // self._page_bytes
        self._limit = (limit_bytes, revision)
        blocks.resize(min(pages, self._max_pages))
        return self.memory_limit_state()

    def memory_limit_state(self) -> LimitState:
        if self._opened is None:
            return LimitState("unavailable", "no memory is in use yet", None, None, 0, 0, 0, 0)
        state = self._limit_state("applied", "")
        if state.overage_bytes > 0:
            return self._limit_state("deferred", "blocks above the limit are in use")
        return state

    def _limit_state(self, status: str, reason: str) -> LimitState:
        limit, revision = self._limit or (None, None)
        most = self._max_pages * self._page_bytes
        effective = most if limit is None else min(limit // self._page_bytes * self._page_bytes, most)
        mapped = self.blocks.status()["mapped_pages"] * self._page_bytes
        return LimitState(
            status=status,
            reason=reason,
            revision=revision,
            limit_bytes=limit,
            effective_limit_bytes=effective,
            mapped_bytes=mapped,
            remaining_bytes=max(effective - mapped, 0),
            overage_bytes=max(mapped - effective, 0),
        )

    # ---- Counters ----

    def get_page_occupancy(self, page_ids: Sequence[int]) -> list[int]:
        """How many blocks of each page are allocated."""
        used = self.blocks.occupancy(page_ids)
        beyond = len(self._withheld)
        return [n - beyond if page == self._max_pages - 1 else n for page, n in zip(page_ids, used)]

    def census(self, max_pages: int) -> list[tuple[int, int]]:
        """(page, allocated blocks) of pages that would come free, fewest first."""
        return self.blocks.census(max_pages)

    def page_of(self, block: int) -> int:
        return self.blocks.page_of(block)

    def get_mapped_memory_size(self, unit: str = "gb") -> float:
        """Over all layers and workers. unit: bytes, kb, mb or gb (powers of 1024)."""
        if unit not in _UNITS:
            raise ValueError(f"Unknown unit: {unit}; one of {', '.join(_UNITS)}")
        return self.status()["mapped_pages"] * self._page_bytes / _UNITS[unit]

    def status(self) -> dict[str, int]:
        """Counters of blocks and pages: kvc_blocks_status() of kvclient.h."""
        status = self.blocks.status()
        status["total_blocks"] -= self._spare
        status["used_blocks"] -= len(self._withheld)
        return status

    def observability_snapshot(self, *, integration: str | None = None) -> KVCachePoolSnapshot:
        from kvcached.observability import build_kv_cache_pool_snapshot

        return build_kv_cache_pool_snapshot(self, integration=integration)

    def observability_snapshot_dict(self, *, integration: str | None = None) -> dict[str, Any]:
        return self.observability_snapshot(integration=integration).to_dict()

    @property
    def mem_size(self) -> int:
        """Bytes of one layer's K or V, if all blocks were mapped."""
        return self.layout.pages_for(self.num_blocks) * self.layout.page_bytes
