# SPDX-License-Identifier: Apache-2.0
"""Measures the calls of bench-blocks from Python, through the extension pyblocks.

Prints SIDE NANOSECONDS for each round: "alloc-free" for 16 blocks allocated and freed, "available", and
"loop", a pass of the loop that does the measuring, which is not subtracted from the others.

    bench-python.py FOLDER-OF-THE-EXTENSION SOCKET ROUNDS PROCESSOR
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from time import perf_counter_ns

BATCH = 1000
BLOCKS = 16


def measure(operation: Callable[[], object]) -> float:
    passes = range(BATCH)
    start = perf_counter_ns()
    for _ in passes:
        operation()
    return (perf_counter_ns() - start) / BATCH


def main(folder: str, socket: str, rounds: str, processor: str) -> None:
    os.sched_setaffinity(0, {int(processor)})
    sys.path.insert(0, folder)
    blocks = importlib.import_module("pyblocks").Blocks(socket)
    alloc, free = blocks.alloc, blocks.free

    def alloc_and_free() -> None:
        free(alloc(BLOCKS))

    sides = {"alloc-free": alloc_and_free, "available": blocks.available, "loop": int}
    for operation in sides.values():
        measure(operation)
    for _ in range(int(rounds)):
        for name, operation in sides.items():
            print(name, f"{measure(operation):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
