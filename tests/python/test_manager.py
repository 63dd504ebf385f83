# SPDX-License-Identifier: Apache-2.0
"""KVCacheManager's blocks, over a daemon on the emulated driver; no torch."""

from __future__ import annotations

import random
import signal
import sys
import threading
from typing import Any, Callable

import pytest

from harness.broker import eventually
from harness.managers import BLOCK, CELL, LAYERS, MIB, PAGE_BYTES, make, seconds_of, used_bytes
from kvcached import DaemonTimeoutError, KVCachedConfigError, runtime
from kvcached.integration.vllm import interfaces as kvi
from kvcached.kv_cache_manager import FIRST_WAIT_MS, KVCacheManager


def test_alloc_and_free(engine: None) -> None:
    manager = make()
    assert manager.alloc(0) == []
    ids = manager.alloc(130)
    assert ids == list(range(130))
    assert manager.status()["mapped_pages"] == 2
    assert manager.get_page_occupancy([0, 1, 2]) == [128, 2, 0]
    assert manager.get_mapped_memory_size("bytes") == 2 * PAGE_BYTES
    assert manager.get_mapped_memory_size("mb") == 32
    assert manager.get_mapped_memory_size() == 32 / 1024
    with pytest.raises(ValueError, match="Unknown unit"):
        manager.get_mapped_memory_size("tb")
    manager.free(ids[::-1])
    assert manager.status()["used_blocks"] == 0


def test_wrong_frees_change_nothing(either: None) -> None:
    manager = make()
    ids = manager.alloc(4)
    assert ids is not None
    for wrong in ([ids[0], ids[0]], [ids[0], 99], [1 << 31]):
        with pytest.raises(ValueError, match="not allocated, or named twice"):
            manager.free(wrong)
    with pytest.raises(ValueError, match=r"^-1 is not a number"):
        manager.free([-1])
    with pytest.raises(TypeError):
        manager.free(["0"])  # type: ignore[list-item]
    assert manager.status()["used_blocks"] == 4
    manager.free(ids)
    with pytest.raises(ValueError, match="not allocated"):
        manager.free(ids)


def test_blocks_end_with_the_tensors(either: None) -> None:
    """1000 blocks, though eight pages have 1024."""
    manager = make(1000)
    assert manager.alloc(1001) is None
    assert manager.status()["used_blocks"] == 0
    assert manager.available_size(1000) == 1000
    ids = manager.alloc(1000)
    assert ids is not None
    assert sorted(ids) == list(range(1000))
    assert manager.available_size() == 0
    assert manager.alloc(1) is None
    assert manager.get_page_occupancy([6, 7]) == [128, 104]
    with pytest.raises(ValueError, match="not allocated"):
        manager.free([1000])
    manager.free(ids[990:])
    assert manager.available_size() == 10
    again = manager.alloc(10)
    assert again is not None
    assert sorted(again) == sorted(ids[990:])
    with pytest.raises(ValueError, match="not allocated"):
        manager.free_after([1000], 1)
    manager.free(ids)
    manager.trim()
    assert manager.status()["mapped_pages"] == 0
    assert manager.status()["total_blocks"] == 1000
    assert manager.alloc(1001) is None
    manager.clear()
    assert manager.status()["used_blocks"] == 0
    manager.trim()
    assert len(manager.alloc(1000) or []) == 1000


def test_spare_room_is_no_blocks(either: None) -> None:
    """33 blocks of 128 to a page, and 31 more that are none: the numbers are exact under every bound."""
    manager = make(129)
    assert not manager.try_to_reserve(130)
    assert manager.try_to_reserve(129)
    manager.free_reserved()
    manager.trim()
    assert manager.set_memory_limit(PAGE_BYTES, revision=1).status == "applied"
    assert manager.available_size(20) >= 20
    assert manager.promised_size() >= 20
    assert manager.status()["total_blocks"] == 128
    assert len(manager.alloc(20) or []) == 20
    manager.clear()
    assert manager.set_memory_limit(0, revision=2).effective_limit_bytes == 0
    assert (manager.status()["total_blocks"], manager.available_size()) == (0, 0)
    assert manager.set_memory_limit(None, revision=3).status == "applied"
    ids = manager.alloc(129)
    assert ids is not None
    assert manager.get_page_occupancy([0, 1]) == [128, 1]
    assert manager.status()["free_blocks"] == 0
    assert manager.get_page_occupancy(page for page in (1,)) == [1]
    huge = KVCacheManager(10**30, BLOCK, CELL, LAYERS, group_id=1)
    make(256, 1)
    assert huge.alloc(257) is None
    assert len(huge.alloc(256) or []) == 256


