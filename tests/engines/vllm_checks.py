# SPDX-License-Identifier: Apache-2.0
"""Checks of the pool's books and of the geometry, without an engine or a daemon. vLLM's Python runs them all:
the last line is JSON, a name and what went wrong ("": nothing) for each."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from kvcached._native import E_WORKER
from kvcached.errors import (
    DaemonTimeoutError,
    DisconnectedError,
    Error,
    KVCachedConfigError,
    KVCachePoolExhausted,
    OutOfMemoryError,
)
from kvcached.integration.vllm import block_pool
from kvcached.integration.vllm import scheduler as scheduler_module
from kvcached.integration.vllm.block_pool import ElasticBlockPool
from kvcached.integration.vllm.geometry import block_unit, geometry, whole_blocks

MIB = 1 << 20
EACH = 4  # blocks in a page
BLOCKS = 64


class FakeMemory:
    """Pages of four blocks, of which the source has only so many."""

    def __init__(self, source: FakeSource) -> None:
        self.source = source
        self.out = {0}
        self.closed = False

    def pages(self) -> set[int]:
        return {b // EACH for b in self.out}

    def _free(self) -> list[int]:
        mapped = self.pages()
        more = sorted(set(range(BLOCKS // EACH)) - mapped)[: max(self.source.pages - len(mapped), 0)]
        return sorted(
            b for p in [*mapped, *more] for b in range(p * EACH, p * EACH + EACH) if b not in self.out
        )

    def alloc(self, need_size: int) -> list[int] | None:
        if self.source.error is not None:
            raise self.source.error
        free = self._free()
        if self.source.fail or need_size > len(free):
            return None
        ids = free[:need_size]
        self.out.update(ids)
        return ids

    def free(self, indices: Sequence[int]) -> None:
        for i in indices:
            assert i != 0
            self.out.remove(i)

    def available_size(self, need: int | None = None) -> int:
        self.source.wanted.append(need)
        return len(self._free())

    def page_of(self, block: int) -> int:
        return block // EACH

    def get_page_occupancy(self, page_ids: Sequence[int]) -> list[int]:
        return [sum(b // EACH == p for b in self.out) for p in page_ids]


class FakeSource:
    page_bytes = MIB
    page_blocks = EACH

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.memory: FakeMemory
        self.fail = False
        self.error: Exception | None = None
        self.limit: int | None = None
        self.wanted: list[int | None] = []

    def open(self) -> FakeMemory:
        if self.pages == 0:
            raise OutOfMemoryError("no page")
        self.memory = FakeMemory(self)
        return self.memory

    def close(self, memory: FakeMemory) -> None:
        memory.closed = True

    def overage_bytes(self) -> int:
        return 0 if self.limit is None else max(len(self.memory.pages()) - self.limit, 0) * MIB

    def is_lost(self) -> bool:
        return isinstance(self.error, DisconnectedError)


def pool(pages: int = 8, most: int | None = None, **options: Any) -> tuple[ElasticBlockPool, FakeSource]:
    source = FakeSource(pages)
    given = {"enable_caching": True, "hash_block_size": 16, "enable_kv_cache_events": True} | options
    return ElasticBlockPool(source, most, BLOCKS, **given), source


def cache(made: ElasticBlockPool, blocks: Sequence[Any]) -> None:
    for block in blocks:
        made._insert_block_hash(b"%08d" % block.block_id + b"\0\0\0\0", block, num_tokens=16)


def cached(made: ElasticBlockPool, n: int) -> list[Any]:
    """Blocks that have something cached and that nobody uses, longest unused first."""
    blocks = made.get_new_blocks(n)
    cache(made, blocks)
    made.free_blocks(blocks)
    return blocks


@contextlib.contextmanager
def refused(kind: type[BaseException], words: str) -> Iterator[None]:
    said = None
    try:
        yield
    except kind as error:
        said = str(error)
    assert said is not None, f"no {kind.__name__}"
    assert words in said, said


@contextlib.contextmanager
def warnings_of(module: Any, said: list[str]) -> Iterator[None]:
    plain = module.logger
    module.logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    try:
        yield
    finally:
        module.logger = plain


def books(made: ElasticBlockPool, source: FakeSource) -> None:
    assert made.held == len(source.memory.out) - 1
    used = sum(b.ref_cnt > 0 for b in made.blocks[1:])
    assert made.held == used + made.evictable
    assert made.get_num_free_blocks() + used <= BLOCKS - 1


def check_new_blocks_are_the_memorys() -> None:
    made, source = pool()
    assert made.get_num_free_blocks() == 8 * EACH - 1
    blocks = made.get_new_blocks(5)
    assert {b.block_id for b in blocks} | {0} == source.memory.out
    assert all(b.ref_cnt == 1 for b in blocks)
    assert made.get_usage() == 5 / 63
    made.free_blocks(blocks)
    assert source.memory.out == {0}
    assert made.get_num_free_blocks() == 8 * EACH - 1


def check_the_null_block_is_never_handed_out() -> None:
    made, _ = pool(pages=1)
    assert made.null_block.block_id == 0
    assert [b.block_id for b in made.get_new_blocks(3)] == [1, 2, 3]


def check_cached_blocks_stay() -> None:
    made, source = pool()
    blocks = cached(made, 6)
    assert made.evictable == 6
    assert len(source.memory.out) == 7
    assert made.get_num_free_blocks() == 8 * EACH - 1
    made.touch(blocks[:2])
    assert made.evictable == 4
    assert made.get_num_free_blocks() == 8 * EACH - 3
    books(made, source)


def check_memory_is_taken_before_cached_blocks_are() -> None:
    made, source = pool(pages=2)
    old = cached(made, 4)
    made.get_new_blocks(3)
    assert all(b.block_hash is not None for b in old)
    more = made.get_new_blocks(2)
    assert more == old[:2]
    assert all(b.block_hash is None for b in more)
    assert [type(e).__name__ for e in made.take_events()] == ["BlockRemoved"] * 2
    books(made, source)


def check_a_shortage_is_an_error_and_changes_nothing() -> None:
    made, source = pool(pages=2)
    made.get_new_blocks(5)
    with refused(ValueError, "Cannot get 3 free blocks from the pool"):
        made.get_new_blocks(3)
    assert made.held == 5
    assert len(made.get_new_blocks(2)) == 2
    books(made, source)


def check_a_broken_promise_is_filled_from_the_cache() -> None:
    made, source = pool(pages=2)
    cached(made, 4)
    source.fail = True
    assert len(made.get_new_blocks(4)) == 4
    with refused(KVCachePoolExhausted, "Cannot get 1 free"):
        made.get_new_blocks(1)
    source.fail = False
    books(made, source)


def check_a_daemon_that_is_gone_is_a_shortage() -> None:
    """That is said once until it clears; cached blocks are still to be had."""
    refusal = Error("A worker refused")
    refusal.code = E_WORKER
    for error in (DisconnectedError("gone"), DaemonTimeoutError("no answer"), refusal):
        made, source = pool(pages=4)
        old = cached(made, 8)
        said: list[str] = []
        with warnings_of(block_pool, said):
            source.error = error
            assert made.get_new_blocks(8) == old
            for _ in range(2):
                with refused(KVCachePoolExhausted, "Cannot get 1 free blocks"):
                    made.get_new_blocks(1)
            books(made, source)
            made.free_blocks(old[:3])
            assert said == [f"going on with the memory that is mapped: {error}"]
            source.error = None
            assert len(made.get_new_blocks(3)) == 3
            source.error = error
            with refused(KVCachePoolExhausted, "Cannot get 1 free blocks"):
                made.get_new_blocks(1)
            assert len(said) == 2
    made, source = pool(pages=4)
    source.error = Error("something else")
    with refused(Error, "something else"):
        made.get_new_blocks(1)


def check_an_engine_without_hope_ends() -> None:
    """Not while a request has blocks, which it will give back, and not while the daemon may answer."""
    made, source = pool(pages=2)
    blocks = made.get_new_blocks(2)
    source.error = DisconnectedError("gone")
    made.check_hope()
    made.free_blocks(blocks)
    with refused(DisconnectedError, "too little for the requests that wait"):
        made.check_hope()
    source.error = DaemonTimeoutError("no answer")
    made.check_hope()


class PlainScheduler:
    """What ours wants of vLLM's; it admits what waits, and keeps what runs."""

    block_size, max_num_scheduled_tokens, num_lookahead_tokens = 16, 64, 0
    processed_step_seq = 0
    defer_block_free = False

    def __init__(self, made: ElasticBlockPool) -> None:
        manager = SimpleNamespace(req_to_blocks={})
        coordinator = SimpleNamespace(single_type_managers=[manager])
        self.kv_cache_manager: Any = SimpleNamespace(
            block_pool=made, coordinator=coordinator, allocate_slots=self._allocate_plain, free=print
        )
        self.waiting: list[Any] = []
        self.running: list[Any] = []
        self.pause_state = SimpleNamespace(name="UNPAUSED")

    def _allocate_plain(self, request: Any) -> Any:
        pool = self.kv_cache_manager.block_pool
        return None if request.blocks > pool.get_num_free_blocks() else pool.get_new_blocks(request.blocks)

    def schedule(self) -> list[Any]:
        while self.waiting and self.kv_cache_manager.allocate_slots(self.waiting[0]) is not None:
            self.running.append(self.waiting.pop(0))
        return list(self.running)


