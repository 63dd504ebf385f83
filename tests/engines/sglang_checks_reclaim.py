# SPDX-License-Identifier: Apache-2.0
"""Checks of memory that is given back: cached prefixes that are evicted when it is asked for, and sleep.

Run by sglang_runner.py."""

from __future__ import annotations

from array import array
from collections import Counter
from types import SimpleNamespace

from engines.sglang_support import (
    PAGE_TOKENS,
    elastic,
    found,
    kvctl,
    load_plugin,
    make_tree,
    remember,
    scheduler_of,
)
from harness.broker import eventually

# isort: split
import torch
from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.runtime_context import get_parallel

from kvcached import runtime
from kvcached.integration.sglang import reclaim


def reclaim_on_notice(kind: str) -> None:
    """A limit below what is used is met by the tree, in the scheduler's loop, with cached prefixes only."""
    load_plugin()
    _, allocator = elastic()
    tree = make_tree(kind, allocator)
    page_bytes = allocator.source.page_bytes
    manager = allocator.source.manager
    scheduler = scheduler_of(allocator, tree)
    with get_parallel().override(pp_rank=0, attn_tp_rank=0, attn_cp_rank=0):
        scheduler.ingest_requests()
    prefixes = [range(i * 10_000, i * 10_000 + PAGE_TOKENS) for i in range(6)]
    for tokens in prefixes:
        remember(tree, allocator, tokens)
    running = tree.match_prefix(MatchPrefixParams(key=RadixKey(array("q", prefixes[0]))))
    lock = tree.lock(running.last_device_node)
    kvctl("limit", runtime.get().instance, str(3 * page_bytes))

    def is_within_limit() -> bool:
        with get_parallel().override(pp_rank=0, attn_tp_rank=0, attn_cp_rank=0):
            scheduler.ingest_requests()
        return bool(manager.status()["mapped_pages"] <= 3)

    eventually(is_within_limit)
    assert found(tree, prefixes[0]) == PAGE_TOKENS
    assert 0 < tree.protected_size() <= allocator.used_size() < 6 * PAGE_TOKENS
    assert allocator.used_size() == tree.protected_size() + tree.evictable_size()
    assert allocator.alloc(4 * PAGE_TOKENS) is None
    tree.unlock(lock)


def evicts_by_page(kind: str) -> None:
    """Of scattered prefixes those go that keep a page, not those that were used longest ago."""
    _, allocator = elastic()
    tree = make_tree(kind, allocator)
    source = allocator.source
    slots = allocator.alloc(4 * PAGE_TOKENS - 1)  # pages 0 to 3
    by_page = [slots[slots // PAGE_TOKENS == page] for page in range(4)]
    oldest = torch.cat([by_page[0][:8], by_page[1][:8]])
    rest = torch.cat([by_page[0][8:], by_page[1][8:], by_page[2][8:], by_page[3]])
    single = by_page[2][:8]
    for start, value in ((0, oldest), (10_000, single)):
        key = RadixKey(array("q", range(start, start + len(value))))
        tree.insert(InsertParams(key=key, value=value.clone()))
    leaves = tree.evictable_leaves if kind == "radix" else tree.tree_core.evictable_device_leaves
    assert len(min(leaves).key) == len(oldest)  # what the tree itself would evict first
    allocator.free(by_page[2][8:])
    kept = rest[~torch.isin(rest, by_page[2])]
    before = source.manager.status()
    reclaimer = reclaim.Reclaimer(tree, [source])
    assert reclaimer.free(1) == source.page_bytes
    after = source.manager.status()
    assert before["partly_pages"] + before["full_pages"] == after["partly_pages"] + after["full_pages"] + 1
    assert found(tree, range(16)) == 16
    assert found(tree, range(10_000, 10_008)) == 0
    assert allocator.used_size() == len(kept) + 16


def cheapest_pages() -> None:
    leaves = [reclaim.Leaf(lambda: None, Counter(pages)) for pages in ({1: 2, 2: 1}, {2: 3}, {3: 5}, {1: 1})]

    def chosen(census: list[tuple[int, int]], pages: int) -> list[int]:
        return [leaves.index(leaf) for leaf in reclaim.cheapest(leaves, census, pages)]

    assert chosen([(1, 3), (2, 4), (3, 5)], 1) == [0, 3]
    assert chosen([(1, 3), (2, 4), (3, 5)], 2) == [0, 3, 1]
    assert chosen([(1, 4), (3, 5), (2, 5)], 3) == [2]  # others use pages 1 and 2, too
    assert chosen([(1, 3)], 0) == []


def bounded_cache() -> None:
    _, allocator = elastic()
    tree = make_tree("python", allocator)
    loop = reclaim.Loop(tree, [allocator.source])
    for i in range(4):
        remember(tree, allocator, range(i * 1000, i * 1000 + 50))
    loop.step(idle=True)
    assert 0 < tree.evictable_size() <= 120


def sleep_and_wake() -> None:
    """Through SGLang's own release and resume."""
    load_plugin()
    from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

    pool, allocator = elastic()
    slots = allocator.alloc(3 * PAGE_TOKENS)
    allocator.source.needed = PAGE_TOKENS
    updater = object.__new__(SchedulerWeightUpdaterManager)
    updater.scheduler = None
    updater.is_fully_idle = lambda **_named: True
    updater.offload_tags = set()
    updater.memory_saver_adapter = SimpleNamespace(pause=lambda _tag: None, resume=lambda _tag: None)
    updater.flush_cache = lambda: allocator.clear()
    request = SimpleNamespace(tags=["kv_cache"])
    updater.release_memory_occupation(request)
    eventually(lambda: runtime.get().client().status()["used_bytes"] == 0)  # promises lapse
    assert runtime.get().client().status()["mapped_bytes"] == 0
    assert allocator.available_size() == allocator.used_size() == 0
    assert allocator.alloc(1) is None
    updater.resume_memory_occupation(request)
    assert allocator.alloc(2 * PAGE_TOKENS) is not None
    pool.k_buffer[0][slots[:10]] = 1
    pool.k_buffer[1][0] = 1
    assert allocator.source.manager.status()["mapped_pages"] >= 2
