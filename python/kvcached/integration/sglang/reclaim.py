# SPDX-License-Identifier: Apache-2.0
"""What kvcached does in each round of the scheduler's loop, and giving memory back when it is asked for.

A request for memory comes on a thread of the library, and the tree of prefixes belongs to the scheduler: so
the request is put down, and dealt with in the next round. Cached prefixes are evicted, page by page where the
tree can name its leaves (SGLang's Python core can, its Rust core cannot): first the pages with the fewest
tokens, and of each all that hold tokens in it. Where no page comes free like that the tree evicts by its own
rule, a page's worth of tokens at a time. What is freed goes back at once while the daemon asks for it.
Requests that run keep what they have; when memory is short for their next token SGLang retracts some.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang.srt.mem_cache.base_prefix_cache import EvictParams

from kvcached import runtime
from kvcached.integration.sglang.allocators import PageSource, fence
from kvcached.utils import get_kvcached_logger, max_cached_tokens

log = get_kvcached_logger("kvcached.sglang")


@dataclass(frozen=True)
class Leaf:
    """A leaf of the tree that nobody uses. `pages`: which of libkvclient's it has tokens in, and how many
    blocks there."""

    evict: Callable[[], object]
    pages: Counter[int]


def _unified_leaves(tree: Any) -> list[tuple[Callable[[], object], Any]]:
    from sglang.srt.mem_cache.unified_cache.components import ComponentType

    def evictor(node: Any) -> Callable[[], object]:
        return lambda: tree._evict_device_leaf(node.id, dict.fromkeys(tree.tree_components, 0))

    nodes = list(tree.tree_core.evictable_device_leaves)
    return [(evictor(node), node.component_data[ComponentType.FULL].value) for node in nodes]


def _radix_leaves(tree: Any) -> list[tuple[Callable[[], object], Any]]:
    def evictor(node: Any) -> Callable[[], object]:
        def evict() -> None:
            tree.token_to_kv_pool_allocator.free_segment(node.value, start_pos=0)
            tree._delete_leaf(node)
            tree.kv_events.record_remove(node)

        return evict

    return [(evictor(node), node.value) for node in list(tree.evictable_leaves)]


def find_leaves(tree: Any, source: PageSource) -> list[Leaf]:
    """None at all where the tree cannot name them."""
    if hasattr(getattr(tree, "tree_core", None), "evictable_device_leaves"):
        found = _unified_leaves(tree)
    elif hasattr(tree, "evictable_leaves"):
        found = _radix_leaves(tree)
    else:
        return []
    manager, page_size = source.manager, source.pool.page_size
    if manager is None:
        return []
    return [
        Leaf(evict, Counter(manager.page_of(slot // page_size) for slot in slots[::page_size].tolist()))
        for evict, slots in found
        if slots is not None
    ]


def cheapest(leaves: list[Leaf], census: list[tuple[int, int]], pages: int) -> list[Leaf]:
    """Those whose eviction frees that many pages, or as many as there are. census: (page, blocks in use),
    cheapest first. Pure."""
    held: Counter[int] = Counter()
    in_page: dict[int, list[int]] = {}
    for i, leaf in enumerate(leaves):
        held.update(leaf.pages)
        for page in leaf.pages:
            in_page.setdefault(page, []).append(i)
    chosen: dict[int, None] = {}
    freed = 0
    for page, used in census:
        if freed >= pages:
            break
        if held[page] == used:
            chosen.update(dict.fromkeys(in_page[page]))
            freed += 1
    return [leaves[i] for i in chosen]


class Reclaimer:
    """Frees what an allocator's tree can spare."""

    def __init__(self, tree: Any, sources: list[PageSource]) -> None:
        self.tree = tree
        self.sources = sources

    def _held_bytes(self) -> int:
        """In pages that blocks in use keep."""
        n = 0
        for source in self.sources:
            if source.manager is not None:
                status = source.manager.status()
                n += (status["partly_pages"] + status["full_pages"]) * source.page_bytes
        return n

    def free(self, n_bytes: int) -> int:
        """Evicts until so many bytes of whole pages are free, or nothing is left to evict. How many are."""
        before = self._held_bytes()

        def missing() -> int:
            return n_bytes - (before - self._held_bytes())

        source = self.sources[0]
        while missing() > 0 and self._evict_pages(source, -(-missing() // source.page_bytes)):
            pass
        while missing() > 0 and self._evict_oldest(source):
            pass
        return before - self._held_bytes()

    def _evict_pages(self, source: PageSource, pages: int) -> bool:
        manager = source.manager
        if manager is None:
            return False
        leaves = find_leaves(self.tree, source)
        if not leaves:
            return False
        status = manager.status()
        chosen = cheapest(leaves, manager.census(status["partly_pages"] + status["full_pages"]), pages)
        for leaf in chosen:
            leaf.evict()
        return bool(chosen)

    def _evict_oldest(self, source: PageSource) -> bool:
        manager = source.manager
        if manager is None:
            return False
        tokens = manager.status()["page_blocks"] * source.pool.page_size
        return bool(self.tree.evict(EvictParams(num_tokens=tokens)).num_tokens_evicted > 0)


class Loop:
    """Of one scheduler. All but _on_notice() is for its thread."""

    def __init__(self, tree: Any, sources: list[PageSource]) -> None:
        self.reclaimer = Reclaimer(tree, sources)
        self._max_cached = max_cached_tokens()
        self._lock = threading.Lock()
        self._wanted = 0
        self._told = 0
        runtime.get().add_reclaimer(self._on_notice)

    def _on_notice(self, n_bytes: int, deadline_ms: int) -> None:
        """On the library's thread. A later notice says what is still missing, so it replaces the last."""
        with self._lock:
            self._wanted = n_bytes

    def _take_notice(self) -> int:
        with self._lock:
            wanted, self._wanted = self._wanted, 0
        return wanted

    def step(self, idle: bool) -> None:
        """Once in each round, before the next batch is chosen. idle: no request runs or waits."""
        epoch = fence.poll()
        if epoch > self._told:
            for source in self.reclaimer.sources:
                source.completed(epoch)
            self._told = epoch
        if idle:  # then nothing is kept from others for it
            for source in self.reclaimer.sources:
                source.needed = 0
        if self._max_cached is not None:
            self._bound_cache(self._max_cached)
        wanted = self._take_notice()
        if wanted:
            freed = self.reclaimer.free(wanted)
            for source in self.reclaimer.sources:
                source.trim()
            log.info("asked for %d bytes, evicted %d", wanted, freed)

    def _bound_cache(self, tokens: int) -> None:
        tree = self.reclaimer.tree
        held = tree.full_evictable_size() if tree.supports_mamba() else tree.evictable_size()
        if held > tokens:
            tree.evict(EvictParams(num_tokens=held - tokens))
