# SPDX-License-Identifier: Apache-2.0
"""SGLang's allocators of KV slots, over blocks of ours.

A block is a page of SGLang's: page_size tokens, one with page size 1. The allocators keep no list of free
pages: libkvclient hands them out, mapping memory as it goes, and takes them back.

available_size() is a promise, in tokens: what it says alloc() can give, for 100 ms, whatever other engines
do. It doesn't say what could be had beyond: SGLang admits requests by it, and memory that is promised is kept
from others. So it has to be told what is needed: by expect(), by the prefill budget for each request that it
considers, by whoever evicts or decodes. Everything is given whole or not at all; None is what SGLang knows as
"out of memory", never an error.

Threads: the scheduler's only.
"""

from __future__ import annotations

import contextlib
import math
import time
import weakref
from typing import Any

import torch
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
from sglang.srt.mem_cache.prefill_budget import PrefillBudget, SWAPrefillBudget
from sglang.srt.utils import get_num_new_pages
from sglang.srt.utils.common import async_h2d

from kvcached.errors import (
    DaemonTimeoutError,
    DisconnectedError,
    KVCachedConfigError,
    OutOfMemoryError,
)
from kvcached.integration.sglang.fence import Fence
from kvcached.integration.sglang.pools import ElasticPool, elastic_pools
from kvcached.kv_cache_manager import KVCacheManager

ASK_AGAIN_SECONDS = 0.01  # after a refusal; the scheduler asks many times in a step

# The library says so in the log; what is mapped serves on, and no more is had.
DAEMON_IS_GONE = (DisconnectedError, DaemonTimeoutError)

fence = Fence()  # of this process' batches