def check_schedulers_end_only_without_hope() -> None:
    def request(blocks: int) -> Any:
        return SimpleNamespace(
            request_id=str(blocks), blocks=blocks, num_computed_tokens=0, num_tokens=16 * blocks,
            num_tokens_with_spec=16 * blocks, num_output_placeholders=0,
        )  # fmt: skip

    made, source = pool(pages=2)
    scheduler: Any = scheduler_module._elastic(PlainScheduler)(made)
    scheduler.waiting = [request(3), request(9)]
    assert [r.blocks for r in scheduler.schedule()] == [3]
    source.error = DisconnectedError("gone")
    assert [r.blocks for r in scheduler.schedule()] == [3]  # it goes on, and the other one may fit then
    scheduler.running = []
    made.free_blocks([b for b in made.blocks if b.ref_cnt and not b.is_null])
    with refused(DisconnectedError, "too little for the requests that wait"):
        scheduler.schedule()
    scheduler.waiting = []
    assert scheduler.schedule() == []


def check_the_bound_on_cached_blocks() -> None:
    made, source = pool(most=3)
    blocks = cached(made, 5)
    assert made.evictable == 3
    assert [b.block_hash is None for b in blocks] == [True, True, False, False, False]
    books(made, source)
    none, source = pool(most=0)
    cached(none, 5)
    assert source.memory.out == {0}