def test_null_block(engine: None) -> None:
    manager = make(256, reserve_null_block=True)
    ids = manager.alloc(255)
    assert ids is not None
    assert sorted(ids) == list(range(1, 256))
    manager.free(ids)
    manager.trim()
    assert manager.status()["mapped_pages"] == 1


def test_available_is_a_promise(either: None, kvctl: Any) -> None:
    manager, other = make(4096, 0), make(4096, 1)
    kvctl("limit", runtime.get().instance, "256M")  # 16 pages
    n = manager.available_size(10 * 128)
    assert n == 10 * 128
    ids = other.alloc(6 * 128)
    assert ids is not None
    assert other.alloc(128) is None
    mine = manager.alloc(n)
    assert mine is not None
    assert manager.available_size() == 0


def test_limit_refuses_with_none(engine: None, kvctl: Any) -> None:
    manager = make(4096)
    kvctl("limit", runtime.get().instance, str(4 * PAGE_BYTES))
    assert manager.alloc(5 * 128) is None
    ids = manager.alloc(4 * 128)
    assert ids is not None
    assert used_bytes(kvctl) == 4 * PAGE_BYTES
    manager.free(ids)


def test_reserve(engine: None) -> None:
    manager = make(256)
    assert manager.try_to_reserve(100)
    assert not manager.try_to_reserve(157)
    assert manager.status()["reserved_blocks"] == 100
    assert len(manager.alloc(60) or []) == 60
    assert manager.status()["reserved_blocks"] == 40
    manager.free_reserved()
    assert manager.status()["reserved_blocks"] == 0


def test_resize_trim_clear(engine: None, kvctl: Any) -> None:
    manager = make(1024)
    ids = manager.alloc(512)
    assert ids is not None
    assert not manager.resize(2 * 2 * MIB)
    assert manager.alloc(1) is None
    manager.free(ids)
    assert manager.status()["mapped_pages"] <= 2
    assert manager.resize(8 * 2 * MIB)
    assert manager.alloc(1024) is not None
    manager.clear()
    assert manager.status()["used_blocks"] == 0
    manager.trim()
    assert manager.status()["mapped_pages"] == 0
    with pytest.raises(ValueError, match="less than nothing"):
        manager.resize(-1)


def test_limit_of_its_own(engine: None) -> None:
    manager = make(1024)
    assert manager.memory_limit_state().status == "unavailable"
    ids = manager.alloc(3 * 128)
    assert ids is not None
    state = manager.set_memory_limit(2 * PAGE_BYTES + 5, revision=3)
    assert (state.status, state.overage_bytes) == ("deferred", PAGE_BYTES)
    assert (state.limit_bytes, state.effective_limit_bytes) == (2 * PAGE_BYTES + 5, 2 * PAGE_BYTES)
    assert manager.set_memory_limit(PAGE_BYTES, revision=2).status == "stale"
    assert manager.set_memory_limit(PAGE_BYTES, revision=3).status == "conflict"
    assert manager.set_memory_limit(2 * PAGE_BYTES + 5, revision=3).status == "deferred"
    manager.free(ids[256:])
    assert manager.memory_limit_state().status == "applied"
    assert manager.alloc(1) is None
    state = manager.set_memory_limit(None, revision=4)
    assert (state.status, state.limit_bytes, state.effective_limit_bytes) == ("applied", None, 8 * PAGE_BYTES)
    assert manager.alloc(128) is not None
    assert manager.set_memory_limit(0, revision=5).to_dict()["remaining_bytes"] == 0
    with pytest.raises(ValueError, match="less than nothing"):
        manager.set_memory_limit(-1, revision=6)


