# SPDX-License-Identifier: Apache-2.0
"""What SGLang's interpreter runs for test_sglang.py: checks of the integration, each in a process of its own.

    {"check": "round_trip", "arguments": {...}, "environment": {...}, "output": "a file"}

comes as a line on standard input; the check is run in a child, and the reply is a line with its exit status,
negative for a signal. SGLang takes long to import, and children of this process have it already.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from array import array
from collections import Counter
from types import SimpleNamespace
from typing import Any

from engines.sglang_support import (
    DTYPES,
    HEADS,
    LAYERS,
    PAGE_TOKENS,
    SIZE,
    WIDTH,
    Configured,
    Requests,
    elastic,
    error_of,
    found,
    hog,
    kvctl,
    layer,
    lengths,
    load_plugin,
    make_tree,
    mha,
    mla,
    observed,
    our_allocator,
    our_allocator_of,
    remember,
    same,
    scheduler_of,
    stock_allocator,
    wait_for,
)

# isort: split
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.runtime_context import get_parallel

from kvcached import runtime
from kvcached.integration.sglang import allocators, interfaces, plugin, pools, reclaim
from kvcached.layout import Layout

# ---- Pools ----


def shapes(contiguous: bool) -> None:
    for dtype in DTYPES:
        for page_size in (1, 4, 64):
            stock = mha(MHATokenToKVPool, dtype, page_size)
            ours = mha(pools.ElasticMHATokenToKVPool, dtype, page_size)
            assert isinstance(ours, MHATokenToKVPool)
            row = HEADS * WIDTH
            for a, b in zip(stock.k_buffer + stock.v_buffer, ours.k_buffer + ours.v_buffer, strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                stride = (2 * LAYERS * row, *a.stride()[1:]) if contiguous else a.stride()
                assert b.stride() == stride, (b.stride(), stride)
            assert ours.get_kv_size_bytes() == stock.get_kv_size_bytes()
            assert ours.data_strides.tolist() == [
                (2 * LAYERS if contiguous else 1) * row * ours.store_dtype.itemsize
            ] * (2 * LAYERS)
            distance = ours.v_buffer[0].data_ptr() - ours.k_buffer[0].data_ptr()
            assert distance % (page_size * row * ours.store_dtype.itemsize) == 0 or contiguous
    for page_size in (1, 64):
        stock, ours = (
            mla(MLATokenToKVPool, page_size=page_size),
            mla(pools.ElasticMLATokenToKVPool, page_size=page_size),
        )
        for a, b in zip(stock.kv_buffer, ours.kv_buffer, strict=True):
            stride = (LAYERS * a.stride(0), *a.stride()[1:]) if contiguous else a.stride()
            assert (a.shape, a.dtype, stride) == (b.shape, b.dtype, b.stride())


def round_trip() -> None:
    """What is written by SGLang's own methods reads back as it does from SGLang's own pools."""
    torch.manual_seed(1)
    for dtype in DTYPES:
        for page_size, narrow in ((1, None), (64, None), (1, 128), (64, 128)):
            stock = mha(MHATokenToKVPool, dtype, page_size, v_head_dim=narrow)
            ours, allocator = elastic(page_size, dtype=dtype, v_head_dim=narrow)
            slots = allocator.alloc(3 * PAGE_TOKENS)
            assert slots is not None
            for i in range(LAYERS):
                k = torch.randn(len(slots), HEADS, WIDTH).to(dtype)
                v = torch.randn(len(slots), HEADS, narrow or WIDTH).to(dtype)
                for pool in (stock, ours):
                    pool.set_kv_buffer(layer(i), slots, k.clone(), v.clone())
            for i in range(LAYERS):
                for a, b in zip(stock.get_kv_buffer(i), ours.get_kv_buffer(i), strict=True):
                    assert same(a[slots], b[slots])
                    assert a[slots].float().abs().sum() > 0
            copy = ours.get_cpu_copy(slots)
            ours.load_cpu_copy(copy, slots)
            assert same(stock.k_buffer[1][slots], ours.k_buffer[1][slots])
            stock.set_kv_buffer(layer(0), torch.tensor([0]), k[:1].clone(), v[:1].clone())
            ours.set_kv_buffer(layer(0), torch.tensor([0]), k[:1].clone(), v[:1].clone())
            assert same(stock.k_buffer[0][:1], ours.k_buffer[0][:1])
            runtime.shutdown()
            interfaces.init_kvcached(device="cpu")
    stock, ours = mla(MLATokenToKVPool), mla(pools.ElasticMLATokenToKVPool)
    allocator = our_allocator(ours)
    slots = allocator.alloc(5)
    for i in range(LAYERS):
        x = torch.randn(5, 1, 576).bfloat16()
        ours.set_kv_buffer(layer(i), slots, x, None)
        stock.set_kv_buffer(layer(i), slots, x, None)
    for i in range(LAYERS):
        assert same(stock.get_key_buffer(i)[slots], ours.get_key_buffer(i)[slots])


def hole() -> None:
    """Ends by a signal, after it has said so."""
    pool, allocator = elastic()
    slots = allocator.alloc(10)
    pool.k_buffer[0][slots] = 1
    pool.k_buffer[0][0] = 1
    allocator.source.manager.trim()
    mapped = allocator.source.manager.status()["mapped_pages"]
    assert mapped == 1
    print("all is well so far", flush=True)
    pool.k_buffer[0][SIZE] = 1


def fresh_is_zero() -> None:
    pool, allocator = elastic()
    slots = allocator.alloc(4 * PAGE_TOKENS)
    for buffer in pool.k_buffer + pool.v_buffer:
        buffer[slots] = float("nan")
    allocator.free(slots)
    allocator.source.trim()
    again = allocator.alloc(6 * PAGE_TOKENS)
    beyond_first = again[again >= PAGE_TOKENS]  # page 0 stays mapped
    for buffer in pool.k_buffer + pool.v_buffer:
        assert not buffer[beyond_first].any()


def other_pools() -> None:
    """Pools that are made of ours: hybrid linear attention, sliding windows."""
    hybrid = HybridLinearKVPool(
        size=SIZE,
        dtype=torch.float16,
        page_size=1,
        head_num=HEADS,
        head_dim=WIDTH,
        full_attention_layer_ids=[1, 3],
        device="cpu",
        mamba_pool=SimpleNamespace(),
        full_kv_pool_class=pools.ElasticMHATokenToKVPool,
    )
    assert pools.elastic_pools(hybrid) == [hybrid.full_kv_pool]
    allocator = our_allocator_of(hybrid)
    slots = allocator.alloc(7)
    hybrid.set_kv_buffer(
        layer(3), slots, torch.ones(7, HEADS, WIDTH).half(), torch.ones(7, HEADS, WIDTH).half()
    )
    assert hybrid.full_kv_pool.k_buffer[1][slots].min() == 1

    for page_size in (1, 4):
        swa = SWAKVPool(
            size=SIZE,
            size_swa=SIZE // 2,
            page_size=page_size,
            dtype=torch.float16,
            head_num=HEADS,
            head_dim=WIDTH,
            swa_attention_layer_ids=[0],
            full_attention_layer_ids=[1],
            device="cpu",
            token_to_kv_pool_class=pools.ElasticMHATokenToKVPool,
        )
        assert [pool.size for pool in pools.elastic_pools(swa)] == [SIZE, SIZE // 2]
        both = allocators.ElasticSWATokenToKVPoolAllocator(
            SIZE, SIZE // 2, page_size, torch.float16, "cpu", swa, need_sort=False
        )
        managers: list[Any] = [source.manager for source in allocators.sources_of(both)]
        full, windows = managers
        assert full.group_id != windows.group_id
        both.evict_to_free_tokens(None, 40)
        assert both.available_size() >= 40
        if page_size == 1:
            slots = both.alloc(40)
        else:
            slots = both.alloc_extend(*lengths([0], [40]), torch.tensor([-1]), 40)
        assert len(slots) == 40
        assert [s["used_blocks"] for s in (full.status(), windows.status())] == [40 // page_size] * 2
        both.free_swa(slots)
        assert [s["used_blocks"] for s in (full.status(), windows.status())] == [40 // page_size, 0]
        both.free_full(slots)
        assert full.status()["used_blocks"] == 0
        assert both.verify_byte_accounting() == []
        assert len(interfaces.kv_cache_pool_snapshots()) >= 2


def mamba_states() -> None:
    """As MambaPool has them, in shape and type, and each slot and layer by itself."""
    shape = SimpleNamespace(conv=[(96, 3), (10, 3)], temporal=(4, 16, 32))
    params = SimpleNamespace(shape=shape, dtype=SimpleNamespace(conv=torch.bfloat16, temporal=torch.float32))
    slots, layers = 300, 3
    conv, temporal = interfaces.alloc_mamba_states(
        num_slots=slots, num_mamba_layers=layers, cache_params=params, device="cpu", group_id=5
    )
    assert [tuple(c.shape) for c in conv] == [(layers, slots + 1, 96, 3), (layers, slots + 1, 10, 3)]
    assert tuple(temporal.shape) == (layers, slots + 1, 4, 16, 32)
    assert (conv[0].dtype, temporal.dtype) == (torch.bfloat16, torch.float32)
    manager = interfaces.get_kv_cache_manager(
        slots + 1, 1, interfaces.mamba_slot_bytes(params), layers, num_kv_buffers=1, group_id=5
    )
    assert manager.alloc(slots) is None  # some lie across pages
    ids = manager.alloc(slots - 1)
    assert ids is not None
    states = [*conv, temporal]
    assert not any(state[:, ids].any() for state in states)
    for i, state in enumerate(states):
        for at in range(layers):
            for slot in ids:
                state[at, slot] = (slot + at + 50 * i) % 97
    for i, state in enumerate(states):
        for at in range(layers):
            for slot in ids:
                assert (state[at, slot] == (slot + at + 50 * i) % 97).all()


# ---- Allocators ----


def same_decisions(kernels: bool) -> None:
    """kernels: with Triton's, interpreted, which takes long; else with their twins in PyTorch."""
    for page_size in (4,) if kernels else (1, 4, 64):
        chance = random.Random(page_size)
        pool, ours = elastic(page_size)
        sides = [Requests(stock_allocator(pool, ours.capacity)), Requests(ours)]
        ours.use_triton_kernels = kernels
        refused = 0
        for number in range(80 if kernels else 400):
            what = chance.random()
            alive = sorted(sides[0].slots)
            if what < 0.6 or not alive:
                request = number if chance.random() < 0.7 or not alive else chance.choice(alive)
                n = chance.randint(1, 900)
                done = [side.extend(request, n) for side in sides]
            elif what < 0.85:
                done = [side.decode() for side in sides]
            else:
                victims = chance.sample(alive, min(len(alive), chance.randint(1, 3)))
                grouped = chance.random() < 0.5
                for side in sides:
                    if grouped:
                        side.allocator.free_group_begin()
                    for victim in victims:
                        side.end(victim)
                    if grouped:
                        side.allocator.free_group_end()
                done = [True]
            assert len(set(done)) == 1, (number, done)
            refused += not done[0]
            for side in sides:
                side.check()
            stock, own = (side.allocator for side in sides)
            assert own.used_size() == ours.capacity - stock.available_size()
            assert own.available_size() <= stock.available_size()
            free = own.get_all_free_pages()
            assert len(free) == own.size // page_size - own.source.taken
            assert not any(torch.isin(slots // page_size, free).any() for slots in sides[1].slots.values())
            own.expect(stock.available_size())
            assert own.available_size() == stock.available_size()
        assert refused > (2 if kernels else 20), refused  # the pool's own end was met, too
        for side in sides:
            side.allocator.clear()
        assert ours.used_size() == 0
        runtime.shutdown()
        interfaces.init_kvcached(device="cpu")


def across_pages() -> None:
    """Tokens that would lie in two pages are never handed out, and SGLang is told that there are less."""
    _, allocator = elastic(head_num=3, head_dim=250)
    assert SIZE - 2 * SIZE * 1500 // (2 << 20) <= allocator.capacity < SIZE
    slots = allocator.alloc(allocator.capacity)
    assert slots is not None
    assert allocator.alloc(1) is None
    for buffer in allocator.source.pool.k_buffer:
        buffer[slots] = 1
    from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigResult

    told = plugin.reachable(
        KVCacheConfigResult(
            max_total_num_tokens=SIZE,
            max_running_requests=4,
            full_max_total_num_tokens=None,
            swa_max_total_num_tokens=None,
            req_to_token_pool=None,
            token_to_kv_pool=allocator.source.pool,
            token_to_kv_pool_allocator=allocator,
            memory_pool_config=None,
            unified_memory_pool=None,
        )
    )
    assert told.max_total_num_tokens == allocator.capacity


def shortage(page_size: int) -> None:
    """The daemon has less than the pool could hold: refusals, no errors, and promises that are kept."""
    _, allocator = elastic(page_size)
    total = 0
    given: list[Any] = []
    for need in (100, 5, 700, 260, 64, 1000, 3, 500, 500, 8, 256):
        need = need // page_size * page_size
        allocator.expect(need)
        promised = allocator.available_size()
        before = allocator.used_size()
        slots = allocator.alloc(need)
        if promised >= need:
            assert slots is not None, (need, promised)
        if slots is None:
            assert allocator.used_size() == before
            assert allocator.verify_byte_accounting() == []
            given.append(None)
            continue
        total += len(slots)
        given.append(slots)
    assert None in given
    assert 0 < total < SIZE
    promised = allocator.available_size()
    rest = allocator.alloc(promised)
    assert rest is not None
    assert len(rest) == promised
    for slots in given:
        if slots is not None:
            allocator.free(slots)
    assert allocator.alloc(PAGE_TOKENS) is not None


def asks_for_less() -> None:
    """A request that is too large keeps nobody from asking for less, right after it."""
    _, allocator = elastic()
    allocator.expect(SIZE // 2)
    assert allocator.available_size() < SIZE // 2
    for need in (PAGE_TOKENS - 1, PAGE_TOKENS + 50):
        allocator.expect(SIZE // 2)
        allocator.expect(need)
        assert allocator.available_size() >= need
    slots = allocator.alloc(2 * PAGE_TOKENS - 1)
    assert slots is not None
    tree = make_tree("python", allocator)
    assert not allocator.check_decode_capacity(num_tokens=SIZE // 2, tree_cache=tree)
    allocator.free(slots[:60])
    assert allocator.check_decode_capacity(num_tokens=60, tree_cache=tree)


def promise() -> None:
    """alloc() gives what available_size() says, while another engine takes all that it can get; no more."""
    _, allocator = elastic()
    promised = []

    def allocate_all() -> None:
        allocator.expect(3 * PAGE_TOKENS)
        promised.append(allocator.available_size())
        slots = allocator.alloc(promised[-1])
        assert slots is not None
        allocator.free(slots)

    allocate_all()
    assert promised[0] >= 3 * PAGE_TOKENS
    with hog(meanwhile=allocate_all) as taken:
        assert taken > 0
        allocate_all()  # of what is mapped and was not taken from it meanwhile, perhaps
        assert allocator.alloc(SIZE // 2) is None


def daemon_dies() -> None:
    """What is mapped serves on, and nothing more is had; nothing raises."""
    pool, allocator = elastic()
    slots = allocator.alloc(2 * PAGE_TOKENS)
    tree = make_tree("python", allocator)
    loop = reclaim.Loop(tree, [allocator.source])
    os.kill(int(os.environ["TEST_DAEMON"]), signal.SIGKILL)
    wait_for(lambda: not runtime.get().client().status()["connected"])
    pool.k_buffer[0][slots] = 1
    allocator.free(slots[100:])
    loop.step(idle=False)
    assert not allocator.check_decode_capacity(num_tokens=SIZE // 2, tree_cache=tree)
    assert allocator.alloc(SIZE // 2) is None
    assert allocator.check_decode_capacity(num_tokens=100, tree_cache=tree)
    more = allocator.alloc(100)
    pool.k_buffer[0][more] = 1
    allocator.free(more)
    allocator.source.trim()
    allocator.clear()
    allocator.source.sleep()
    allocator.source.wake()
    assert allocator.available_size() == 0
    assert allocator.alloc(1) is None


def refusals() -> None:
    """What is freed twice, or never was handed out, is refused."""
    for page_size in (1, 4):
        _, allocator = elastic(page_size)
        slots = allocator.alloc(8)
        allocator.free(slots)
        for wrong in (slots, torch.tensor([SIZE]), torch.tensor([0])):
            error_of(ValueError, allocator.free, wrong)
        assert allocator.used_size() == 0
        if page_size > 1:
            arguments = (*lengths([0], [9]), torch.tensor([[-1], [-1]]), 9)  # one request too many
            error_of(Exception, allocator.alloc_extend, *arguments)
            assert allocator.used_size() == 0
        assert allocator.alloc(SIZE + page_size) is None
        assert len(allocator.alloc(0)) == 0


def fence_holds_pages() -> None:
    """A page whose tokens are freed during a batch stays mapped until the batch is over."""
    load_plugin()
    pool, allocator = elastic()
    manager = allocator.source.manager
    slots = allocator.alloc(4 * PAGE_TOKENS)
    scheduler = scheduler_of(allocator, SimpleNamespace())

    def batch(*_batch: Any) -> None:
        pool.k_buffer[0][slots] = 3
        allocator.free(slots)
        manager.trim()

    plugin._run_batch(batch, scheduler, None)
    assert manager.status()["waiting_pages"] >= 3
    assert (pool.k_buffer[0][slots] == 3).all()  # it would fault
    with get_parallel().override(pp_rank=0, attn_tp_rank=0, attn_cp_rank=0):
        scheduler.ingest_requests()
    manager.trim()
    assert manager.status()["waiting_pages"] == 0
    assert manager.status()["mapped_pages"] == 1
    assert allocators.fence.pending == 0


def prefill_budget() -> None:
    """A request is admitted when its memory can be had, however little was asked for before."""
    _, allocator = elastic()
    tree = make_tree("radix", allocator)
    budget = allocator.create_prefill_budget(tree)
    most = allocator.capacity
    assert budget.has_capacity()
    assert budget.remaining_total < most
    request = {
        "extend_input_len": most - 100,
        "max_new_tokens": 10,
        "input_tokens": most - 100,
        "swa_host_hit_length": 0,
        "chunk_limit": None,
    }
    assert budget.check_prefill(total_tokens=most - 90, **request) == (True, None)
    assert allocator.available_size() >= most - 90
    assert budget.check_prefill(total_tokens=most, **request) == (False, None)
    budget.reserve(most - 100, 10)
    assert budget.check_prefill(total_tokens=200, **request) == (False, None)


# ---- Trees ----


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


# ---- Reclaim, sleep ----


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

    wait_for(is_within_limit)
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
        time.sleep(0.002)
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


def whole_pages() -> None:
    """The last page is left out where it would hold little."""

    def usable(blocks: int, block_bytes: int) -> int:
        return pools.usable_blocks(Layout(2, 2, block_bytes, 2 << 20, True), blocks)

    assert usable(2049, 8192) == 2048
    assert usable(2048, 8192) == 2048
    assert usable(2048 + 128, 8192) == 2048
    assert usable(256 + 255, 8192) == 511
    assert usable(100, 8192) == 100
    assert usable(14_000, 1500) == 10 * (2 << 20) // 1500
    for page_size in (1, 4, 64):
        _, allocator = elastic(page_size)
        assert allocator.capacity == SIZE // page_size // (PAGE_TOKENS // page_size) * PAGE_TOKENS - page_size
        allocator.expect(PAGE_TOKENS - page_size)
        assert allocator.source.manager.status()["claimed_pages"] == 0  # page 0 has so many


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
    wait_for(lambda: runtime.get().client().status()["used_bytes"] == 0)  # promises lapse
    assert runtime.get().client().status()["mapped_bytes"] == 0
    assert allocator.available_size() == allocator.used_size() == 0
    assert allocator.alloc(1) is None
    updater.resume_memory_occupation(request)
    assert allocator.alloc(2 * PAGE_TOKENS) is not None
    pool.k_buffer[0][slots[:10]] = 1
    pool.k_buffer[1][0] = 1
    assert allocator.source.manager.status()["mapped_pages"] >= 2


# ---- The plug-in ----


def not_asked_for() -> None:
    """Without ENABLE_KVCACHED the entry point leaves SGLang as it is."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    load_plugins()
    assert not HookRegistry._patched


def configured(page_size: int, use_mla: bool) -> None:
    """Entry point, load_plugins(), configure(): the pool and its allocator are ours."""
    load_plugin()
    result = Configured().run(page_size, use_mla)
    pool_class = pools.ElasticMLATokenToKVPool if use_mla else pools.ElasticMHATokenToKVPool
    allocator_class = (
        allocators.ElasticTokenToKVPoolAllocator
        if page_size == 1
        else allocators.ElasticPagedTokenToKVPoolAllocator
    )
    assert type(result.token_to_kv_pool) is pool_class
    assert type(result.token_to_kv_pool_allocator) is allocator_class
    assert result.token_to_kv_pool_allocator.alloc(page_size) is not None
    assert runtime.get().role.engine == "SGLang"


def configured_without_us() -> None:
    """A pool that another plug-in has put in place of ours is noticed."""
    load_plugin()
    from sglang.srt.platforms.interface import SRTPlatform

    SRTPlatform.get_kv_pool_cls = lambda _self, **_kind: None
    assert "MHATokenToKVPool" in error_of(RuntimeError, Configured().run)


def refused_flags() -> None:
    import msgspec
    from sglang.srt.server_args import ServerArgs

    known = {field.name: field for field in msgspec.structs.fields(ServerArgs)}
    plugin.check_supported(SimpleNamespace())
    for name, fine, _ in plugin.REFUSED:
        assert name in known, name
        assert known[name].default in fine, (name, known[name].default)
        assert name in error_of(ValueError, plugin.check_supported, SimpleNamespace(**{name: "another"}))


def another_release() -> None:
    """A hook's target that takes other arguments ends the process, and says what is supported."""
    from sglang.srt.managers.scheduler import Scheduler

    def run_batch(_self: Any, _batch: Any, _something_new: Any) -> None:
        pass

    Scheduler.run_batch = run_batch
    from sglang.srt.plugins import load_plugins

    said = error_of(SystemExit, load_plugins)
    assert plugin.SUPPORTED in said
    assert "_something_new" in said


def budget() -> None:
    """As much of the whole GPU as is asked for, without what this process has; others' shares don't count."""
    gib_free_now, before, total, fraction = 20.0, 50.0, 80.0, 0.9
    told = plugin.elastic_budget(before, total, fraction)
    assert abs(gib_free_now - (1 - fraction) * told - (fraction * total - (before - gib_free_now))) < 1e-9
    alone = plugin.elastic_budget(total, total, fraction)
    assert abs(alone - total) < 1e-9


# ---- Running them ----


def run_check(check: str, arguments: dict[str, Any], environment: dict[str, str], output: str) -> int:
    """Its exit status. In a child, since a check may end by a signal, and begins with nothing."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.environ.update(environment)
            if not check.startswith(("configured", "not_asked", "another")):
                interfaces.init_kvcached(device="cpu")
            alone = {"dcp_enabled": False, "attn_dcp_size": 1, "launch_world_size": 1}
            with get_parallel().override(**alone, world_group=SimpleNamespace(cpu_group=None)):
                globals()[check](**arguments)
            runtime.shutdown()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    import sglang.srt.managers.scheduler  # noqa: F401

    replies.write(json.dumps("ready") + "\n")
    for line in sys.stdin:
        replies.write(json.dumps({"status": run_check(**json.loads(line))}) + "\n")
    os._exit(0)  # quicker than taking SGLang apart


if __name__ == "__main__":
    main()
