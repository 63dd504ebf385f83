# SPDX-License-Identifier: Apache-2.0
"""Checks of the pools: shapes, strides and contents as SGLang's own have them, and slots without memory.

Run by sglang_runner.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from engines.sglang_support import (
    DTYPES,
    HEADS,
    LAYERS,
    PAGE_TOKENS,
    SIZE,
    WIDTH,
    elastic,
    layer,
    lengths,
    mha,
    mla,
    our_allocator,
    our_allocator_of,
    same,
)

# isort: split
import torch
from sglang.srt.mem_cache.memory_pool import HybridLinearKVPool, MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from kvcached import runtime
from kvcached.integration.sglang import allocators, interfaces, pools


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
