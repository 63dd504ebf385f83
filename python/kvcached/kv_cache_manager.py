# SPDX-License-Identifier: Apache-2.0
"""Blocks of a KV cache: allocate, free, how many there are.

A thin shell around libkvclient's blocks, where all of the arithmetic is. On mapped pages alloc() and free()
send nothing and keep the interpreter's lock; otherwise memory is asked for, and the lock given up meanwhile.

Threads: all methods, from any. close() waits for none of the others.
"""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kvcached import _native, runtime
from kvcached.errors import (
    DaemonTimeoutError,
    DisconnectedError,
    Error,
    KVCachedConfigError,
    OutOfMemoryError,
)
from kvcached.layout import Layout
from kvcached.utils import contiguous_layout, env_int, ipc_timeout, page_size, sanity_check

if TYPE_CHECKING:
    from kvcached.observability import KVCachePoolSnapshot

CLOSED = "The KVCacheManager is closed"
COMFORT_PAGES = 10
FIRST_WAIT_MS = 100  # of available_size(), where there is nothing at all
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


def check_limit(limit_bytes: int | None, revision: int) -> tuple[int | None, int]:
    """Both as plain ints. TypeError: one is none; ValueError: a limit below 0."""
    limit = None if limit_bytes is None else operator.index(limit_bytes)
    if limit is not None and limit < 0:
        raise ValueError(f"{limit} bytes: less than nothing")
    return limit, operator.index(revision)


def _positive(name: str, number: int) -> int:
    n = operator.index(number)
    if n < 1:
        raise KVCachedConfigError(f"{name} is {n}, and must be positive")
    return n