def check_an_idle_pool_keeps_few_pages() -> None:
    made, source = pool(most=8)
    busy = made.get_new_blocks(3 + 4 * EACH)
    cache(made, busy[3::EACH])  # one in each of four pages
    cache(made, busy[4:6])  # two more in the first
    made.free_blocks(busy[:-1])
    assert made.evictable == 6
    assert source.memory.pages() == {0, 1, 2, 3, 4}
    made.free_blocks(busy[-1:])
    assert source.memory.pages() == {0, 1, 2} or len(source.memory.pages()) == 3
    assert all(b.block_hash is not None for b in busy[3:6])
    books(made, source)


def check_evicted_blocks_go() -> None:
    made, source = pool()
    blocks = cached(made, 4)
    used = made.get_new_blocks(1)
    cache(made, used)
    made.evict_blocks({blocks[1].block_id, used[0].block_id})
    assert made.evictable == 3
    assert used[0].ref_cnt == 1
    books(made, source)


def check_reset_gives_all_back() -> None:
    made, source = pool()
    cached(made, 6)
    used = made.get_new_blocks(1)
    assert not made.reset_prefix_cache()
    assert made.evictable == 6
    made.free_blocks(used)
    assert made.reset_prefix_cache()
    assert source.memory.out == {0}
    assert made.held == 0


def check_reclaim_takes_whole_pages_longest_unused_first() -> None:
    made, source = pool()
    a = cached(made, 3 + EACH)  # page 0 (with the null block), and page 1
    b = cached(made, EACH)  # page 2
    busy = made.get_new_blocks(1)  # page 3
    c = cached(made, 3)  # page 3
    made.on_reclaim(1, 1000)
    assert source.memory.pages() == {0, 2, 3}
    assert all(x.block_hash is not None for x in [*a[:3], *b, *c])
    made.on_reclaim(5 * MIB, 1000)
    assert source.memory.pages() == {0, 3}
    assert made.evictable == 6
    assert busy[0].ref_cnt == 1
    books(made, source)


def check_a_page_is_as_old_as_its_youngest_block() -> None:
    made, source = pool()
    blocks = cached(made, 3 + 2 * EACH)
    made.touch(blocks[3:4])  # page 1 is used again
    made.free_blocks(blocks[3:4])
    made.on_reclaim(1, 1000)
    assert source.memory.pages() == {0, 1}


def check_notices_wait_for_the_turn_to_end() -> None:
    made, source = pool()
    cached(made, 3 + EACH)
    with made.turn, made.turn:
        notice = threading.Thread(target=made.on_reclaim, args=(MIB, 1000))
        notice.start()
        notice.join(30)
        assert not notice.is_alive()
        assert source.memory.pages() == {0, 1}
    assert source.memory.pages() == {0}
    assert not made.notices


def check_idle_pools_answer_on_the_notices_thread() -> None:
    made, source = pool()
    cached(made, 3 + EACH)
    notice = threading.Thread(target=made.on_reclaim, args=(MIB, 1000))
    notice.start()
    notice.join(30)
    assert source.memory.pages() == {0}


def check_nothing_is_free_above_the_limit() -> None:
    made, source = pool()
    used = made.get_new_blocks(2 * EACH)
    cached(made, EACH)
    source.limit = 1
    made.on_reclaim(2 * MIB, 1000)
    assert made.over
    assert made.get_num_free_blocks() == 0
    made.free_blocks(used)
    made.begin_step(1)
    assert not made.over
    assert source.memory.pages() == {0}
    assert made.get_num_free_blocks() > 0