def test_resize_and_limit_both_hold(engine: None) -> None:
    manager = make(1024)
    assert manager.set_memory_limit(2 * PAGE_BYTES, revision=1).status == "applied"
    assert manager.resize(8 * 2 * MIB)
    assert manager.alloc(2 * 128 + 1) is None
    assert manager.resize(1 * 2 * MIB)
    state = manager.set_memory_limit(None, revision=2)
    assert (state.status, state.effective_limit_bytes) == ("applied", PAGE_BYTES)
    assert manager.alloc(128 + 1) is None
    assert manager.set_memory_limit(0, revision=3).effective_limit_bytes == 0
    assert manager.resize(10**30)
    assert manager.alloc(1) is None
    assert manager.set_memory_limit(10**30, revision=4).effective_limit_bytes == 8 * PAGE_BYTES
    assert len(manager.alloc(1024) or []) == 1024


def test_wrong_limits_change_nothing(engine: None) -> None:
    manager = make(1024)
    assert manager.set_memory_limit(4 * PAGE_BYTES, revision=1).status == "applied"
    for limit, revision in ((1.5, 2), ("5G", 2), (PAGE_BYTES, None), (PAGE_BYTES, 2.0)):
        with pytest.raises(TypeError):
            manager.set_memory_limit(limit, revision=revision)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        manager.resize(4.0 * MIB)  # type: ignore[arg-type]
    assert manager.memory_limit_state().revision == 1
    assert manager.set_memory_limit(2 * PAGE_BYTES, revision=2).status == "applied"


def test_available_while_more_is_in_use_than_may_be(either: None) -> None:
    manager = make(1024)
    ids = manager.alloc(600)
    assert ids is not None
    assert manager.set_memory_limit(2 * PAGE_BYTES, revision=1).status == "deferred"
    assert manager.available_size() == manager.available_size(10) == 0
    manager.free(ids)
    assert manager.set_memory_limit(None, revision=2).status == "applied"
    ids = manager.alloc(600)
    assert not manager.resize(2 * MIB)
    assert manager.available_size() == 0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("num_blocks", 1.5, TypeError),
        ("num_blocks", 0, ValueError),
        ("num_blocks", "3", TypeError),
        ("block_size", -16, ValueError),
        ("cell_size", -64, ValueError),
        ("num_layers", 0, KVCachedConfigError),
        ("num_kv_buffers", 0, KVCachedConfigError),
        ("group_id", None, TypeError),
    ],
)
def test_numbers_that_are_none(engine: None, name: str, value: Any, error: type[Exception]) -> None:
    given = {"num_blocks": 16, "block_size": 16, "cell_size": 64, "num_layers": 1, name: value}
    with pytest.raises(
        error, match="integer" if error is TypeError else f"{name} is {value}, and must be positive"
    ):
        KVCacheManager(**given)


def test_two_negative_sizes_make_no_positive_one(engine: None) -> None:
    with pytest.raises(KVCachedConfigError, match="block_size is -16"):
        KVCacheManager(16, -16, -64, 1)


def test_iterators(engine: None, kvcached_environment: Any) -> None:
    """Blocks to free may come from anywhere, and are looked at once."""
    for check in ("false", "true"):
        kvcached_environment.setenv("KVCACHED_SANITY_CHECK", check)
        manager = make(1000, int(check == "true"))
        for used in (iter, tuple, lambda ids: (i for i in ids), lambda ids: dict.fromkeys(ids).keys()):
            ids = manager.alloc(1000)
            assert ids is not None
            manager.free(used(ids[:400]))
            manager.free_after(used(ids[400:]), 1)
            assert manager.status()["used_blocks"] == 0
            manager.complete(1)


def test_epochs(engine: None) -> None:
    manager = make(256)
    ids = manager.alloc(256)
    assert ids is not None
    manager.free_after(ids, 7)
    manager.trim()
    assert manager.status()["waiting_pages"] == 2
    manager.complete(6)
    assert manager.status()["waiting_pages"] == 2
    manager.complete(7)
    manager.trim()
    assert manager.status()["mapped_pages"] == 0