class KVCacheManager:
    """The blocks of one group.

    num_blocks: how many there are at most. block_size, cell_size: tokens of a block, and bytes of a token in
    one layer's K or V; only their product matters. num_layers, num_kv_buffers: 2 where K and V are apart.
    world_size, pp_rank, async_sched: accepted as the reference has them; who the workers are was said to
    init_kvcached(). reserve_null_block: block 0 is never handed out and always mapped. group_id: whose
    tensors. pool_name: for people; by default the instance's name and the group. layout: where the engine has
    chosen one; then the settings for it don't count.

    Raises RuntimeError before init_kvcached(); KVCachedConfigError for a block that fits into no page, and
    for a number below 1; TypeError for what is no whole number. The group's tensors must exist when blocks
    are first asked for; a scheduler waits for its workers'.
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
        self.num_blocks = _positive("num_blocks", num_blocks)
        self.block_size = _positive("block_size", block_size)
        self.cell_size = _positive("cell_size", cell_size)
        self.num_layers = _positive("num_layers", num_layers)
        self.num_kv_buffers = _positive("num_kv_buffers", num_kv_buffers)
        self.world_size = tp_size or world_size
        self.group_id = operator.index(group_id)
        self.reserve_null_block = reserve_null_block
        self.block_mem_size = self.block_size * self.cell_size
        self.page_size = page_size()
        self.pool_name = pool_name or f"{self._runtime.instance}_g{self.group_id}"
        self._layout = layout or Layout(
            self.num_layers, self.num_kv_buffers, self.block_mem_size, self.page_size, contiguous_layout()
        )
        # Held for moments, and over no call of the library's: close() takes it.
        self._lock = threading.Lock()
        # Held while workers, or the daemon, are waited for.
        self._opening = threading.Lock()
        self._bounding = threading.Lock()
        self._opened: _native.Blocks | None = None
        self._closed = False
        self._comfort = 0
        self._page_blocks = 0
        self._wish = 0  # what available_size() asks for next; 0: the comfortable number
        self._step = 0  # ... by how much that is more than what there was
        self._patience = 0.0
        self._no_wait_until = 0.0
        self._no_first_wait_until = 0.0
        self._no_ask_until = 0.0
        self._limit: tuple[int | None, int] | None = None
        self._size_pages: int | None = None  # of resize()
        self._max_pages = 0
        self._page_bytes = 0
        self._out: set[int] | None = set() if sanity_check() else None
        self._clears = 0

    # ---- Opening ----

    @property
    def instance(self) -> str:
        return self._runtime.instance

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    def is_ready(self) -> bool:
        """Whether blocks can be asked for without waiting: the tensors exist, and are no other manager's.
        Opens them then."""
        if self._opened is None and not self._closed:
            pool = self._runtime.pool(self.group_id)
            if pool is not None and self._runtime.may_claim(pool, self):
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
        self._runtime.check_open()
        pool = self._runtime.pool(self.group_id)
        if pool is None and self._runtime.role.native_role == _native.ROLE_SCHEDULER:
            pool = self._runtime.attach_pool(self.group_id)
        if pool is None:
            raise RuntimeError(f"KV tensors of group {self.group_id} have not been created")
        return pool

    def _open(self) -> _native.Blocks:
        if self._closed:
            raise RuntimeError(CLOSED)
        with self._opening:
            if self._opened is not None:
                return self._opened
            pool = self._find_pool()
            if not self._runtime.claim(pool, self):
                raise RuntimeError(f"Group {self.group_id} has a KVCacheManager already")
            try:
                opened = self._open_blocks(pool)
            except BaseException:
                self._runtime.unclaim(self)
                raise
            from kvcached import control  # which stands on this module

            control.share_again(self._runtime)
            return opened

    def _open_blocks(self, pool: runtime.Pool) -> _native.Blocks:
        layout = pool.known_layout or self._layout
        if layout.block_bytes != self.block_mem_size:
            raise ValueError(
                f"Blocks of {self.block_mem_size} bytes were asked for, and the tensors of group "
                f"{self.group_id} have blocks of {layout.block_bytes}"
            )
        comfort = max(COMFORT_PAGES, env_int("KVCACHED_MAX_RESERVED_PAGES", 0))
        self._patience = ipc_timeout() or 60
        self._max_pages = min(layout.pages_for(self.num_blocks), pool.region.pages)
        self._page_bytes = sum(region.page_bytes for region in pool.regions)
        opened = _native.Blocks(
            pool.regions,
            self._block_bytes(pool.region, layout),
            null_block=self.reserve_null_block,
            max_blocks=min(self.num_blocks, pool.region.pages * layout.page_bytes // layout.block_bytes),
        )
        self._page_blocks = opened.status()["page_blocks"]
        self._comfort = comfort * self._page_blocks
        pool.known_layout = layout
        with self._lock:
            if not self._closed:
                self._opened = opened
                return opened
        opened.close()
        raise RuntimeError(CLOSED)

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
        """Unmaps everything. The tensors stay; what is in them faults. It waits for no other call: one that
        opens the manager meanwhile fails in its own time."""
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, None
        try:
            if opened is not None:
                opened.close()
        finally:
            self._runtime.unclaim(self)

    # ---- Blocks ----

    def alloc(self, need_size: int) -> list[int] | None:
        """So many blocks, all or none. None: memory or blocks are short."""
        clears = self._clears
        try:
            ids = (self._opened or self._open()).alloc(need_size)
        except OutOfMemoryError:
            self._note_refusal(need_size)
            return None
        self._wish = 0
        return ids if self._out is None else self._note_out(ids, self._out, clears)

    def _note_refusal(self, need_size: int) -> None:
        """What there could never be is no reason to ask for more."""
        if need_size <= self.blocks.status()["total_blocks"]:
            self._wish = max(self._wish, 2 * need_size)

    def _note_out(self, ids: list[int], out: set[int], clears: int) -> list[int]:
        """KVCACHED_SANITY_CHECK: books of our own beside the library's. What was allocated while another
        thread called clear() is in no books: it may be free again."""
        with self._lock:
            twice = out.intersection(ids)
            if clears != self._clears:
                return ids
            if twice or len(set(ids)) != len(ids) or any(not 0 <= i < self.num_blocks for i in ids):
                raise AssertionError(f"Blocks were handed out twice, or don't exist: {sorted(twice or ids)}")
            out.update(ids)
        return ids

    def free(self, indices: Iterable[int]) -> None:
        """Gives blocks back, all or none, in any order. ValueError: one is not allocated, or named twice."""
        if self._out is not None:
            indices = self._note_in(indices, self._out)
        (self._opened or self._open()).free(indices)

    def _note_in(self, indices: Iterable[int], out: set[int]) -> list[int]:
        ids = list(indices)
        with self._lock:
            if len(set(ids)) == len(ids) and out.issuperset(ids):
                out.difference_update(ids)
        return ids

    def free_after(self, indices: Iterable[int], epoch: int) -> None:
        """As free(), and their pages stay mapped until complete(epoch)."""
        if self._out is not None:
            indices = self._note_in(indices, self._out)
        self.blocks.free_after(indices, epoch)

    def complete(self, epoch: int) -> None:
        """What was freed with this epoch or a lower one is used by nothing on the GPU any more."""
        self.blocks.complete(epoch)

    def available_size(self, need: int | None = None) -> int:
        """How many blocks alloc() can have now: a promise, that no other engine can spend, for 100 ms.

        With `need` so many are asked for, and the daemon's answer is awaited, up to KVCACHED_IPC_TIMEOUT.

        Without it some pages' worth is asked for, or twice what an alloc() has just wanted in vain, and what
        comes is found by a later call; it waits only where nothing at all is there yet, for a tenth of a
        second. Each further call with no alloc() in between asks for twice as much as the last one, or for
        less where that has not come: whoever waits until this is enough gets there, if memory can be had.

        After an answer that did not come in time nothing is awaited for KVCACHED_IPC_TIMEOUT.
        """
        blocks = self._opened or self._open()
        if need is not None:
            return self._see_to(blocks, need, -1)
        want = self._wish or self._comfort
        if self._wish == 0:
            self._step = want
        available = self._see_to(blocks, want, FIRST_WAIT_MS if blocks.available() == 0 else 0)
        self._step = want if available >= want else max(self._step // 2, self._page_blocks)
        self._wish = min(available, want) + self._step
        return available

    def _see_to(self, blocks: _native.Blocks, want: int, wait_ms: int) -> int:
        available = blocks.available()
        if available < want:
            status = blocks.status()
            want = min(want, status["total_blocks"] - status["used_blocks"])
        return self._ask(blocks, want, wait_ms) if available < want else available

    def _ask(self, blocks: _native.Blocks, want: int, wait_ms: int) -> int:
        now = time.monotonic()
        if now < self._no_wait_until or (wait_ms > 0 and now < self._no_first_wait_until):
            wait_ms = 0
        if wait_ms == 0 and now < self._no_ask_until:
            return blocks.available()
        try:
            return blocks.want(want, wait_ms)
        except (DaemonTimeoutError, DisconnectedError):
            until = time.monotonic() + self._patience
            if wait_ms == 0:  # some wait all the same: see kvc_blocks_want()
                self._no_ask_until = until
            elif wait_ms > 0:  # the daemon may have to ask others first
                self._no_first_wait_until = until
            else:
                self._no_wait_until = until
        except Error:
            """Whoever needs more is told why by alloc()."""
        return blocks.available()

    def promised_size(self) -> int:
        """As available_size(), and nothing is asked for."""
        return self.blocks.available()

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
        self.blocks.trim()

    def clear(self) -> None:
        """Frees all blocks, and what is reserved."""
        try:
            self.blocks.clear()
        finally:
            if self._out is not None:
                with self._lock:
                    self._clears += 1
                    self._out.clear()

    def resize(self, new_mem_size: int) -> bool:
        """Only so many bytes of each layer's K or V may be used from now on, and no more than a limit allows.
        False: more are in use; they go as they are freed."""
        size = operator.index(new_mem_size)
        if size < 0:
            raise ValueError(f"{size} bytes: less than nothing")
        blocks, pages = self.blocks, size // self.layout.page_bytes
        with self._bounding:
            limit = self._limit[0] if self._limit is not None else None
            # A signal's exception comes behind the call, which has been made then.
            self._size_pages = pages
            blocks.resize(self._bound(pages, limit))
        return blocks.status()["mapped_pages"] <= pages

    def _bound(self, size_pages: int | None, limit: int | None) -> int:
        """Pages that may be used: what resize() says and the limit both hold."""
        pages = self._max_pages if size_pages is None else min(size_pages, self._max_pages)
        return pages if limit is None else min(pages, limit // self._page_bytes)

    # ---- Limits ----

    def set_memory_limit(self, limit_bytes: int | None, *, revision: int) -> LimitState:
        """Of this group, in bytes over all layers and workers; None: no limit of its own. Revisions only
        grow."""
        limit, revision = check_limit(limit_bytes, revision)
        known = self._limit
        if known is not None and revision == known[1] and limit != known[0]:
            return self._limit_state("conflict", f"revision {revision} has another limit")
        _ = self.blocks
        return self.set_share(limit, revision)

    def set_share(self, limit: int | None, revision: int) -> LimitState:
        """Of kvcached.control's limit, of which a revision's shares change with the number of managers."""
        blocks = self._opened
        if blocks is None:  # closed meanwhile
            return self.memory_limit_state()
        with self._bounding:
            stale = self._limit is not None and revision < self._limit[1]
            if not stale:
                self._limit = (limit, revision)
                blocks.resize(self._bound(self._size_pages, limit))
        if stale:
            assert self._limit is not None
            return self._limit_state("stale", f"revision {self._limit[1]} is in force")
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
        effective = self._bound(self._size_pages, limit) * self._page_bytes
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

    def get_page_occupancy(self, page_ids: Iterable[int]) -> list[int]:
        """How many blocks of each page are allocated."""
        return self.blocks.occupancy(page_ids)

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
        return self.blocks.status()

    def observability_snapshot(self, *, integration: str | None = None) -> KVCachePoolSnapshot:
        from kvcached.observability import build_kv_cache_pool_snapshot

        return build_kv_cache_pool_snapshot(self, integration=integration)

    def observability_snapshot_dict(self, *, integration: str | None = None) -> dict[str, Any]:
        return self.observability_snapshot(integration=integration).to_dict()

    @property
    def mem_size(self) -> int:
        """Bytes of one layer's K or V, if all blocks were mapped."""
        return self.layout.pages_for(self.num_blocks) * self.layout.page_bytes
