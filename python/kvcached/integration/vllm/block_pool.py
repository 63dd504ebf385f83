# SPDX-License-Identifier: Apache-2.0
"""vLLM's block pool over memory that comes and goes.

ElasticBlockPool is vLLM's BlockPool, with its prefix cache, events and metrics, and keeps in its queue of
free blocks only those that have something cached. All others are the memory's (a KVCacheManager), which has
them in pages that it maps and unmaps. A block that is cached and that no request uses stays allocated there
until it is evicted: for another request, above the bound on cached blocks, or when memory is wanted back,
and then page by page, so that memory comes free with it.

Threads: the engine's thread works in turns (`with pool.turn`), in which it may hold blocks that it has
looked up and not taken yet. Notices that memory is wanted come on a thread of the library, which must not
wait: between two turns it evicts by itself, during one it leaves the notice to the turn's end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Protocol

from vllm.v1.core.block_pool import BlockPool

from kvcached._native import E_WORKER
from kvcached.errors import (
    DaemonTimeoutError,
    DisconnectedError,
    Error,
    KVCachePoolExhausted,
    OutOfMemoryError,
)
from kvcached.utils import get_kvcached_logger

logger = get_kvcached_logger("kvcached.vllm")


class Memory(Protocol):
    """What the pool wants of a KVCacheManager."""

    def alloc(self, need_size: int) -> list[int] | None: ...
    def free(self, indices: Sequence[int]) -> None: ...
    def available_size(self, need: int | None = None) -> int: ...
    def page_of(self, block: int) -> int: ...
    def get_page_occupancy(self, page_ids: Sequence[int]) -> list[int]: ...


class Source(Protocol):
    """Where memory comes from."""

    page_bytes: int  # of a page over all layers and workers
    page_blocks: int

    def open(self) -> Memory:
        """Block 0 is its own from now on, and mapped. OutOfMemoryError: there is not even that much."""

    def close(self, memory: Any) -> None:
        """What open() returned; what is kept for it goes, too."""

    def overage_bytes(self) -> int:
        """How much more the instance has than its limit allows."""

    def is_lost(self) -> bool:
        """Whether nothing more can come from it, ever."""


class Turn:
    """See the module. Turns of one thread may lie in each other. notices: what answer() is for, between
    turns."""

    def __init__(self, notices: deque[int], answer: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._depth = 0
        self._notices = notices
        self._answer = answer

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner != me:
            self._lock.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = 0
            self._lock.release()
            self.between()

    def between(self) -> None:
        """Answers what is there, unless a turn is on, which then does it at its end."""
        while self._notices and self._lock.acquire(blocking=False):
            try:
                self._answer()
            finally:
                self._lock.release()


class ElasticBlockPool(BlockPool):
    """source: where memory comes from. max_cached_blocks: how many blocks that no request uses may stay
    cached; None: any number. The rest is vLLM's BlockPool's.

    held: blocks that the memory has handed out; evictable: those of them that no request uses.
    """

    def __init__(
        self,
        source: Source,
        max_cached_blocks: int | None,
        num_gpu_blocks: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_gpu_blocks, *args, **kwargs)
        queue = self.free_block_queue
        queue.popleft_n(queue.num_free_blocks)
        self.source = source
        self.max_cached_blocks = max_cached_blocks
        self.held = 0
        self.notices: deque[int] = deque()  # bytes that are wanted back
        self.over = False  # the instance has more than its limit allows
        self.turn = Turn(self.notices, self._answer_notices)
        self._memory: Memory | None = source.open()
        self._resetting = False
        self._silent = False  # the daemon was asked in vain, and that was said

    # ---- Memory ----

    @property
    def asleep(self) -> bool:
        return self._memory is None

    def sleep(self) -> None:
        """Gives everything back, block 0 too. No block is held."""
        memory, self._memory = self._memory, None
        if memory is not None:
            self.source.close(memory)

    def wake(self) -> bool:
        """False: others have the memory now; the next step tries again."""
        if self._memory is None:
            try:
                self._memory = self.source.open()
            except (OutOfMemoryError, DaemonTimeoutError) as error:
                logger.warning("no memory to wake up with: %s", error)
                return False
        return True

    def begin_step(self, need: int) -> None:
        """Of the scheduler, which will hardly take more than `need` blocks: sees to it that they are
        there."""
        if self._memory is None and not self.wake():
            return
        if self.over:
            self._reduce()
        if need and not self.over:
            assert self._memory is not None
            self._memory.available_size(need)

    def has(self, n: int) -> bool:
        """Whether so many blocks are there, without asking anybody for more."""
        return self._memory is not None and not self.over and self._memory.available_size(0) >= n

    @property
    def evictable(self) -> int:
        queued: int = self.free_block_queue.num_free_blocks
        return queued

    def _release(self, ids: Sequence[int]) -> None:
        """Their pages may be unmapped now: no step that is under way uses them."""
        if not ids:
            return
        self.held -= len(ids)
        assert self._memory is not None
        try:
            self._memory.free(ids)
        except Error as error:  # they are free all the same; the daemon has not confirmed what came back
            logger.warning("%s", error)

    # ---- What vLLM's pool does ----

    def get_num_free_blocks(self) -> int:
        """Those that get_new_blocks() can have: cached ones that nobody uses, and what the memory
        promises."""
        if self._resetting:
            return int(self.num_gpu_blocks) - 1 - (self.held - self.evictable)
        if self._memory is None or self.over:
            return 0
        return self.evictable + self._memory.available_size(0)

    def get_new_blocks(self, num_blocks: int) -> list[Any]:
        ids = self._take(num_blocks)
        blocks = [self.blocks[i] for i in ids]
        if len(ids) < num_blocks:
            blocks += self.free_block_queue.popleft_n(num_blocks - len(ids))
        if getattr(self, "_reuse_watchers", None):
            self._notify_reuse(blocks)
        for block in blocks:
            if self.enable_caching:
                self._maybe_evict_cached_block(block)
            block.ref_cnt = 1
            if self.metrics_collector:
                self.metrics_collector.on_block_allocated(block)
        return blocks

    def _take(self, n: int) -> list[int]:
        """Ids of new blocks, at most n, where the queue has the rest."""
        memory, queued = self._memory, self.evictable
        if memory is not None:
            available = memory.available_size(0)
            if available + queued < n:
                available = memory.available_size(n - queued)
            for k in (min(n, available), n - queued):
                ids = self._ask(memory, k) if k > 0 and k + queued >= n else None
                if ids is not None:
                    self.held += len(ids)
                    return ids
        if queued >= n:
            return []
        raise KVCachePoolExhausted(f"Cannot get {n} free blocks from the pool")

    def _ask(self, memory: Memory, n: int) -> list[int] | None:
        """A daemon or a worker that is gone, doesn't answer or cannot map is a shortage: what is mapped stays
        usable, and requests go on in that, if need be one after the other."""
        try:
            ids = memory.alloc(n)
        except Error as error:
            if not isinstance(error, (DisconnectedError, DaemonTimeoutError)) and error.code != E_WORKER:
                raise
            if not self._silent:
                logger.warning("going on with the memory that is mapped: %s", error)
            self._silent = True
            return None
        self._silent = self._silent and ids is None
        return ids

    def check_hope(self) -> None:
        """Of a scheduler that could admit no request. DisconnectedError: none will ever be: nothing is in
        use, and no more can come."""
        if self.held == self.evictable and self.source.is_lost():
            raise DisconnectedError(
                "kvcachedd, or a worker, is gone, and what is still mapped of the KV cache is too little for "
                "the requests that wait"
            )

    def free_blocks(self, *args: Any, **kwargs: Any) -> None:
        super().free_blocks(*args, **kwargs)
        self._release_front()
        if self.max_cached_blocks is not None:
            self._evict(self._oldest(self.evictable - self.max_cached_blocks))
            if self.evictable and self.evictable == self.held:
                self._gather(self.max_cached_blocks)

    def _release_front(self) -> None:
        """Blocks that have nothing cached are put at the queue's front; a watched one's contents are being
        read."""
        queue, watched = self.free_block_queue, getattr(self, "_reuse_watchers", {})
        ids = []
        while queue.num_free_blocks:
            first = queue.fake_free_list_head.next_free_block
            if first.block_hash is not None or first.block_id in watched:
                break
            ids.append(queue.popleft().block_id)
        self._release(ids)

    def evict_blocks(self, block_ids: set[int]) -> None:
        super().evict_blocks(block_ids)
        blocks = (self.blocks[i] for i in block_ids)
        self._evict([b for b in blocks if b.ref_cnt == 0 and b.next_free_block is not None])

    def reset_prefix_cache(self) -> bool:
        self._resetting = True
        try:
            done = bool(super().reset_prefix_cache())
        finally:
            self._resetting = False
        if done:
            self._release_front()
        return done

    def get_usage(self) -> float:
        """Of all addresses: 1 is a whole GPU's worth."""
        total: int = self.num_gpu_blocks - 1
        return (self.held - self.evictable) / max(total, 1)

    # ---- Eviction ----

    def _oldest(self, n: int) -> list[Any]:
        block = self.free_block_queue.fake_free_list_head.next_free_block
        blocks: list[Any] = []
        while len(blocks) < n:
            blocks.append(block)
            block = block.next_free_block
        return blocks

    def _evict(self, blocks: Iterable[Any]) -> None:
        """Takes blocks from the queue and out of the prefix cache, and gives them back."""
        ids = []
        for block in blocks:
            self.free_block_queue.remove(block)
            self._maybe_evict_cached_block(block)
            ids.append(block.block_id)
        if ids and getattr(self, "_reuse_watchers", None):
            self._notify_reuse([self.blocks[i] for i in ids])
        self._release(ids)

    def _loose_pages(self) -> list[list[Any]]:
        """For each page that has nothing but evictable blocks: those blocks. Longest unused pages first: a
        page is as old as its youngest block."""
        assert self._memory is not None
        pages: dict[int, list[Any]] = {}
        for block in self._oldest(self.evictable):
            page = self._memory.page_of(block.block_id)
            blocks = pages.pop(page, [])
            blocks.append(block)
            pages[page] = blocks  # behind all others: this block is younger
        used = self._memory.get_page_occupancy(list(pages))
        null_page = self._memory.page_of(0)
        return [b for (page, b), n in zip(pages.items(), used) if n == len(b) and page != null_page]

    def _gather(self, most: int) -> None:
        """Nobody uses anything now, and what is cached keeps pages, which may be many with little in each: no
        more of them stay than so many blocks need, those with the most."""
        pages = sorted(self._loose_pages(), key=len)
        keep = -(-most // self.source.page_blocks)
        for blocks in pages[: max(len(pages) - keep, 0)]:
            self._evict(blocks)

    def evict_pages(self, n_bytes: int) -> int:
        """Evicts cached blocks until that many bytes have come free. How many have: less where requests use
        the rest."""
        freed = 0
        if self._memory is not None and n_bytes > 0 and self.evictable:
            for blocks in self._loose_pages():
                if freed >= n_bytes:
                    break
                self._evict(blocks)
                freed += self.source.page_bytes
        return freed

    # ---- Memory that is wanted back ----

    def on_reclaim(self, n_bytes: int, deadline_ms: int) -> None:
        """Of the library, on its thread."""
        del deadline_ms
        self.notices.append(n_bytes)
        self.turn.between()

    def _answer_notices(self) -> None:
        """Between turns."""
        n_bytes = 0
        while self.notices:
            n_bytes = max(n_bytes, self.notices.popleft())
        self.evict_pages(n_bytes)
        self._reduce()

    def _reduce(self) -> None:
        """While the instance is above its limit nothing counts as free: requests that grow are preempted, and
        what they leave cached is evicted, until the limit is met."""
        overage = self.source.overage_bytes()
        if overage and self.evict_pages(overage):
            overage = self.source.overage_bytes()
        self.over = overage > 0
