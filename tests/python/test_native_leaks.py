# SPDX-License-Identifier: Apache-2.0
"""Opening and closing again and again takes nothing: no descriptor, object, thread, or memory. (What the
driver has is counted after every test.)"""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from harness import leaks
from kvcached import _native

PAGE = 2 << 20


def resident_kib() -> int:
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def n_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def n_objects() -> int:
    """Also of types that the collector does not know."""
    gc.collect()
    return sys.getallocatedblocks()


def whole_life() -> None:
    client = _native.Client(instance="engine", reclaim=print)
    region = client.open_region(16, PAGE)
    blocks = _native.Blocks([region], PAGE // 4)
    ids = blocks.alloc(20)
    blocks.free(ids)
    blocks.status(), blocks.census(3), blocks.occupancy([0, 1]), client.status(), client.device()
    capsule = region.tensor(0, PAGE)
    del blocks
    client.close()
    del capsule


def failures() -> None:
    client = _native.Client.__new__(_native.Client)
    for call in (
        lambda: _native.Client(socket="/nowhere.sock", reclaim=print),
        lambda: _native.Client(role="x"),  # type: ignore[arg-type]
        client.status,
        lambda: _native.Blocks([3], 1),  # type: ignore[list-item]
        lambda: _native.Blocks([], 1),
        lambda: _native.set_log_handler(3),  # type: ignore[arg-type]
    ):
        with pytest.raises((TypeError, _native.Error)):
            call()


def calls_and_failures(client: _native.Client, region: _native.Region, blocks: _native.Blocks) -> None:
    ids = blocks.alloc(300)
    blocks.free(ids)
    blocks.free_after(blocks.alloc(2), 5)
    blocks.complete(5)
    blocks.want(1)
    region.tensor(0, 1)
    wrong: list[Callable[[], Any]] = [
        lambda: blocks.alloc(100_000),
        lambda: blocks.alloc(-1),
        lambda: blocks.free([1] * 300),
        lambda: blocks.free([*range(300), None]),  # type: ignore[list-item]
        lambda: blocks.occupancy([*range(300), -1]),
        lambda: blocks.page_of(1 << 40),
        lambda: region.map([1] * 300),
        lambda: region.map([1, "x"]),  # type: ignore[list-item]
        lambda: region.tensor(0, 1 << 60),
        lambda: client.open_region(0, 0),
        lambda: client.attach(0, 0),
    ]
    for call in wrong:
        with pytest.raises((TypeError, OverflowError, MemoryError, _native.Error, ValueError)):
            call()


def check(run: Callable[[], None], times: int, slack_kib: int = 1024) -> None:
    for _ in range(max(5, times // 10)):
        run()
    descriptors, threads, objects = leaks.open_descriptors(), n_threads(), n_objects()
    resident = resident_kib()
    for _ in range(times):
        run()
    grown = n_objects() - objects
    assert grown < times // 2, f"{grown} objects more after {times} times"
    assert leaks.open_descriptors() == descriptors
    assert n_threads() == threads
    assert resident_kib() - resident < slack_kib


def test_whole_lives(kvcached_environment: pytest.MonkeyPatch) -> None:
    check(whole_life, 100)


def test_failures(kvcached_environment: pytest.MonkeyPatch) -> None:
    check(failures, 300)


def test_calls(client: _native.Client) -> None:
    region = client.open_region(16, PAGE)
    blocks = _native.Blocks([region], PAGE // 64)
    check(lambda: calls_and_failures(client, region, blocks), 300)


def test_references_of_what_is_passed(client: _native.Client) -> None:
    region = client.open_region(16, PAGE)
    blocks = _native.Blocks([region], PAGE // 4)
    ids = [number + 1000 for number in range(4)]
    counts = [sys.getrefcount(each) for each in (ids, ids[0], region, client)]
    for _ in range(50):
        with pytest.raises(_native.InvalidError):
            blocks.free(ids)
        with pytest.raises(_native.InvalidError):
            region.map(ids)
        _native.Blocks([client.open_region(4, PAGE)], PAGE).close()
    gc.collect()
    assert [sys.getrefcount(each) for each in (ids, ids[0], region, client)] == counts


def test_types_go_with_their_objects(kvcached_environment: pytest.MonkeyPatch) -> None:
    """Each object of such a type has a reference to it."""
    types = (_native.Client, _native.Region, _native.Blocks)
    before = [sys.getrefcount(each) for each in types]
    for _ in range(20):
        whole_life()
    gc.collect()
    assert [sys.getrefcount(each) for each in types] == before
