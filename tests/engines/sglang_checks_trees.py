# SPDX-License-Identifier: Apache-2.0
"""Checks of SGLang's trees of prefixes over our allocators, and of its leak checker over both.

Run by sglang_runner.py."""

from __future__ import annotations

from array import array
from typing import Any

from engines.sglang_support import (
    SIZE,
    elastic,
    found,
    load_plugin,
    make_tree,
    observed,
    remember,
)

# isort: split
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from kvcached import runtime
from kvcached.integration.sglang import interfaces


def is_accounted(allocator: Any, tree: Any) -> bool:
    held = tree.evictable_size() + tree.protected_size()
    return bool(allocator.used_size() == held and allocator.verify_byte_accounting() == [])


def trees(kind: str) -> None:
    for page_size in (1, 4):
        _, allocator = elastic(page_size)
        tree = make_tree(kind, allocator)

        first = remember(tree, allocator, range(100, 116))
        remember(tree, allocator, range(500, 532))
        match = tree.match_prefix(MatchPrefixParams(key=RadixKey(array("q", range(100, 116)))))
        assert match.device_prefix_len == 16
        assert torch.equal(tree.path_device_indices(match.last_device_node), first)
        assert found(tree, range(100, 108)) == 8
        assert is_accounted(allocator, tree)
        lock = tree.lock(match.last_device_node)
        assert tree.evict(EvictParams(num_tokens=1000)).num_tokens_evicted == 32
        assert tree.protected_size() == 16
        assert is_accounted(allocator, tree)
        tree.unlock(lock)
        remember(tree, allocator, range(1000, 1000 + SIZE - 64))
        allocator.evict_to_free_tokens(tree, 128)
        assert allocator.available_size() >= 128
        assert is_accounted(allocator, tree)
        tree.evict(EvictParams(num_tokens=SIZE))
        assert allocator.used_size() == 0
        runtime.shutdown()
        interfaces.init_kvcached(device="cpu")


def leak_checker() -> None:
    """Green when memory is short, and red for each token that is lost."""
    load_plugin()
    _, allocator = elastic(4)
    tree = make_tree("python", allocator)
    observer, checker = observed(allocator, tree)
    slots = remember(tree, allocator, range(64))
    stats = observer.get_pool_stats()
    assert stats.full_available_size < SIZE - 64  # it is not all promised
    assert stats.full_num_used == 0
    assert 0 <= stats.full_token_usage < 0.01
    leak, messages = checker._check_all_pools(stats)
    assert not leak, messages
    leak, _ = type(checker)._check_full_pool.__wrapped__(checker, stats)
    assert leak  # without us
    lost = allocator.alloc(4)
    leak, _ = checker._check_all_pools(observer.get_pool_stats())
    assert leak
    allocator.free(lost)
    assert not checker._check_all_pools(observer.get_pool_stats())[0]
    allocator.free(slots[:4])  # while the tree holds it
    assert checker._check_all_pools(observer.get_pool_stats())[0]
    allocator.source.taken += 1
    assert allocator.verify_byte_accounting()
