# SPDX-License-Identifier: Apache-2.0
"""Checks of the allocators: decisions as SGLang's own make them, shortage without errors, promises, and pages
that stay mapped while a batch may read them.

Run by sglang_runner.py."""

from __future__ import annotations

import os
import random
import signal
import time
from types import SimpleNamespace
from typing import Any

from engines.sglang_support import (
    PAGE_TOKENS,
    SIZE,
    Requests,
    elastic,
    error_of,
    hog,
    lengths,
    load_plugin,
    make_tree,
    scheduler_of,
    stock_allocator,
)
from harness.broker import eventually

# isort: split
import torch
from sglang.srt.runtime_context import get_parallel

from kvcached import runtime
from kvcached.integration.sglang import allocators, interfaces, plugin, reclaim

PROMISE_S = 0.1  # how long available_size() holds


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


def whole_pages() -> None:
    """What the last page has beyond the buffers is nothing that anybody has, or that is promised."""
    for page_size in (1, 4, 64):
        _, allocator = elastic(page_size)
        assert allocator.capacity == SIZE // page_size * page_size
        allocator.expect(PAGE_TOKENS - page_size)
        assert allocator.source.manager.status()["claimed_pages"] == 0  # page 0 has so many


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
        begun = time.monotonic()
        promised.append(allocator.available_size())
        slots = allocator.alloc(promised[-1])
        if slots is None:
            assert time.monotonic() - begun > PROMISE_S
        else:
            allocator.free(slots)

    allocate_all()
    assert promised[0] >= 3 * PAGE_TOKENS
    with hog(meanwhile=allocate_all) as taken:
        assert taken > 0
        allocate_all()  # of what is mapped and was not taken from it meanwhile, perhaps
        left = runtime.get().client().status()["budget_bytes"] - taken
        # Slot 0 is in there, too, and is nobody's.
        assert allocator.alloc(left // allocator.source.page_bytes * PAGE_TOKENS) is None


def daemon_dies() -> None:
    """What is mapped serves on, and nothing more is had; nothing raises."""
    pool, allocator = elastic()
    slots = allocator.alloc(2 * PAGE_TOKENS)
    tree = make_tree("python", allocator)
    loop = reclaim.Loop(tree, [allocator.source])
    os.kill(int(os.environ["TEST_DAEMON"]), signal.SIGKILL)
    eventually(lambda: not runtime.get().client().status()["connected"])
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
    budget.total_offset += 0.5  # what requests that run will come to is estimated, in parts of tokens
    assert budget.check_prefill(total_tokens=most - 90, **request) == (True, None)
    assert allocator.available_size() >= most - 90
    assert budget.check_prefill(total_tokens=most, **request) == (False, None)
    budget.reserve(most - 100, 10)
    assert budget.check_prefill(total_tokens=200, **request) == (False, None)