def check_a_step_asks_for_what_it_needs() -> None:
    made, source = pool()
    source.wanted.clear()
    made.begin_step(0)
    assert source.wanted == []
    made.begin_step(11)
    assert source.wanted == [11]


def check_sleep_and_wake() -> None:
    made, source = pool()
    made.sleep()
    assert source.memory.closed
    assert made.get_num_free_blocks() == 0
    source.pages = 0
    assert not made.wake()
    made.begin_step(3)
    assert made.asleep
    source.pages = 2
    made.begin_step(3)
    assert not made.asleep
    assert len(made.get_new_blocks(7)) == 7


def check_without_prefix_caching() -> None:
    made, source = pool(enable_caching=False)
    blocks = made.get_new_blocks(9)
    made.free_blocks(blocks)
    assert source.memory.out == {0}


def check_random_operations_keep_the_books() -> None:
    dice = random.Random(5)
    made, source = pool(pages=6)
    running: list[list[Any]] = []
    for _ in range(3000):
        act = dice.randrange(6)
        if act <= 1:
            n = dice.randrange(1, 6)
            if n <= made.get_num_free_blocks():
                running.append(made.get_new_blocks(n))
                cache(made, [b for b in running[-1] if dice.random() < 0.7])
        elif act <= 3 and running:
            made.free_blocks(running.pop(dice.randrange(len(running))))
        elif act == 4:
            kept = [b for b in made.blocks[1:] if b.ref_cnt == 0 and b.block_hash is not None]
            if kept:
                running.append(dice.sample(kept, dice.randrange(1, len(kept) + 1)))
                made.touch(running[-1])
        else:
            source.pages = dice.randrange(1, 8)
            made.on_reclaim(dice.randrange(4) * MIB, 1000)
        books(made, source)
    for blocks in running:
        made.free_blocks(blocks)
    assert made.reset_prefix_cache()
    assert source.memory.out == {0}


# ---- Geometry ----


def plan(blocks: int, *tensors: tuple[int, int, int, int]) -> Any:
    """tensors: size, layer_stride, block_stride, offset."""
    names = ("size", "layer_stride", "block_stride", "offset")
    return SimpleNamespace(
        num_blocks=blocks,
        kv_cache_tensors=[SimpleNamespace(**dict(zip(names, t, strict=True))) for t in tensors],
    )


def check_layers_apart() -> None:
    stride = 160 * 131072
    shape = geometry(plan(160, (2 * stride, stride, 131072, 0)), 2 * MIB)
    assert (shape.layout.segments, shape.layout.segment_page_bytes, shape.pages) == (2, 2 * MIB, 10)
    assert (shape.page_bytes, shape.stride_bytes) == (4 * MIB, stride)


def check_layers_together() -> None:
    block = 32 * 65536  # of 32 layers
    shape = geometry(plan(10, (10 * block, 65536, block, 0)), 2 * MIB)
    assert (shape.layout.segments, shape.pages, shape.page_bytes) == (1, 10, 2 * MIB)
    with refused(KVCachedConfigError, "multiple of 4, such as 8"):
        geometry(plan(10, (10 * 3 * MIB, 65536, 3 * MIB, 0)), 2 * MIB)
    large = geometry(plan(12, (12 * 3 * MIB, 65536, 3 * MIB, 0)), 2 * MIB)
    assert (large.pages, large.page_bytes) == (9, 4 * MIB)


def check_no_whole_pages() -> None:
    stride = 100 * 131072
    with refused(KVCachedConfigError, "multiple of 16, such as 96"):
        geometry(plan(100, (2 * stride, stride, 131072, 0)), 2 * MIB)
    with refused(KVCachedConfigError, "different sizes"):
        geometry(plan(16, (MIB, 1, 2, 0), (MIB, 1, 3, 0)), 2 * MIB)


def check_stages_have_as_many_pages() -> None:
    three, two = SimpleNamespace(pages=3), SimpleNamespace(pages=2)
    scheduler_module.check_stages([three, three])
    with refused(KVCachedConfigError, "VLLM_PP_LAYER_PARTITION to equal stages"):
        scheduler_module.check_stages([three, two])


def check_whole_blocks() -> None:
    assert block_unit(131072, 2 * MIB) == 16
    assert block_unit(98304, 2 * MIB) == 64
    assert whole_blocks(43 * MIB, [[131072] * 2], 2 * MIB) == 40 * MIB
    assert whole_blocks(3 * MIB, [[131072] * 2], 2 * MIB) == 0
    layers = [131072] * 2
    assert whole_blocks(43 * MIB, [layers, layers[:1], layers, []], 2 * MIB) == 40 * MIB


def main() -> None:
    results = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                results[name] = ""
            except BaseException:
                results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