class PageSource:
    """The pages of one pool, and the device's tensors of their numbers.

    While it sleeps it has none, and nothing is mapped, page 0 neither.
    """

    def __init__(self, pool: ElasticPool, device: str) -> None:
        self.pool = pool
        self.device = torch.device(device)
        self._manager: KVCacheManager | None = pool.open_manager()
        # Fewer than the pool's own where one would lie in two pages of memory, and is never handed out.
        self.total = min(pool.size // pool.page_size, self._manager.status()["total_blocks"])
        self._out = torch.zeros(pool.size // pool.page_size + 1, dtype=torch.bool)  # which are handed out
        self.taken = 0  # ... and how many; by our own account, to compare with the library's
        self.needed = 0  # what available() asks for when it isn't told
        self._refused = 0
        self._refused_at = -ASK_AGAIN_SECONDS
        self._asleep = False
        _sources.add(self)

    @property
    def page_bytes(self) -> int:
        """Of a page of libkvclient's, in all layers."""
        return self.pool.kvcached_pool.region.page_bytes

    # ---- How much there is ----

    @property
    def manager(self) -> KVCacheManager | None:
        """None: asleep, or page 0 cannot be mapped yet."""
        if self._manager is None and not self._asleep and self._may_ask(0):
            try:
                self._manager = self.pool.open_manager()
            except (OutOfMemoryError, *DAEMON_IS_GONE):
                self._note_refusal(0)
        return self._manager

    def _may_ask(self, need: int) -> bool:
        """Not at once for what has just been refused, or more."""
        return need < self._refused or time.monotonic() - self._refused_at >= ASK_AGAIN_SECONDS

    def _note_refusal(self, need: int) -> None:
        self._refused, self._refused_at = need, time.monotonic()

    def available(self) -> int:
        """How many take() can have. It asks for what was expected."""
        manager = self.manager
        if manager is None:
            return 0
        need = min(self.needed, self.total - self.taken)
        found = manager.promised_size()
        if found < need and self._may_ask(need):
            found = manager.available_size(need)
            if found < need:
                self._note_refusal(need)
        return found

    def expect(self, pages: int) -> None:
        """So many will be wanted at once, before long."""
        self.needed = max(pages, 0)
        if pages > 0:
            self.available()

    def used(self) -> int:
        """How many are handed out, by the library's account."""
        return self._manager.status()["used_blocks"] if self._manager is not None else 0

    def not_out(self) -> torch.Tensor:
        """(n,) int64, on the device: all pages that nobody has, whether memory can be had for them or not."""
        free = (~self._out).nonzero().flatten()
        return free[free > 0].to(self.device)

    # ---- Taking and giving ----

    def take(self, n: int) -> torch.Tensor | None:
        """(n,) int64: numbers of pages, from 1 on. None: there are not so many."""
        manager = self.manager
        if manager is None:
            return None
        try:
            ids = manager.alloc(n) if n else []
        except DAEMON_IS_GONE:
            return None
        if ids is None:
            return None
        self._out[ids] = True
        self.taken += n
        if self.device.type == "cuda":
            # Fresh pages are cleared in the default stream.
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        return async_h2d(ids, dtype=torch.int64, device=self.device)

    def give(self, pages: torch.Tensor) -> None:
        """Takes pages back, which may be handed out again at once. ValueError: one is not out."""
        if pages.numel() == 0:
            return
        if self._manager is None:
            raise ValueError("Pages were freed that a flush or a sleep has taken back already")
        ids = pages.tolist()  # waits for what is ahead in the scheduler's stream
        epoch = fence.pending
        if epoch:
            self._manager.free_after(ids, epoch)
        else:
            self._manager.free(ids)
        self._out[ids] = False
        self.taken -= len(ids)

    def completed(self, epoch: int) -> None:
        """The GPU is through with that batch."""
        if self._manager is not None:
            with contextlib.suppress(*DAEMON_IS_GONE):
                self._manager.complete(epoch)

    def clear(self) -> None:
        fence.wait()
        if self._manager is not None:
            self._manager.clear()
        self._out.zero_()
        self.taken = 0
        self.needed = 0

    # ---- Giving memory back ----

    def trim(self) -> None:
        """What is mapped and not used goes back."""
        if self._manager is not None:
            with contextlib.suppress(*DAEMON_IS_GONE):
                self._manager.trim()

    def sleep(self) -> None:
        """Everything goes back. ValueError: there is something in it."""
        if self.taken:
            raise ValueError(f"{self.taken} pages are in use; flush the cache first")
        fence.wait()
        self._asleep = True
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(*DAEMON_IS_GONE):
                manager.close()
                self.pool.kvcached_pool.client.trim()

    def wake(self) -> None:
        """Memory is asked for when it is needed; until page 0 can be had, nothing is available."""
        self._asleep = False
        self._refused_at = -ASK_AGAIN_SECONDS


_sources: weakref.WeakSet[PageSource] = weakref.WeakSet()


def sources() -> list[PageSource]:
    """All of this process."""
    return list(_sources)


class ElasticAllocator:
    """What both allocators have besides SGLang's."""

    source: PageSource
    page_size: int
    size: int

    def _begin(self, kvcache: Any, size: int, page_size: int, device: str, need_sort: bool) -> None:
        pools = elastic_pools(kvcache)
        if not pools:
            raise KVCachedConfigError(f"{type(kvcache).__name__} is no KV pool of kvcached's")
        if need_sort:
            raise KVCachedConfigError("kvcached cannot serve disaggregation; use it in whole engines")
        pool = pools[0]
        if pool.page_size != page_size or pool.size < size:
            raise KVCachedConfigError(
                f"An allocator of {size} tokens in pages of {page_size} does not go with a pool of "
                f"{pool.size} in pages of {pool.page_size}"
            )
        self.source = PageSource(pool, device)

    @property
    def capacity(self) -> int:
        """Tokens that can be handed out at most; `size` of them but for what lies across pages."""
        return self.source.total * self.page_size

    def expect(self, tokens: float) -> None:
        """So many tokens will be allocated at once, before long: available_size() asks for them. SGLang's
        estimates are no whole numbers while requests run."""
        self.source.expect(math.ceil(tokens / self.page_size))

    def available_size(self) -> int:
        """In tokens, see above."""
        return self.source.available() * self.page_size

    def used_size(self) -> int:
        """Tokens that are handed out, whole pages of them."""
        return self.source.used() * self.page_size

    def verify_byte_accounting(self) -> list[str]:
        """What doesn't add up, in words."""
        used, taken = self.source.used(), self.source.taken
        return [] if used == taken else [f"{taken} KV pages are handed out, and {used} are in use"]

    def get_all_free_pages(self) -> torch.Tensor:
        """(n,) int64: for SGLang's checks that nobody uses a free page."""
        return self.source.not_out()

    def merge_and_sort_free(self) -> None:
        pass

    def create_prefill_budget(self, tree_cache: Any, *, num_mixed_decode_tokens: int = 0) -> PrefillBudget:
        return ElasticPrefillBudget(self, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens)

    def evict_to_free_tokens(self, tree_cache: Any, num_tokens: int) -> bool | None:
        self.expect(num_tokens)
        evicted: bool | None = super().evict_to_free_tokens(tree_cache, num_tokens)  # type: ignore[misc]
        return evicted

    def _empty(self) -> torch.Tensor:
        return torch.empty((0,), dtype=torch.int64, device=self.source.device)


class ElasticTokenToKVPoolAllocator(ElasticAllocator, TokenToKVPoolAllocator):
    """For page size 1."""

    def __init__(self, size: int, dtype: torch.dtype, device: str, kvcache: Any, need_sort: bool) -> None:
        self._begin(kvcache, size, 1, device, need_sort)
        super().__init__(size, dtype, device, kvcache, need_sort)

    def clear(self) -> None:
        self.source.clear()
        self.free_group = None
        self.free_pages = self.release_pages = self._empty()

    def alloc(self, need_size: int) -> torch.Tensor | None:
        return self.source.take(need_size)

    def free(self, free_index: torch.Tensor) -> None:
        if free_index.numel() == 0:
            return
        if self.free_group is None:
            self.source.give(free_index)
        else:
            self.free_group.append(self._copy_for_free_group(free_index))


class ElasticPagedTokenToKVPoolAllocator(ElasticAllocator, PagedTokenToKVPoolAllocator):
    """For larger pages. SGLang's kernels say which tokens of which page: they find in free_pages just the
    pages that the call needs."""

    def __init__(
        self, size: int, page_size: int, dtype: torch.dtype, device: str, kvcache: Any, need_sort: bool
    ) -> None:
        self._begin(kvcache, size, page_size, device, need_sort)
        super().__init__(size, page_size, dtype, device, kvcache, need_sort)

    def clear(self) -> None:
        self.source.clear()
        super().clear()
        self.free_pages = self._empty()

    def _stage(self, n: int) -> bool:
        """All or nothing."""
        pages = self.source.take(n)
        if pages is None:
            return False
        self.free_pages = pages
        return True

    def _unstage(self) -> None:
        """After a call that took less than was there."""
        pages, self.free_pages = self.free_pages, self._empty()
        self.source.give(pages)

    def alloc(self, need_size: int) -> torch.Tensor | None:
        if not self._stage(need_size // self.page_size):
            return None
        try:
            return super().alloc(need_size)
        finally:
            self._unstage()

    def alloc_extend(
        self,
        prefix_lens: torch.Tensor,
        prefix_lens_cpu: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        last_loc: torch.Tensor,
        extend_num_tokens: int,
        num_new_pages: int | None = None,
    ) -> torch.Tensor | None:
        if num_new_pages is None:
            num_new_pages = int(
                get_num_new_pages(
                    seq_lens=seq_lens_cpu, page_size=self.page_size, prefix_lens=prefix_lens_cpu
                )
            )
        if not self._stage(num_new_pages):
            return None
        try:
            return super().alloc_extend(
                prefix_lens,
                prefix_lens_cpu,
                seq_lens,
                seq_lens_cpu,
                last_loc,
                extend_num_tokens,
                num_new_pages=num_new_pages,
            )
        finally:
            self._unstage()

    def alloc_decode(
        self, seq_lens: torch.Tensor, seq_lens_cpu: torch.Tensor, last_loc: torch.Tensor
    ) -> torch.Tensor | None:
        need = int(get_num_new_pages(seq_lens=seq_lens_cpu, page_size=self.page_size, decode=True))
        if not self._stage(need):
            return None
        try:
            return super().alloc_decode(seq_lens, seq_lens_cpu, last_loc)
        finally:
            self._unstage()

    def _release_page_ids(self, *page_ids: torch.Tensor) -> None:
        for pages in page_ids:
            self.source.give(pages)

    def _debug_check_no_duplicate_pages(self) -> None:
        """The library refuses what is freed twice."""


class ElasticSWATokenToKVPoolAllocator(SWATokenToKVPoolAllocator):
    """Full attention and sliding windows, each with pages of its own."""

    def __init__(
        self,
        size: int,
        size_swa: int,
        page_size: int,
        dtype: torch.dtype,
        device: str,
        kvcache: Any,
        need_sort: bool,
        req_to_token_pool: Any = None,
    ) -> None:
        super().__init__(size, size_swa, page_size, dtype, device, kvcache, need_sort, req_to_token_pool)
        if self.swa_req_ring:
            raise KVCachedConfigError("kvcached cannot serve a ring of sliding windows per request")
        self.full_attn_allocator = make_allocator(
            size, page_size, dtype, device, kvcache.full_kv_pool, need_sort
        )
        self.swa_attn_allocator = make_allocator(
            size_swa, page_size, dtype, device, kvcache.swa_kv_pool, need_sort
        )

    def expect(self, tokens: float) -> None:
        self.full_attn_allocator.expect(tokens)
        self.swa_attn_allocator.expect(min(tokens, self.swa_attn_allocator.size))

    def create_prefill_budget(self, tree_cache: Any, *, num_mixed_decode_tokens: int = 0) -> SWAPrefillBudget:
        return ElasticSWAPrefillBudget(self, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens)

    def evict_to_free_tokens(self, tree_cache: Any, num_tokens: int) -> None:
        self.expect(num_tokens)
        super().evict_to_free_tokens(tree_cache, num_tokens)

    def verify_byte_accounting(self) -> list[str]:
        return [
            *self.full_attn_allocator.verify_byte_accounting(),
            *self.swa_attn_allocator.verify_byte_accounting(),
        ]


class _Asking:
    """A prefill budget that has memory asked for before it says that there is none."""

    allocator: Any
    total_offset: float
    current_offset: float

    def _ask(self, tokens: float) -> None:
        missing = tokens - self._available_and_evictable()  # type: ignore[attr-defined]
        if missing > 0:
            self.allocator.expect(self.allocator_available() + missing)

    def allocator_available(self) -> int:
        return int(self.allocator.available_size())

    def has_capacity(self) -> bool:
        self._ask(max(self.total_offset, self.current_offset) + 1)
        return bool(super().has_capacity())  # type: ignore[misc]

    def check_prefill(self, *, total_tokens: int, **request: Any) -> tuple[bool, int | None]:
        self._ask(self.total_offset + total_tokens + 1)
        verdict: tuple[bool, int | None] = super().check_prefill(  # type: ignore[misc]
            total_tokens=total_tokens, **request
        )
        return verdict

    def can_allocate_prefill(self, *, paged_input: int, **request: Any) -> bool:
        self._ask(max(self.total_offset, self.current_offset) + paged_input)
        return bool(super().can_allocate_prefill(paged_input=paged_input, **request))  # type: ignore[misc]

    def available_chunk_tokens(self, chunk_limit: int) -> int | None:
        self._ask(self.total_offset + chunk_limit)
        tokens: int | None = super().available_chunk_tokens(chunk_limit)  # type: ignore[misc]
        return tokens


class ElasticPrefillBudget(_Asking, PrefillBudget):
    pass


class ElasticSWAPrefillBudget(_Asking, SWAPrefillBudget):
    def allocator_available(self) -> int:
        return int(self.allocator.full_available_size())


def make_allocator(
    size: int, page_size: int, dtype: torch.dtype, device: str, kvcache: Any, need_sort: bool
) -> ElasticTokenToKVPoolAllocator | ElasticPagedTokenToKVPoolAllocator:
    """For one pool of ours."""
    if page_size == 1:
        return ElasticTokenToKVPoolAllocator(size, dtype, device, kvcache, need_sort)
    return ElasticPagedTokenToKVPoolAllocator(size, page_size, dtype, device, kvcache, need_sort)


def sources_of(allocator: Any) -> list[PageSource]:
    """Full attention first, then sliding windows; none of an allocator that isn't ours."""
    if isinstance(allocator, ElasticAllocator):
        return [allocator.source]
    if isinstance(allocator, ElasticSWATokenToKVPoolAllocator):
        return [allocator.full_attn_allocator.source, allocator.swa_attn_allocator.source]
    return []
