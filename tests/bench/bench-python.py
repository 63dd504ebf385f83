# SPDX-License-Identifier: Apache-2.0
"""Measures what a scheduler written in Python calls all the time, through the package as it is installed.

Prints SIDE NANOSECONDS for each round: "alloc-free" for 16 blocks allocated and freed through the extension,
"available"; KVCacheManager's alloc and free as "manager-N-of-PAGES", for N blocks where PAGES pages are part
used; "loop", a pass of the loop that does the measuring, which is not subtracted from the others; and "ints",
CPython's own making and dropping of a list of 16 numbers, which alloc-free cannot do without.

    bench-python.py BUILD-FOLDER SOCKET ROUNDS PROCESSOR
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

BATCH = 1000
BLOCKS = 16
PAGE_BYTES, BLOCK_BYTES = 2 << 20, 16 << 10
FEW, MANY = 4, 1000
SIZES = (1, 16, 256)


def load_package(build: Path) -> None:
    """As an installation would have it: the extension beside the package's files."""
    file = build / "python" / "_native.abi3.so"
    spec = importlib.util.spec_from_file_location("kvcached._native", file)
    assert spec is not None
    assert spec.loader is not None
    native = sys.modules["kvcached._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))


def measure(operation: Callable[[], object]) -> float:
    passes = range(BATCH)
    start = perf_counter_ns()
    for _ in passes:
        operation()
    return (perf_counter_ns() - start) / BATCH


def half_used(group: int, pages: int) -> Any:
    """A manager of which so many pages are mapped, every second block in use."""
    from kvcached import runtime
    from kvcached.kv_cache_manager import KVCacheManager
    from kvcached.layout import Layout

    per_page = PAGE_BYTES // BLOCK_BYTES
    layout = Layout(1, 1, BLOCK_BYTES, PAGE_BYTES, True)
    runtime.get().open_pool(group, layout, pages)
    manager = KVCacheManager(pages * per_page, 1, BLOCK_BYTES, 1, num_kv_buffers=1, group_id=group)
    ids = manager.alloc(pages * per_page)
    assert ids is not None
    manager.free(ids[::2])
    return manager


def pair(
    alloc: Callable[[int], list[int]], free: Callable[[list[int]], object], n: int
) -> Callable[[], None]:
    def alloc_and_free() -> None:
        free(alloc(n))

    return alloc_and_free


def main(build: str, socket: str, rounds: str, processor: str) -> None:
    os.sched_setaffinity(0, {int(processor)})
    os.environ["KVCACHED_SOCKET"] = socket
    load_package(Path(build))
    from kvcached.integration.vllm import interfaces as kvi

    kvi.init_kvcached()
    few, many = half_used(0, FEW), half_used(1, MANY)
    sides: dict[str, Callable[[], object]] = {
        "alloc-free": pair(few.blocks.alloc, few.blocks.free, BLOCKS),
        "available": few.blocks.available,
        "loop": int,
        "ints": partial(list, range(MANY, MANY + BLOCKS)),
    }
    for n in SIZES:
        sides[f"manager-{n}-of-{FEW}"] = pair(few.alloc, few.free, n)
        sides[f"manager-{n}-of-{MANY}"] = pair(many.alloc, many.free, n)
    for operation in sides.values():
        measure(operation)
    for _ in range(int(rounds)):
        for name, operation in sides.items():
            print(name, f"{measure(operation):.2f}")
    kvi.shutdown_kvcached()


if __name__ == "__main__":
    main(*sys.argv[1:])