def test_census(engine: None) -> None:
    manager = make(384)
    ids = manager.alloc(384)
    assert ids is not None
    manager.free([i for i in ids if i >= 256 and i != 300])
    manager.free([0])
    assert manager.census(2) == [(2, 1), (0, 127)]
    assert manager.page_of(300) == 2
    with pytest.raises(ValueError, match="no block of the region"):
        manager.page_of(1 << 20)


def test_block_larger_than_a_page(engine: None) -> None:
    with pytest.raises(KVCachedConfigError, match="set KVCACHED_PAGE_SIZE_MB=4 or more"):
        kvi.get_kv_cache_manager(16, 1024, 4096 - 1024, 1)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("KVCACHED_PAGE_SIZE_MB", "3", "not a positive multiple of 2"),
        ("KVCACHED_PAGE_SIZE_MB", "two", "not a whole number"),
        ("KVCACHED_CONTIGUOUS_LAYOUT", "maybe", "neither true nor false"),
    ],
)
def test_settings(engine: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(KVCachedConfigError, match=text):
        kvi.get_kv_cache_manager(16, BLOCK, CELL, LAYERS)


def test_lowered_limit_reaches_the_engine(engine: None, kvctl: Any) -> None:
    """kvctl's limit asks for blocks in use; whoever frees them meets it."""

    class Engine:
        def __init__(self) -> None:
            self.manager = make(1024)
            self.ids = self.manager.alloc(8 * 128) or []
            self.asked = threading.Event()

        def give(self, n_bytes: int, deadline_ms: int) -> None:
            n = -(-n_bytes // PAGE_BYTES) * 128
            self.manager.free(self.ids[-n:])
            del self.ids[-n:]
            self.asked.set()

    class Failing:
        def give(self, n_bytes: int, deadline_ms: int) -> None:
            raise ValueError("not now")

    engine_, failing = Engine(), Failing()
    runtime.get().add_reclaimer(failing.give)
    runtime.get().add_reclaimer(engine_.give)
    kvctl("limit", runtime.get().instance, str(5 * PAGE_BYTES))
    assert engine_.asked.wait(30)
    assert used_bytes(kvctl) <= 5 * PAGE_BYTES
    assert len(engine_.ids) == 5 * 128


def test_a_reclaimer_that_exits_keeps_no_other_from_being_asked(engine: None) -> None:
    asked = []

    class Engine:
        def exit(self, n_bytes: int, deadline_ms: int) -> None:
            sys.exit()

        def give(self, n_bytes: int, deadline_ms: int) -> None:
            asked.append(n_bytes)

    engine_ = Engine()
    runtime.get().add_reclaimer(engine_.exit)
    runtime.get().add_reclaimer(engine_.give)
    runtime.get()._on_reclaim(5, 6)
    assert asked == [5]


def test_available_size_waits_for_nobody(
    either: None, kvcached_environment: Any, send: Callable[[int], None]
) -> None:
    kvi.shutdown_kvcached()
    kvcached_environment.setenv("KVCACHED_IPC_TIMEOUT", "3")
    kvi.init_kvcached()
    manager = make(4096)
    assert manager.alloc(40) is not None
    send(signal.SIGSTOP)
    for _ in range(3):
        assert seconds_of(manager.available_size) < 0.5
    assert manager.available_size() >= 128 - 40
    assert 2.5 < seconds_of(lambda: manager.available_size(4000)) < 10
    for _ in range(3):
        assert seconds_of(lambda: manager.available_size(4000)) < 0.5


def test_available_size_of_an_idle_gpu(either: None) -> None:
    """There is something from the first call on, though nobody has asked for anything yet."""
    manager = make(4096)
    assert manager.available_size() > 0


class Late:
    """Blocks of a daemon whose answers come too late."""

    def __init__(self) -> None:
        self.waits: list[int] = []

    def available(self) -> int:
        return 0

    def status(self) -> dict[str, int]:
        return {"total_blocks": 1000, "used_blocks": 0}

    def want(self, n: int, timeout_ms: int) -> int:
        self.waits.append(timeout_ms)
        raise DaemonTimeoutError("no answer")


def test_a_short_wait_in_vain_forbids_no_long_one(engine: None) -> None:
    """Within a tenth of a second the daemon may not have asked others yet."""
    manager = make()
    opened, late = manager.blocks, Late()
    manager._opened = late  # type: ignore[assignment]
    assert manager.available_size() == 0
    assert manager.available_size(10) == manager.available_size(10) == 0
    assert late.waits == [FIRST_WAIT_MS, -1, 0]
    manager._opened = opened


def test_waiting_for_available_size_comes_to_an_end(either: None, kvctl: Any) -> None:
    """while need > available_size(): wait."""
    manager = make(4096)
    kvctl("limit", runtime.get().instance, str(30 * PAGE_BYTES))
    eventually(lambda: manager.available_size() >= 30 * 128)
    assert len(manager.alloc(30 * 128) or []) == 30 * 128
    assert manager.available_size() == 0


def test_an_alloc_in_vain_is_forgotten(engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could never be had is no wish, and what was had is one no more."""
    manager, asked = make(4096), list[int]()

    def ask(blocks: Any, want: int, wait_ms: int) -> int:
        asked.append(want)
        return want

    assert manager.alloc(0) == []
    monkeypatch.setattr(manager, "_ask", ask)
    assert manager.alloc(5000) is None
    for _ in range(4):
        manager.available_size()
    assert asked == [1280, 2560, 4096, 4096]
    assert manager.alloc(1) is not None
    manager.available_size()
    assert asked[4:] == [1280]
    manager.resize(20 * 2 * MIB)
    assert manager.alloc(2560) is None
    manager.available_size()
    assert asked[5:] == [2559]


def test_random_against_a_model(either: None) -> None:
    """Sets of Python against the library, with a seed that is printed."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng, manager, held = random.Random(seed), make(1000), list[int]()
    for _ in range(3000):
        n = rng.randrange(0, 200)
        if rng.random() < 0.5:
            ids = manager.alloc(n)
            assert (ids is None) == (n > 1000 - len(held))
            if ids is not None:
                assert len(ids) == len(set(ids)) == n
                assert all(0 <= i < 1000 for i in ids)
                assert not set(ids) & set(held)
                held += ids
        else:
            rng.shuffle(held)
            manager.free(held[:n])
            del held[:n]
        if rng.random() < 0.05:
            manager.trim()
        assert manager.status()["used_blocks"] == len(held)


def test_sanity_check(engine: None, kvcached_environment: Any) -> None:
    """Books of its own find what the library would have handed out twice."""
    kvcached_environment.setenv("KVCACHED_SANITY_CHECK", "true")
    manager = make(1000)
    ids = manager.alloc(1000)
    assert ids is not None
    manager.free(ids[:500])
    manager.free_after(ids[500:], 1)
    manager.complete(1)
    ids = manager.alloc(10)
    assert ids is not None
    manager.blocks.free(ids)  # behind its back
    with pytest.raises(AssertionError, match="handed out twice"):
        manager.alloc(10)
    manager.clear()
    assert manager.alloc(10) is not None


def test_sanity_check_with_a_clear_meanwhile(engine: None, kvcached_environment: Any) -> None:
    """What another thread's clear() may have freed is no reason for an alarm."""
    kvcached_environment.setenv("KVCACHED_SANITY_CHECK", "true")
    manager = make(1000)
    blocks = manager.blocks

    class Meanwhile:
        def alloc(self, n: int) -> list[int]:
            manager._opened = blocks
            ids = blocks.alloc(n)
            manager.clear()
            return ids

    manager._opened = Meanwhile()  # type: ignore[assignment]
    ids = manager.alloc(10)
    assert ids is not None
    assert manager.alloc(10) == ids
    manager.free(ids)
    assert manager.alloc(1000) is not None


def test_threads(either: None) -> None:
    """Several take and free at a time; in the end all is there, and nobody got what another had."""
    manager, owner, wrong = make(1024), dict[int, int](), list[int]()

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(400):
            ids = manager.alloc(rng.randrange(1, 40))
            for i in ids or []:
                if owner.setdefault(i, number) != number:
                    wrong.append(i)
            for i in ids or []:
                owner.pop(i, None)
            manager.free(ids or [])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert manager.status()["used_blocks"] == 0
    assert len(manager.alloc(1024) or []) == 1024
